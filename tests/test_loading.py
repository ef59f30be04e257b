"""``ridgeline.load``: what a user calls a model becomes one that runs."""

import json
import shutil
import subprocess
import sys

import pytest

from ridgeline.errors import InputError
from ridgeline.loading import FORMATS, GPU_FORMATS, load
from ridgeline.models.products import products

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 3,
}


@pytest.fixture
def folder(make_twin, tmp_path):
    """A float32 model without a tokenizer, in a folder of the test's own."""
    target = tmp_path / "tiny"
    shutil.copytree(make_twin("LlamaForCausalLM", **LLAMA).folder, target)
    (target / "generation_config.json").unlink(missing_ok=True)
    return target


@pytest.fixture
def with_tokenizer(folder):
    """The same with a tokenizer of single characters, ``#`` to end, and a chat template."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {token: i for i, token in enumerate("abc#" + "".join(map(chr, range(0x100, 0x100 + 60))))}
    backend = tokenizers.Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "#"}))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


def edit(file, **fields):
    content = json.loads(file.read_text()) if file.exists() else {}
    content.update(fields)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def formats(loaded):
    return {weight.format for weight in loaded.model.weights()}


def test_a_folder_is_loaded_with_its_tokenizer_template_and_defaults(with_tokenizer):
    edit(with_tokenizer / "generation_config.json", do_sample=True, temperature=0.5, top_k=7)
    loaded = load(with_tokenizer)
    assert loaded.folder == with_tokenizer
    assert loaded.tokenizer.encode("cab") == [2, 0, 1]
    assert loaded.chat_template.render([{"role": "user", "content": "hi"}]) == "hi"
    assert loaded.generation.top_k == 7
    [result] = loaded.generate("abc", max_tokens=4)
    assert len(result.ids) <= 4


def test_the_tokens_are_those_of_transformers(folder, make_twin):
    import torch

    theirs = make_twin("LlamaForCausalLM", **LLAMA).theirs.generate(
        torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=20, eos_token_id=None, pad_token_id=0
    )
    [result] = load(folder).generate([5, 6, 7], max_tokens=20, stop_ids=())
    assert list(result.ids) == theirs[0, 3:].tolist()


# -- weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["bfloat16", None])
def test_the_weights_keep_the_dtype_of_the_files_whatever_the_config_says(folder, said):
    edit(folder / "config.json", dtype=said, torch_dtype=said)
    loaded = load(folder)
    assert formats(loaded) == {loaded.config.format} == {loaded.model.config.format} == {"fp32"}


def test_files_without_floating_point_weights_are_refused_by_tensor(folder):
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({name: tensor.to(torch.int8) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(InputError, match=r"model\.safetensors.*embed_tokens"):
        load(folder)


@pytest.mark.parametrize("weights", ["bf16", "fp16", "fp32"])
def test_the_weights_are_converted_on_demand_and_run(folder, weights):
    loaded = load(folder, weights=weights)
    assert formats(loaded) == {loaded.config.format} == {weights}
    assert len(loaded.generate([5, 6], max_tokens=3, stop_ids=())[0].ids) == 3


@pytest.mark.parametrize("weights", [w for w in FORMATS if w.startswith("int")])
def test_what_is_multiplied_is_quantised_on_demand_and_the_rest_as_it_was(folder, weights):
    loaded = load(folder, weights=weights)
    assert loaded.config.format == loaded.model.config.format == weights
    multiplied = {weight.name for weight, _ in products(loaded.model)}
    assert {weight.name for weight in loaded.model.weights() if weight.format == weights} == multiplied
    assert formats(loaded) == {weights, "fp32"}
    assert len(loaded.generate([5, 6], max_tokens=3, stop_ids=())[0].ids) == 3


@pytest.mark.parametrize("weights", FORMATS)
def test_pytorch_runs_what_the_native_kernels_do_not(folder, weights):
    assert load(folder, weights=weights).ops.lowering.name == ("torch-cpu" if weights == "fp16" else "cpu")


@pytest.mark.parametrize("weights", [*GPU_FORMATS, "random:fp8"])
def test_what_only_a_gpu_runs_is_refused_on_the_cpu(folder, weights):
    with pytest.raises(InputError, match=r"fp8.*only a GPU runs: choose int8 or bf16, or device cuda"):
        load(folder, weights=weights)


def test_invariance_is_the_cpus_already_but_not_pytorchs(folder):
    prompt, options = [5, 6, 7], {"max_tokens": 5, "stop_ids": ()}
    plain, asked = (load(folder, invariant=x).generate(prompt, **options)[0].ids for x in (False, True))
    assert plain == asked
    with pytest.raises(InputError, match="fp16 weights run on PyTorch's operators on the cpu"):
        load(folder, weights="fp16", invariant=True)


@pytest.mark.parametrize("weights", ["random:bf16", "random:int4-g32"])
def test_random_weights_come_in_any_format(weights):
    loaded = load("demo", weights=weights)
    assert loaded.config.format == weights.removeprefix("random:")
    assert formats(loaded) == {loaded.config.format, "bf16"}


def test_random_weights_are_the_same_for_the_same_seed(folder):
    first, same, other = (
        load(folder, weights="random", seed=seed).generate([5], max_tokens=20, stop_ids=())[0].ids
        for seed in (1, 1, 2)
    )
    assert first == same != other


def test_random_weights_need_no_weight_files(folder):
    (folder / "model.safetensors").unlink()
    assert load(folder, weights="random").folder == folder
    with pytest.raises(InputError, match="safetensors"):
        load(folder)


def test_a_built_in_config_runs_with_random_weights():
    loaded = load("SmolLM2-135M", weights="random")
    assert (loaded.folder, loaded.tokenizer, loaded.chat_template) == (None, None, None)
    assert len(loaded.generate([5], max_tokens=1)[0].ids) == 1


def test_the_demo_model_has_a_tokenizer():
    loaded = load("demo", weights="random")
    [result] = loaded.generate("def add(a, b):", max_tokens=2, stop_ids=())
    assert result.prompt_tokens == len(loaded.tokenizer.encode("def add(a, b):"))


@pytest.mark.parametrize(
    ("name", "folder"),
    [("demo", "model"), ("Demo", "model"), ("demo-draft", "draft"), ("DEMO-DRAFT", "draft")],
)
def test_names_are_understood_in_any_case(name, folder):
    loaded = load(name, weights="random")
    assert loaded.config.name == name.lower()
    assert loaded.folder.name == folder


@pytest.mark.parametrize("weights", ["auto", "fp16", "int8", "random"])
def test_progress_adds_up_to_the_parameters(folder, weights):
    seen = []
    loaded = load(folder, weights=weights, progress=seen.append)
    assert sum(seen) == loaded.model.parameter_count()
    assert len(seen) > 10


# -- generation defaults ---------------------------------------------------------------------------


def test_generation_is_greedy_unless_the_folder_or_an_option_asks_for_sampling(folder):
    loaded = load(folder)
    assert loaded.sampling().greedy
    assert loaded.sampling(seed=4, repetition_penalty=1.1, top_p=None).greedy
    assert loaded.sampling(top_p=0.9).temperature == 1.0
    edit(folder / "generation_config.json", do_sample=True, temperature=0.5, top_k=7, repetition_penalty=1.1)
    loaded = load(folder)
    assert (loaded.sampling().temperature, loaded.sampling().top_k) == (0.5, 7)
    assert loaded.sampling().repetition_penalty == 1.1
    assert (loaded.sampling(temperature=0.9).temperature, loaded.sampling(temperature=0.9).top_k) == (0.9, 7)
    assert loaded.sampling(temperature=0).greedy


def test_the_folders_way_to_sample_is_used(folder):
    from ridgeline.engine.sampling import Sampling

    edit(folder / "generation_config.json", do_sample=True, temperature=1.5)
    loaded = load(folder)
    [suggested] = loaded.generate([5], max_tokens=20)
    [same] = loaded.generate([5], max_tokens=20, sampling=Sampling(1.5))
    [greedy] = loaded.generate([5], max_tokens=20, sampling=loaded.sampling(temperature=0))
    assert suggested.ids == same.ids != greedy.ids


def test_the_folders_end_tokens_and_length_are_used(folder):
    [free] = load(folder).generate([5], max_tokens=20, stop_ids=())
    edit(folder / "generation_config.json", eos_token_id=[free.ids[2], 60], max_new_tokens=9)
    [stopped] = load(folder).generate([5])
    assert stopped.finish_reason == "stop"
    assert stopped.ids == free.ids[: free.ids.index(free.ids[2]) + 1]
    [longer] = load(folder).generate([5], stop_ids=())
    assert longer.ids == free.ids[:9]


def test_stream_gives_the_same_tokens_as_generate(with_tokenizer):
    loaded = load(with_tokenizer)
    results = loaded.generate(["ab", "c"], max_tokens=6)
    events = list(loaded.stream(["ab", "c"], max_tokens=6))
    for request, result in enumerate(results):
        assert tuple(event.id for event in events if event.request == request) == result.ids


# -- bad input -------------------------------------------------------------------------------------


def test_a_built_in_config_without_random_weights_is_refused():
    with pytest.raises(InputError, match=r"llama-3-8b is a built-in config, which carries no weights"):
        load("llama-3-8b")


@pytest.mark.parametrize(
    "weights", ["fp4", "int4", "int4-g128-z", "random:", "random:fp4", "auto:bf16", "", None]
)
def test_unknown_weights_are_refused_with_the_known_ones(folder, weights):
    with pytest.raises(InputError, match=r"weights is .*, expected auto, random, .* bf16, .*int4-g128"):
        load(folder, weights=weights)


def test_an_unknown_model_is_refused_with_a_suggestion():
    with pytest.raises(InputError, match="did you mean llama-3-8b"):
        load("llama-3-8bb")


def test_text_for_a_model_without_a_tokenizer_is_refused(folder):
    with pytest.raises(InputError, match="no tokenizer"):
        load(folder).generate("abc")


@pytest.mark.parametrize("package", ["torch", "tokenizers", "jinja2"])
def test_a_missing_package_is_named_with_the_way_to_install_it(folder, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"needs \w+: pip install 'ridgeline\[run\]'"):
        load(folder)


def test_importing_it_does_not_import_pytorch():
    code = (
        "import sys, ridgeline.loading, ridgeline.engine.scheduler, ridgeline.engine.beams;"
        "print([m for m in ('torch', 'tokenizers', 'numpy') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
