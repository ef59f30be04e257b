"""Loading: the same weights however a checkpoint spells, splits or stores them; every mismatch named."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from ridgeline.errors import InputError
from ridgeline.models import load_config
from ridgeline.weights.load import load_model, random_model
from tests.weights.checkpoints import SMALL, rewrite

#: Each family's embedding as transformers saves it.
EMBEDDING = {
    "llama tied": "model.embed_tokens.weight",
    "gpt2": "transformer.wte.weight",
    "opt": "model.decoder.embed_tokens.weight",
    "bert": "bert.embeddings.word_embeddings.weight",
}
HEAD = {"bert": "cls.predictions.decoder.weight"}


@pytest.fixture
def saved(make_twin, tmp_path):
    """``saved("llama")``: a twin of that family in a folder of the test's own."""

    def save(family: str):
        architecture, fields = SMALL[family]
        twin = make_twin(architecture, **fields)
        folder = tmp_path / family
        shutil.copytree(twin.folder, folder)
        return replace(twin, folder=folder)

    return save


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def rename(folder, pattern, replacement):
    rewrite(folder, {re.sub(pattern, replacement, name): t for name, t in tensors_of(folder).items()})


def load(folder, format=None):
    return load_model(load_config(folder), folder, format)


def assert_same_weights(model, expected):
    for a, b in zip(model.weights(), expected.weights(), strict=True):
        assert (a.name, a.shape, a.format) == (b.name, b.shape, b.format)
        assert torch.equal(a.data, b.data), a.name


def refusal(folder) -> str:
    with pytest.raises(InputError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what is stored where -------------------------------------------------------------------------


def test_shards_load_as_one_file_does(saved):
    twin = saved("llama")
    (twin.folder / "model.safetensors").unlink()
    twin.theirs.save_pretrained(twin.folder, max_shard_size="20KB")
    assert len(list(twin.folder.glob("*.safetensors"))) > 2
    assert_same_weights(load(twin.folder), twin.ours)


@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        ("llama tied", "model."),
        ("gpt2", "transformer."),
        ("opt", "model."),
        ("bert", "bert."),
    ],
)
def test_names_without_the_trunks_prefix_load_alike(family, prefix, saved):
    twin = saved(family)
    rename(twin.folder, f"^{re.escape(prefix)}", "")
    assert_same_weights(load(twin.folder), twin.ours)


def test_a_bare_trunk_loads_from_names_with_the_prefix(saved):
    twin = saved("bert's trunk")
    rename(twin.folder, "^", "bert.")
    assert_same_weights(load(twin.folder), twin.ours)


@pytest.mark.parametrize("family", ["bert", "bert's trunk"])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_layer_norms_old_names_load_alike(family, prefix, saved):
    twin = saved(family)
    rename(twin.folder, "LayerNorm.weight$", "LayerNorm.gamma")
    rename(twin.folder, "LayerNorm.bias$", "LayerNorm.beta")
    rename(twin.folder, r"^(bert\.)?(embeddings|encoder|pooler)", prefix + r"\2")
    assert_same_weights(load(twin.folder), twin.ours)


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
        ("gpt2", "transformer.h.0.attn.bias", (1, 1, 64, 64)),
        ("gpt2", "h.1.attn.masked_bias", ()),
        ("bert", "bert.embeddings.position_ids", (1, 512)),
        ("bert", "bert.pooler.dense.weight", (32, 32)),
        ("bert", "cls.seq_relationship.bias", (2,)),
    ],
)
def test_what_old_checkpoints_carry_beside_the_weights_is_passed_over(family, name, shape, saved):
    twin = saved(family)
    rewrite(twin.folder, {**tensors_of(twin.folder), name: torch.ones(shape)})
    assert_same_weights(load(twin.folder), twin.ours)


@pytest.mark.parametrize("family", EMBEDDING)
def test_a_copy_of_a_tied_matrix_is_passed_over(family, saved):
    twin = saved(family)
    tensors = tensors_of(twin.folder)
    tensors[HEAD.get(family, "lm_head.weight")] = tensors[EMBEDDING[family]].clone()
    rewrite(twin.folder, tensors)
    assert_same_weights(load(twin.folder), twin.ours)


@pytest.mark.parametrize("family", EMBEDDING)
def test_a_tied_matrix_may_be_stored_as_the_head_alone(family, saved):
    twin = saved(family)
    tensors = tensors_of(twin.folder)
    tensors[HEAD.get(family, "lm_head.weight")] = tensors.pop(EMBEDDING[family])
    rewrite(twin.folder, tensors)
    assert_same_weights(load(twin.folder), twin.ours)


def test_a_tied_matrix_is_one_weight(saved):
    model = load(saved("llama tied").folder)
    assert model.head is model.embedding


def test_a_tied_matrix_that_differs_from_its_copy_is_refused(saved):
    twin = saved("llama tied")
    tensors = tensors_of(twin.folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["lm_head.weight"][100, 31] += 1
    rewrite(twin.folder, tensors)
    message = refusal(twin.folder)
    assert "lm_head.weight" in message
    assert "tie_word_embeddings" in message


# -- storage formats ------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "format"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_half_precision_files_load_as_they_are(family, dtype, format, saved):
    twin = saved(family)
    rewrite(twin.folder, {name: t.to(dtype) for name, t in tensors_of(twin.folder).items()})
    raw = json.loads((twin.folder / "config.json").read_text())
    (twin.folder / "config.json").write_text(json.dumps({**raw, "dtype": str(dtype).removeprefix("torch.")}))
    for weight, full in zip(load(twin.folder).weights(), twin.ours.weights(), strict=True):
        assert weight.format == format
        assert torch.equal(weight.data, full.data.to(dtype))


@pytest.mark.parametrize("format", ["fp64", "bf16", "fp16"])
@pytest.mark.parametrize("family", SMALL)
def test_weights_are_converted_to_the_format_asked_for(family, format, saved):
    twin = saved(family)
    for weight, full in zip(load(twin.folder, format).weights(), twin.ours.weights(), strict=True):
        assert weight.format == format
        assert torch.equal(weight.data, full.data.to(weight.data.dtype))
        assert weight.data.is_contiguous()


def test_a_copy_of_a_tied_matrix_is_passed_over_after_conversion_too(saved):
    twin = saved("llama tied")
    tensors = tensors_of(twin.folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    rewrite(twin.folder, tensors)
    assert load(twin.folder, "bf16").head.format == "bf16"


def test_a_format_that_cannot_be_executed_is_refused(saved):
    with pytest.raises(InputError, match="int4-g32"):
        load(saved("llama").folder, "int4-g32")


def test_progress_adds_up_to_the_parameters(saved):
    folder, sizes = saved("llama tied").folder, []
    model = load_model(load_config(folder), folder, progress=sizes.append)
    assert sum(sizes) == model.parameter_count()


# -- what does not fit ----------------------------------------------------------------------------

MATRIX = "model.layers.1.mlp.down_proj.weight"


def test_a_missing_tensor_is_named_with_its_file_and_shape(saved):
    twin = saved("llama")
    rewrite(twin.folder, {name: t for name, t in tensors_of(twin.folder).items() if name != MATRIX})
    message = refusal(twin.folder)
    assert all(part in message for part in ("model.safetensors", MATRIX, "[32, 48]"))


def test_a_misshapen_tensor_is_named_with_both_shapes(saved):
    twin = saved("llama")
    rewrite(twin.folder, {**tensors_of(twin.folder), MATRIX: torch.ones(32, 40)})
    message = refusal(twin.folder)
    assert all(part in message for part in ("model.safetensors", MATRIX, "[32, 48]", "[32, 40]"))


def test_a_matrix_stored_the_other_way_round_is_misshapen(saved):
    twin = saved("gpt2")
    name = "transformer.h.0.mlp.c_fc.weight"
    tensors = tensors_of(twin.folder)
    rewrite(twin.folder, {**tensors, name: tensors[name].T.contiguous()})
    assert all(part in refusal(twin.folder) for part in (name, "[32, 128]", "[128, 32]"))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.2.mlp.down_proj.weight"),
        ("llama", "model.layers.0.self_attn.q_proj.bias"),
        ("llama", "model.layers.0.self_attn.q_proj.weight_scale"),
        ("bert's trunk", "cls.predictions.decoder.weight"),
    ],
)
def test_a_surplus_tensor_is_refused_by_name(family, name, saved):
    twin = saved(family)
    rewrite(twin.folder, {**tensors_of(twin.folder), name: torch.ones(32)})
    message = refusal(twin.folder)
    assert name in message
    assert "model.safetensors" in message


def test_a_head_beside_an_embedding_that_is_not_tied_is_needed(saved):
    twin = saved("llama")
    rewrite(twin.folder, {n: t for n, t in tensors_of(twin.folder).items() if n != "lm_head.weight"})
    assert "lm_head.weight" in refusal(twin.folder)


def test_a_quantised_tensor_is_refused_by_name(saved):
    twin = saved("llama")
    rewrite(twin.folder, {**tensors_of(twin.folder), MATRIX: torch.ones(32, 48, dtype=torch.int8)})
    message = refusal(twin.folder)
    assert MATRIX in message
    assert "int8" in message


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file_is_named(keep, saved):
    twin = saved("llama")
    file = twin.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "model.safetensors" in refusal(twin.folder)


def test_a_missing_shard_is_named(saved):
    twin = saved("llama")
    (twin.folder / "model.safetensors").unlink()
    twin.theirs.save_pretrained(twin.folder, max_shard_size="20KB")
    shard = sorted(twin.folder.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(twin.folder)


# -- random weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", SMALL)
def test_a_random_model_has_the_shapes_of_the_loaded_one(family, saved):
    twin = saved(family)
    drawn = random_model(twin.ours.config)
    for a, b in zip(drawn.weights(), twin.ours.weights(), strict=True):
        assert (a.name, a.shape, a.format) == (b.name, b.shape, b.format)
        assert tuple(a.data.shape) == a.shape


def test_a_seed_gives_the_same_random_model_again(make_twin):
    architecture, fields = SMALL["llama"]
    config = make_twin(architecture, **fields).ours.config
    assert_same_weights(random_model(config, seed=3), random_model(config, seed=3))
    assert not torch.equal(random_model(config, seed=3).head.data, random_model(config, seed=4).head.data)


def test_random_matrices_spread_by_two_hundredths_and_norms_are_one(make_twin):
    architecture, fields = SMALL["gpt2"]
    model = random_model(make_twin(architecture, **fields).ours.config)
    layer = model.layers[0]
    assert layer.qkv.data.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(layer.qkv.data, model.layers[1].qkv.data)
    assert (layer.input_norm.weight.data == 1).all()
    assert (layer.qkv_bias.data == 0).all()


# -- memory ---------------------------------------------------------------------------------------

#: Loads the folder argv[1] in format argv[2] and prints, in bytes, its weights and by how much
#: anonymous memory has grown at most.
LOAD_AND_MEASURE = """
import sys
from pathlib import Path
import ridgeline.weights.load as weights
from ridgeline.models import load_config

def anonymous():
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Anonymous:"))

folder = Path(sys.argv[1])
config = load_config(folder)
before, seen = anonymous(), []
model = weights.load_model(config, folder, sys.argv[2], progress=lambda _: seen.append(anonymous()))
print(model.weight_bytes(), max(*seen, anonymous()) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("format", "megabytes", "share"), [("bf16", 52, 0.5), ("fp32", 105, 1.1)])
def test_loading_takes_no_second_copy_of_the_weights(format, megabytes, share, large):
    """Converted, at most 1.1 times the weights, also while it loads; as stored, only what is
    stacked (query, key and value, gate and up: 45 %), since the rest stays in the mapped file."""
    run = subprocess.run(
        [sys.executable, "-c", LOAD_AND_MEASURE, str(large), format],
        capture_output=True,
        text=True,
        check=True,
    )
    weights, grown = map(int, run.stdout.split())
    assert weights // 10**6 == megabytes
    assert grown <= share * weights
