"""The gpu reading (interpreted where there is no GPU) computes what the reference does."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests import gpu as shared  # isort: skip  (it skips the module where there is no Triton)

from ridgeline.engine.engine import Engine
from ridgeline.engine.sampling import Sampling
from ridgeline.errors import InputError
from ridgeline.loading import load
from ridgeline.ops import gpu_batch
from ridgeline.ops.batch import CacheSpec, Span
from ridgeline.ops.formats import get_format
from ridgeline.ops.gpu import Gpu, to_gpu
from ridgeline.ops.gpu_graph import DecodeStep
from ridgeline.ops.records import Norm
from ridgeline.ops.reference import Reference
from tests.ops.packed_models import packed_model, some_ids

device, patched_once_a_launch = shared.device, shared.patched_once_a_launch
REFERENCE = Reference()
#: One of each way through the pass: rotated and grouped, a norm a head, a window, capped scores, some of a
#: head rotated, learned positions, an encoder, experts, latents.
FAMILIES = (
    *("llama-3-8b", "qwen3-0.6b", "mistral-7b", "gemma-2-2b", "pythia-1.4b"),
    *("gpt2", "bert-base", "mixtral-8x7b", "deepseek-v2-lite"),
)
full = pytest.mark.slow


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def relative_error(actual, expected):
    return ((actual.cpu().double() - expected.double()).norm() / expected.double().norm()).item()


def on_gpu(family, format, device, dtype=torch.float32):
    """The small model on the reading under test and, with the same weights, as the reference runs it."""
    model = packed_model(family, format)
    moved = to_gpu(packed_model(family, format), device)
    return model, moved, Gpu(dtype, device, quantised=get_format(format).is_quantised)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_float32_models_logits_are_the_references(device, family):
    model, moved, ops = on_gpu(family, "fp32", device)
    ids, spans = some_ids(18).tolist(), [Span(11), Span(7)]
    want = REFERENCE.run(model, ids, spans, logits="all")
    assert relative_error(ops.run(moved, ids, spans, logits="all"), want) < 1e-5


@pytest.mark.parametrize("format", ["int8", "int4-g32-zp", "fp8", "fp8-128x128"])
def test_a_quantised_models_logits_are_those_of_its_unpacked_weights(device, format):
    model, moved, ops = on_gpu("llama-3-8b", format, device)
    ids = some_ids(9).tolist()
    want = REFERENCE.run(model, ids, [Span(9)], logits="all")
    assert relative_error(ops.run(moved, ids, [Span(9)], logits="all"), want) < 1e-5


@full
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", ["int8", "int4-g32", "int4-g64-zp", "int4-g128"])
def test_every_family_in_every_format(device, family, format):
    model, moved, ops = on_gpu(family, format, device)
    ids = some_ids(20).tolist()
    want = REFERENCE.run(model, ids, [Span(20)], logits="all")
    assert relative_error(ops.run(moved, ids, [Span(20)], logits="all"), want) < 1e-5


@pytest.mark.parametrize("family", ["llama-3-8b", "gemma-2-2b", "pythia-1.4b", "gpt2", "deepseek-v2-lite"])
def test_steps_over_a_cache_are_a_whole_prompt(device, family):
    """In chunks, beside another sequence, in blocks that lie anywhere."""
    model, moved, ops = on_gpu(family, "fp32", device)
    ids = some_ids(20).tolist()
    cache = ops.alloc_cache(moved.cache_spec("fp32", block_size=4), 8)
    rows = []
    for start, stop in ((0, 9), (9, 13), (13, 14), (14, 20)):
        spans = [Span(stop - start, past=start, table=(5, 0, 3, 7, 1)), Span(1, table=(2,))]
        rows.append(ops.run(moved, [*ids[start:stop], 3], spans, logits="all", cache=cache)[:-1])
    want = REFERENCE.run(model, ids, [Span(20)], logits="all")
    assert relative_error(torch.cat(rows), want) < 1e-5


def test_an_encoder_decoder_reads_what_it_encoded(device, make_twin):
    """Scores with a bias by distance, stored keys, and a decoder's own cache."""
    fields = {"vocab_size": 101, "d_model": 32, "d_kv": 10, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    fields |= {"initializer_factor": 0.1, "relative_attention_num_buckets": 16}
    fields |= {"relative_attention_max_distance": 30, "pad_token_id": 0, "decoder_start_token_id": 0}
    folder = make_twin("T5ForConditionalGeneration", **fields).folder
    source, target, logits = some_ids(37).tolist(), some_ids(5, seed=1).tolist(), []
    for loaded in (load(folder, device="cuda"), load(folder)):
        model, ops, table = loaded.model, loaded.ops, (1, 0)
        cache = ops.alloc_cache(model.cache_spec("fp32"), 2)
        stored = ops.alloc_cache(model.memory_spec("fp32"), 2)
        memory = ops.encode(model, source, [Span(37, table=table)], stored)
        steps = []
        for past, rows in ((0, 3), (3, 1), (4, 1)):
            spans, ids = [Span(rows, past, table=table)], target[past : past + rows]
            steps.append(ops.run(model, ids, spans, logits="all", cache=cache, memory=memory).cpu())
        logits.append(torch.cat(steps))
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_models_err_by_their_rounding(device, dtype):
    """As much as PyTorch does in that dtype, within a half."""
    exact = packed_model("llama-3-8b", "fp32")
    ids, ops = some_ids(12).tolist(), Gpu(dtype, device)
    moved = to_gpu(packed_model("llama-3-8b", "fp32"), device)
    for weight in moved.weights():
        weight.data = (weight.data.unpack() if hasattr(weight.data, "unpack") else weight.data).to(dtype)
    want = REFERENCE.run(exact, ids, [Span(12)], logits="all")
    error = relative_error(ops.run(moved, ids, [Span(12)], logits="all"), want)
    theirs = relative_error(Reference(dtype).run(exact, ids, [Span(12)], logits="all"), want)
    assert error < 1.5 * theirs


@pytest.mark.parametrize("family", ["llama-3-8b", pytest.param("pythia-1.4b", marks=full), "gpt2"])
def test_a_decode_step_on_fixed_tensors_is_the_step(device, family):
    """What a CUDA graph replays: fixed tensors of the bucket's size, with rows of padding."""
    _, moved, ops = on_gpu(family, "fp32", device)
    caches = [ops.alloc_cache(moved.cache_spec("fp32", block_size=4), 8) for _ in "ab"]
    for cache in caches:
        cache._data.fill_(torch.nan)
        spans = [Span(5, table=(2, 6)), Span(2, table=(1, 0)), Span(1, table=(4,))]
        ops.run(moved, some_ids(8).tolist(), spans, cache=cache)
    step = DecodeStep(ops, moved, caches[0], 4, 3)
    for past in ((5, 2, 1), (6, 3, 2)):
        spans = [Span(1, p, table=t) for p, t in zip(past, ((2, 6), (1, 0), (4,)))]
        want = ops.run(moved, [7, 8, 9], spans, logits="all", cache=caches[1])
        torch.testing.assert_close(step.run([7, 8, 9], spans), want, rtol=1e-5, atol=1e-5)
    both = [cache._data for cache in caches]
    torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5, equal_nan=True)  # nothing else was written to


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_recorded_steps_give_the_bits_of_the_fixed_tensors(device):
    _, moved, ops = on_gpu("llama-3-8b", "fp32", device)
    cache = ops.alloc_cache(moved.cache_spec("fp32", block_size=4), 8)
    ops.prepare(moved, cache, 4)
    ops.run(moved, some_ids(5).tolist(), [Span(5, table=(2, 6))], cache=cache)
    spans = [Span(1, 5, table=(2, 6))]
    graphed = ops.run(moved, [7], spans, cache=cache)
    eager = DecodeStep(ops, moved, cache, 1, 8)
    torch.testing.assert_close(graphed, eager.run([7], spans), rtol=1e-6, atol=1e-6)


def test_the_profile_is_that_of_the_other_readings(device):
    model, moved, ops = on_gpu("llama-3-8b", "fp32", device)
    ids, spans = some_ids(5).tolist(), [Span(5)]
    ours, theirs = ops.profile(moved, ids, spans), REFERENCE.profile(model, ids, spans)
    assert [(x.name, len(x.seconds)) for x in ours] == [(x.name, len(x.seconds)) for x in theirs]


def test_a_cache_copies_blocks(device):
    cache = Gpu(torch.float32, device).alloc_cache(CacheSpec(2, 1, 8, "fp32", block_size=4), 3)
    cache.randomise()
    cache.copy_blocks([(0, 2)])
    for layer in range(2):
        assert torch.equal(cache.layer(layer).keys[2], cache.layer(layer).keys[0])
        assert torch.equal(cache.layer(layer).values[2], cache.layer(layer).values[0])


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_a_cache_of_bytes_is_copied_with_its_scales_and_planned_with_them(device, format):
    spec = CacheSpec(2, 3, 8, format, block_size=4)
    cache = Gpu(torch.float32, device).alloc_cache(spec, 3)
    cache.randomise()
    for layer in range(2):  # noise of variance 1
        assert 0.5 < cache.layer(layer).read(torch.arange(3, device=device), 12)[0].std() < 2
    cache._scales[..., 0, :, :].uniform_()
    cache.copy_blocks([(0, 2)])
    for layer in range(2):
        for x in vars(cache.layer(layer)).values():
            assert torch.equal(x[2], x[0])
    assert sum(cache.layer(i).nbytes for i in range(2)) == 3 * 4 * spec.bytes_per_token


@pytest.mark.parametrize(("format", "tolerance"), [("int8", 0.03), ("fp8", 0.15)])
def test_steps_over_a_cache_of_bytes_err_by_its_rounding(device, format, tolerance):
    """In chunks, then as a decode step on fixed tensors, which a graph replays."""
    model, moved, ops = on_gpu("llama-3-8b", "fp32", device)
    ids = some_ids(12).tolist()
    cache = ops.alloc_cache(moved.cache_spec(format, block_size=4), 4)
    cache._data.fill_(127), cache._scales.fill_(torch.nan)
    rows = [
        ops.run(moved, ids[a:b], [Span(b - a, past=a, table=(3, 0, 2))], logits="all", cache=cache)
        for a, b in ((0, 7), (7, 11))
    ]
    step = DecodeStep(ops, moved, cache, 2, 3)
    rows.append(step.run(ids[11:], [Span(1, 11, table=(3, 0, 2))]))
    want = REFERENCE.run(model, ids, [Span(12)], logits="all")
    assert relative_error(torch.cat(rows), want) < tolerance


def test_memory_that_is_too_small_is_said_with_its_size(device, monkeypatch):
    model = packed_model("gpt2", "int8")
    monkeypatch.setattr("ridgeline.ops.gpu.free_bytes", lambda device: 1000)
    with pytest.raises(InputError, match=r"0\.0 GB free: choose a smaller format"):
        to_gpu(model, device)

    def exhausted(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu_batch.torch, "empty", exhausted)
    with pytest.raises(InputError, match="lower cache_tokens"):
        Gpu(torch.float32, device).alloc_cache(CacheSpec(2, 1, 8, "fp32"), 3)


@pytest.mark.parametrize("format", ["int4-g32", "fp64"])
def test_a_cache_in_a_format_that_kernels_do_not_read_is_refused(device, format):
    with pytest.raises(InputError, match="can't be kept as"):
        Gpu(torch.float32, device).alloc_cache(CacheSpec(1, 1, 8, format), 3)


def test_experts_in_fp8_are_refused_with_their_name():
    with pytest.raises(InputError, match=r"experts.*don't run in fp8: choose int8"):
        packed_model("mixtral-8x7b", "fp8")


def test_a_folder_is_loaded_in_fp8_and_invariant(device, make_twin):
    """Weights are packed from the files; a reading is named after what it runs as one kernel."""
    fields = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    fields |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    folder = make_twin("LlamaForCausalLM", **fields).folder
    logits = []
    for weights, invariant in (("fp8", False), ("fp8", True), ("auto", True)):
        loaded = load(folder, weights=weights, device="cuda", invariant=invariant)
        assert loaded.ops.lowering.name == ("gpu, invariant" if invariant else "gpu, quantised")
        assert loaded.config.format == ("fp32" if weights == "auto" else "fp8")
        logits.append(loaded.ops.run(loaded.model, [1, 2, 3], [Span(3)], logits="all"))
    held = {weight.format for weight in load(folder, weights="fp8", device="cuda").model.weights()}
    assert held == {"fp8", "fp32"}
    assert relative_error(logits[0], logits[1].cpu()) < 1e-5
    assert 0 < relative_error(logits[1], logits[2].cpu()) < 0.1  # the format's own error


def test_a_norm_without_a_weight_is_a_rows_own(device):
    x, norm = torch.randn(5, 48, device=device), Norm("layer", None, 1e-5)
    want = torch.nn.functional.layer_norm(x, (48,), eps=1e-5)
    torch.testing.assert_close(Gpu(torch.float32, device).norm(x, norm), want, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused_in_a_line(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(InputError, match="PyTorch sees no CUDA device"):
        load("demo", device="cuda")
    with pytest.raises(InputError, match="device is 'tpu'"):
        load("demo", device="tpu")
    said = subprocess.run(
        [sys.executable, "-m", "ridgeline.cli", "generate", "demo", "import", "--device", "cuda"],
        capture_output=True,
        text=True,
    )
    line = "ridgeline: PyTorch sees no CUDA device here: take device cpu, or a machine that has one\n"
    assert (said.returncode, said.stderr) == (2, line)


def test_calls_with_tensors_on_a_gpu_are_handed_over(device, monkeypatch):
    from ridgeline import kernels
    from ridgeline.kernels import triton

    class OnGpu(torch.Tensor):
        is_cuda = True

    x = torch.ones(2, 8).as_subclass(OnGpu)
    for name in ("attention", "rms_norm", "linear", "sample", "attend", "merge_states", "embed"):
        monkeypatch.setattr(triton, name, lambda *args, name=name, **options: (name, options))
        assert getattr(kernels, name)(x, scale=3) == (name, {"scale": 3})


def test_an_engine_generates_the_references_tokens(device, make_twin):
    """Interpreted: `device="cuda"` is where Triton's kernels run."""
    fields = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    folder = make_twin("LlamaForCausalLM", **fields).folder
    prompts, options = [[1, 2, 3], [9, 8, 7, 6]], {"max_tokens": 3, "stop_ids": ()}
    options["sampling"] = Sampling(temperature=0.8, seed=3)
    texts = []
    for loaded in (load(folder, device="cuda"), load(folder)):
        with Engine(replace(loaded), block_size=32, cache_tokens=256) as engine:
            texts.append([result.ids for result in engine.generate(prompts, **options)])
    assert texts[0] == texts[1]


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_an_engine_keeps_its_cache_in_the_format_that_is_asked_for(device, make_twin, format):
    """A prompt that is asked for again is read out of the cache, scales and all."""
    fields = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    fields |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    loaded = load(make_twin("LlamaForCausalLM", **fields).folder, device="cuda")
    options = {"max_tokens": 2, "stop_ids": (), "sampling": Sampling(temperature=0.0)}
    with Engine(loaded, block_size=4, cache_tokens=64, cache_format=format) as engine:
        first, again = (engine.generate([[1, 2, 3, 4, 5, 6]], **options)[0] for _ in "ab")
    assert first.ids == again.ids
    if format == "int8":  # the CPU's cache, rounded alike
        on_cpu = load(make_twin("LlamaForCausalLM", **fields).folder)
        assert (
            on_cpu.generator(cache_format=format).generate([[1, 2, 3, 4, 5, 6]], **options)[0].ids
            == first.ids
        )
    else:
        on_cpu = load(make_twin("LlamaForCausalLM", **fields).folder)
        with pytest.raises(
            InputError, match="on the CPU can't be kept as fp8: choose one of fp32, bf16, int8"
        ):
            on_cpu.generator(cache_format=format).generate([[1, 2, 3]], **options)
