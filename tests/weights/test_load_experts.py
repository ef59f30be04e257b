"""Experts come from a tensor each, as they are published, or stacked, as transformers keeps them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ridgeline import load
from ridgeline.errors import InputError
from ridgeline.models import load_config
from ridgeline.weights.checkpoint import Checkpoint
from ridgeline.weights.load import load_model, random_model
from ridgeline.weights.pack import load_packed, random_packed

MIXTRAL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 3,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}


@pytest.fixture
def twin(make_twin):
    return make_twin("MixtralForCausalLM", **MIXTRAL)


def test_stacked_experts_are_those_that_were_saved_one_by_one(twin, tmp_path):
    twin.theirs.save_pretrained(tmp_path, save_original_format=False)
    names, published = (Checkpoint.open(folder).tensors for folder in (tmp_path, twin.folder))
    assert "model.layers.1.mlp.experts.gate_up_proj" in names
    assert "model.layers.1.block_sparse_moe.experts.2.w3.weight" in published
    stacked, config = load_model(load_config(tmp_path), tmp_path), load_config(tmp_path)
    for ours, other in zip(twin.ours.weights(), stacked.weights(), strict=True):
        assert (ours.name, ours.shape) == (other.name, other.shape)
        assert torch.equal(ours.data, other.data)
    packed = load_packed(config, tmp_path, "int8").layers[0].mixtures[0].experts
    for ours, other in zip(
        load_packed(config, twin.folder, "int8").layers[0].mixtures[0].experts.down.data, packed.down.data
    ):
        assert torch.equal(ours.data, other.data)


def test_an_experts_gate_comes_before_what_it_gates(twin):
    checkpoint = Checkpoint.open(twin.folder)
    experts = twin.ours.layers[1].mixtures[0].experts
    one = "model.layers.1.block_sparse_moe.experts.2"
    parts = [checkpoint.tensor(f"{one}.{name}.weight") for name in ("w1", "w3")]
    assert torch.equal(experts.gate_up.data[2], torch.cat(parts))
    assert torch.equal(experts.down.data[2], checkpoint.tensor(f"{one}.w2.weight"))


def test_a_missing_expert_is_named(twin, tmp_path):
    tensors = load_file(twin.folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"no tensor 'model.layers.1.block_sparse_moe.experts.2.w1.weight'"):
        load_model(load_config(twin.folder), tmp_path)


@pytest.mark.parametrize("format", ["bf16", "int8", "int4-g128"])
def test_packed_experts_take_the_bytes_that_are_counted(twin, format):
    experts = random_packed(load_config(twin.folder), format).layers[0].mixtures[0].experts
    for weight in (experts.gate_up, experts.down):
        assert weight.nbytes == sum(one.nbytes for one in weight.data)
        assert len(weight.data) == weight.shape[0] == 3


def test_random_experts_differ_from_each_other(twin):
    data = random_model(load_config(twin.folder)).layers[0].mixtures[0].experts.down.data
    assert not torch.equal(data[0], data[1])


def test_a_folder_of_experts_generates_the_same_tokens_alone_and_in_a_batch(twin):
    loaded = load(twin.folder, weights="fp32")
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
    options = {"max_tokens": 20, "stop_ids": ()}
    together = [list(result.ids) for result in loaded.generate(prompts, **options)]
    assert together == [list(loaded.generate([p], **options)[0].ids) for p in prompts]
    expected = twin.theirs.generate(
        torch.tensor([prompts[1]]), max_new_tokens=20, do_sample=False, attention_mask=torch.ones(1, 5)
    )
    assert together[1] == expected[0, 5:].tolist()


DEEPSEEK = {
    **{name: value for name, value in MIXTRAL.items() if name != "num_local_experts"},
    "num_key_value_heads": 4,
    "moe_intermediate_size": 12,
    "q_lora_rank": 8,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}


def test_layers_that_predict_further_ahead_are_left_out(make_twin, tmp_path):
    twin = make_twin("DeepseekV3ForCausalLM", **DEEPSEEK)
    tensors = load_file(twin.folder / "model.safetensors")
    extra = torch.zeros(3)
    save_file({**tensors, "model.layers.2.eh_proj.weight": extra}, tmp_path / "model.safetensors")
    config = load_config(twin.folder)
    assert config.spare_layers == 1
    assert load_model(config, tmp_path).parameter_count() == twin.ours.parameter_count()
    save_file({**tensors, "model.layers.3.eh_proj.weight": extra}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="has no place in a deepseek_v3 model"):
        load_model(config, tmp_path)


def test_the_bias_of_the_choice_is_loaded_and_is_no_parameter(make_twin):
    twin = make_twin("DeepseekV3ForCausalLM", **DEEPSEEK)
    bias = twin.ours.layers[1].mlp.router.bias
    assert torch.equal(bias.data, twin.theirs.model.layers[1].mlp.gate.e_score_correction_bias)
    assert bias.data.abs().max() > 0
    assert twin.ours.parameter_count() == sum(p.numel() for p in twin.theirs.parameters())


@pytest.mark.parametrize("weights", ["fp16", "bf16", "int8", "int4-g32"])
def test_a_model_of_latents_and_experts_generates_in_every_format(make_twin, weights):
    loaded = load(make_twin("DeepseekV3ForCausalLM", **DEEPSEEK).folder, weights=weights)
    options = {"max_tokens": 6, "stop_ids": ()}
    together = loaded.generate([[1, 2, 3], [4, 5]], **options)
    assert [len(result.ids) for result in together] == [6, 6]
    if weights != "fp16":  # PyTorch's products of one row and of two may round apart
        assert together[1].ids == loaded.generate([[4, 5]], **options)[0].ids
