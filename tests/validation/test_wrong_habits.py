"""What other analysers were found to get wrong, each as a test that would catch it here.

The list is of faults in published tools' code. Those that hold of every family, device or state have their
own tests elsewhere; here each stands once, by its plainest example.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ridgeline.analysis.advice import advise
from ridgeline.analysis.denoising import trace_denoising
from ridgeline.analysis.explain import explain
from ridgeline.analysis.serving import simulate
from ridgeline.analysis.step import trace_step
from ridgeline.engine.arrivals import Arrival
from ridgeline.hardware import device_names, load_device
from ridgeline.models import builtin_names, declare, load_config
from ridgeline.models.denoising import grid_of
from ridgeline.models.registry import read_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count_pairs import Pairs
from ridgeline.predict.calibrate.calibrate import calibrate
from ridgeline.validation.profiles import profiled_points

LLAMA = declare(load_config("llama-3-8b"))


def operator(model, name, span, **options):
    (found,) = (op for op in trace_step(model, [span], **options).ops if op.name == name)
    return found


def test_causal_attention_is_half_of_the_square():
    square, visible = (
        sum(op.flops.matrix for op in trace_step(LLAMA, [Span(1000)], pairs=pairs).ops if op.kind == "attend")
        for pairs in (Pairs.SQUARE, Pairs.VISIBLE)
    )
    assert square == 4 * 1000 * 1000 * 32 * 128
    assert visible == 4 * (1000 * 1001 // 2) * 32 * 128


def test_a_product_of_the_output_head_is_two_operations():
    assert operator(LLAMA, "head", Span(7), logits="all").flops.matrix == 2 * 7 * 4096 * 128_256


def test_what_fused_attention_writes_is_as_large_as_its_queries():
    attention = operator(LLAMA, "attention", Span(1000))
    trace = trace_step(LLAMA, [Span(1000)])
    (kernel,) = attention.kernels(trace.lowering)
    written = sum(a.elements for a in kernel.writes if a.value.role == "activation")
    assert written == 1000 * 32 * 128


def test_a_head_is_as_large_as_the_config_says():
    config = load_config("qwen3-0.6b")
    assert config.head_dim == 128 != config.width // config.heads
    assert declare(config).layers[0].qkv.shape == ((16 + 2 * 8) * 128, 1024)


@pytest.mark.parametrize(("name", "matrices"), [("llama-2-7b", 3), ("opt-6.7b", 2), ("gemma-2-2b", 3)])
def test_an_mlp_has_the_matrices_of_its_family_and_not_of_a_ratio(name, matrices):
    config = load_config(name)
    weights = declare(config).layers[0]
    sizes = (w.numel for w in vars(weights).values() if getattr(w, "name", "").startswith("mlp."))
    assert (
        sum(n for n in sizes if n > 2 * config.intermediate) == matrices * config.width * config.intermediate
    )


def test_an_expert_has_three_matrices():
    config = load_config("mixtral-8x7b")
    (mixture,) = declare(config).layers[0].mixtures
    experts = mixture.experts
    assert experts.gate_up.numel + experts.down.numel == 8 * 3 * config.width * config.intermediate


def test_latent_attention_is_not_two_heads_of_keys():
    found = explain("deepseek-v3", on="h200", prompt=16, output=2)
    assert found.memory.cache_elements_per_token == 61 * 576


@pytest.mark.parametrize("name", device_names())
def test_no_matrix_rate_is_with_sparsity(name):
    """A rate with sparsity would be twice what the units' width and clock give, which the catalogue's tests
    hold each device to. Here: 8 bits are twice as fast as 16 and no more, but for rounding."""
    matrix = load_device(name).matrix
    rate = matrix.get("bf16", matrix.get("fp16"))
    if rate is not None and "fp8" in matrix:
        assert matrix["fp8"] <= 2.03 * rate


def test_a_card_of_24_gigabytes_has_24():
    assert {load_device(name).memory_bytes for name in ("rtx-3090", "rtx-4090", "a10", "l4")} == {24e9}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_an_ordinary_config_is_read(kind):
    raw = {
        "architectures": [{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral"}[kind]
                          + "ForCausalLM"],
        "model_type": kind, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 100, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_act": "silu", "torch_dtype": "bfloat16", "bos_token_id": 1,
        "eos_token_id": [2, 3], "tie_word_embeddings": False, "transformers_version": "4.46.0",
        "max_position_embeddings": 512, "use_cache": True, "initializer_range": 0.02,
    }  # fmt: skip
    assert read_config(raw, "tiny").layers == 2


def test_every_builtin_config_is_explained_with_default_arguments():
    """Of each family one, since all would take long; every config is built by other tests."""
    seen = {}
    for name in builtin_names():
        config = load_config(name)
        if not config.is_diffusion:
            seen.setdefault(config.family, name)
    assert len(seen) >= 12
    for name in seen.values():
        assert explain(name, on="h100").phases[0].seconds > 0


def test_speculation_runs_with_default_arguments():
    found = advise("llama-3.1-8b", "h100", draft="llama-3.2-1b")
    gains = [s.gain for s in found.suggestions if s.technique.startswith("speculation")]
    assert len(gains) == 2
    assert all(gain > 0 for gain in gains)


def test_softmax_norms_and_activations_are_counted_with_their_bytes():
    trace = trace_step(LLAMA, [Span(100)])
    by_class = trace.by_class()
    assert by_class["norm"].vector > 0
    assert by_class["attention"].exp > 0
    assert by_class["linear"].exp == 100 * 14_336 * 32  # silu
    assert trace.bytes > LLAMA.weight_bytes() - LLAMA.embedding.nbytes


def test_a_diffusion_block_has_its_modulation_and_no_gate_in_its_mlp():
    """adaLN-Zero: six vectors of each image from its condition; an MLP of two matrices."""
    config = load_config("dit-xl-2")
    trace = trace_denoising(declare(config), grid_of(config), 4)
    work = {op.name: op.flops.matrix for op in trace.ops}
    assert work["modulation"] == 2 * 4 * config.width * 6 * config.width
    mlp = sum(flops for name, flops in work.items() if name.startswith("mlp."))
    assert mlp == 2 * 2 * 4 * 256 * config.width * config.intermediate


def test_attention_is_not_counted_as_nothing():
    """PyTorch's counter has 0 for attention on a CPU; on the meta device it has the square, as ours can."""
    q = torch.empty(1, 32, 100, 128, device="meta")
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    square = operator(LLAMA, "attention", Span(100), pairs=Pairs.SQUARE).flops.matrix
    assert square == counter.get_total_flops() > 0


def test_what_judges_a_prediction_was_not_fitted_to():
    """A calibration is judged by every point that it was not fitted to, and by no other."""
    points = profiled_points("a40")["gemm"]
    (found,) = calibrate(load_device("a40"), {"gemm": points}, most=16).kinds
    assert found.fitted.points <= 16
    assert found.rest.points == len(points.seconds) - found.fitted.points


def test_waiting_follows_from_the_cache_that_there_is():
    """Time to first token under load is the scheduler's: a smaller cache makes requests wait."""
    arrivals = [Arrival(0.01 * i, 400, 100) for i in range(24)]
    small, large = (
        simulate("llama-3.1-8b", "h100-sxm", arrivals, kv_tokens=n).simulation.serving.ttft.mean
        for n in (2048, 65_536)
    )
    assert small > 3 * large
