"""explain: phases, requests, memory, and refusals."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.analysis.explain import explain
from ridgeline.analysis.generation import SAMPLES, mean_of_steps
from ridgeline.analysis.step import predict_step, trace_encode, trace_step
from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.kernel import Role


def test_a_decoder_has_a_prefill_and_a_decode_phase():
    found = explain("llama-3-8b", "h100", prompt=100, output=10, batch=3)
    prefill, decode = found.phases
    assert (prefill.tokens, prefill.context) == (300, 100)
    assert (decode.tokens, decode.context) == (3, 101)
    assert found.request.ttft_seconds == prefill.seconds


def test_a_request_sums_its_steps():
    found = explain("gpt2", "a100", prompt=100, output=9)
    model, device = declare(load_config("gpt2")), load_device("a100")
    steps = [predict_step(model, device, [Span(1, 100 + i)]).seconds for i in range(8)]
    assert found.request.total_seconds == pytest.approx(found.request.ttft_seconds + sum(steps))
    assert found.request.tpot_seconds == pytest.approx(sum(steps) / 8)


@given(start=st.integers(0, 500), steps=st.integers(1, 600), slope=st.floats(0, 3), offset=st.floats(0, 9))
def test_sampling_a_linear_step_time_loses_nothing(start, steps, slope, offset):
    exact = sum(slope * n + offset for n in range(start, start + steps))
    found = mean_of_steps(lambda n: slope * n + offset, start, steps)
    assert found * steps == pytest.approx(exact)


def test_a_long_generation_is_predicted_at_few_contexts():
    asked = []
    mean_of_steps(lambda n: asked.append(n) or 1.0, 10, 4990)
    assert len(asked) <= SAMPLES
    assert (min(asked), max(asked)) == (10, 4999)


def test_an_encoder_has_one_phase_and_no_cache():
    found = explain("bert-base", "a100", prompt=128)
    assert [p.name for p in found.phases] == ["encode"]
    assert found.request is None
    assert found.memory.cache_bytes_per_token == 0
    assert found.memory.fits


def test_an_encoder_decoder_encodes_once_and_decodes_beside_what_it_keeps():
    found = explain("t5-large", "a100", prompt=512, output=64, batch=2)
    encode, decode = found.phases
    assert (encode.name, encode.tokens, encode.context) == ("encode", 1024, 512)
    assert (decode.name, decode.tokens, decode.context) == ("decode", 2, 2)
    model, device = declare(load_config("t5-large")), load_device("a100")
    source = [Span(512, 0, 2)]
    steps = [predict_step(model, device, [Span(1, i, 2)], encoded=source).seconds for i in range(64)]
    assert found.request.ttft_seconds == pytest.approx(encode.seconds + steps[0])
    assert found.request.tpot_seconds == pytest.approx(sum(steps[1:]) / 63, rel=1e-3)
    # 24 layers, keys and values of 16 heads of 64, in float32, of 512 source and 64 own tokens.
    assert found.memory.cache == 2 * (512 + 64) * 24 * 2 * 16 * 64 * 4


def test_each_step_of_an_encoder_decoder_reads_all_of_the_source_and_stores_none_of_it():
    model = declare(load_config("t5-small"))

    def cross(trace):
        return next(op for op in trace.ops if op.name == "cross.attention")

    trace = trace_step(model, [Span(1, 9)], encoded=[Span(100)])
    layer = 2 * 8 * 64 * 4  # keys and values of a token, in float32
    cached = [a for p in cross(trace).parts for a in p.reads if a.value.role is Role.CACHE]
    assert sum(a.bytes for a in cached) == 128 * layer  # in whole blocks of 32
    assert not any(a.value.role is Role.CACHE for p in cross(trace).parts for a in p.writes)
    assert "cross.kv" not in {op.name for op in trace.ops}
    encoding = trace_encode(model, [Span(100)])
    (projection,) = (op for op in encoding.ops if op.name == "cross.kv")
    assert projection.repeat == 6
    assert projection.flops.matrix == 2 * 100 * 512 * 2 * 512
    written = [a for op in encoding.ops for p in op.parts for a in p.writes if a.value.role is Role.CACHE]
    assert sum(a.bytes for a in written) == 100 * layer


def test_what_windows_leave_unseen_is_told_beside_what_the_engine_keeps():
    """Gemma 3 1B: 4 of 26 layers see all, the others 512 tokens, read in whole blocks of 32."""
    memory = explain("gemma-3-1b", "h100", prompt=8000, output=192, batch=2).memory
    token = 2 * 256 * 2  # keys and values of a layer's one head, in bf16
    assert memory.cache == 2 * 8192 * 26 * token
    assert memory.cache_in_windows == 2 * token * (4 * 8192 + 22 * 512)
    assert explain("gemma-3-1b", "h100", prompt=300, output=100).memory.cache_in_windows is None
    assert explain("llama-3-8b", "h100", prompt=8000, output=100).memory.cache_in_windows is None


def test_layers_with_and_without_a_window_take_different_time():
    (prefill,) = explain("gemma-2-9b", "h100", prompt=8000, output=0).phases
    calls = {k.seconds: k.repeat for k in prefill.kernels if k.name == "attention"}
    assert list(calls.values()) == [21, 21]


def test_llama_2_7b_needs_512_kib_of_cache_a_token():
    memory = explain("llama-2-7b", "a100-40gb", prompt=512, output=0).memory
    assert memory.cache_bytes_per_token == 512 * 1024
    assert memory.cache_elements_per_token == 256 * 1024
    free = memory.device - memory.weights - memory.activations
    assert memory.tokens_that_fit == int(free // (512 * 1024))


def test_quantised_weights_are_smaller_and_decode_faster():
    plain = explain("llama-2-7b", "rtx-4090", tier="datasheet")
    packed = explain("llama-2-7b", "rtx-4090", weights="int4-g128", tier="datasheet")
    assert packed.memory.weights < 0.3 * plain.memory.weights
    assert packed.phases[1].seconds < 0.4 * plain.phases[1].seconds
    assert packed.parameters == plain.parameters


def test_naive_attention_moves_more_bytes_than_fused():
    fused, naive = (explain("llama-2-7b", "a100", prompt=2048, attention=a) for a in ("fused", "naive"))
    assert naive.phases[0].bytes > 2 * fused.phases[0].bytes
    assert naive.phases[0].flops == fused.phases[0].flops


def test_the_full_square_counts_about_twice_the_pairs():
    visible, square = (explain("llama-2-7b", "a100", prompt=1024, pairs=p) for p in ("visible", "square"))
    pairs = [
        sum(k.flops.matrix for k in e.phases[0].kernels if k.op == "attention") for e in (visible, square)
    ]
    assert pairs[1] / pairs[0] == pytest.approx(2 * 1024 / 1025)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"model": "llama-9-7b"}, "llama-9-7b"),
        ({"on": "a1000"}, "a1000"),
        ({"prompt": 0}, "prompt"),
        ({"batch": -1}, "batch"),
        ({"output": -5}, "output"),
        ({"prompt": 4000, "output": 200}, "4096"),
        ({"weights": "int3"}, "int3"),
        ({"cache": "bf17"}, "bf17"),
        ({"attention": "flashy"}, "flashy"),
        ({"pairs": "all"}, "all"),
        ({"prompt": 10.5}, "10.5"),
        ({"prompt": float("nan")}, "nan"),
        ({"batch": 10**400}, "batch"),
        ({"cache": ""}, "storage format ''"),
        ({"weights": "int64"}, "int64"),
        ({"model": "bert-base", "output": 5}, "encoder"),
        ({"model": "bert-base", "cache": "int8"}, "encoder"),
    ],
)
def test_bad_input_is_named_in_one_line(options, names):
    with pytest.raises(InputError) as caught:
        explain(**{"model": "llama-2-7b", "on": "a100", **options})
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


@given(prompt=st.integers(-5, 5000), output=st.integers(-5, 5000), batch=st.integers(-5, 100))
def test_any_workload_is_explained_or_refused(prompt, output, batch):
    valid = prompt >= 1 and output >= 0 and batch >= 1 and prompt + output <= 1024
    if not valid:
        with pytest.raises(InputError):
            explain("gpt2", "a100", prompt=prompt, output=output, batch=batch)
        return
    found = explain("gpt2", "a100", prompt=prompt, output=output, batch=batch)
    assert all(p.seconds > 0 for p in found.phases)


def test_a_single_token_has_no_time_per_further_token():
    found = explain("gpt2", "a100", output=1)
    assert found.request.tpot_seconds is None
    assert found.request.total_seconds == found.request.ttft_seconds


def test_what_does_not_fit_or_is_not_known_is_said():
    assert any("does not fit" in a for a in explain("llama-3-405b", "h100").assumptions)
    assert not any("does not fit" in a for a in explain("gpt2", "h100").assumptions)
    assert any("expanded" in a for a in explain("llama-2-7b", "h100", weights="int8").assumptions)
    assert any("launch" in a for a in explain("gpt2", "h100", tier="datasheet").assumptions)
    assert any("without a gap" in a for a in explain("gpt2", "h100").assumptions)
    assert any("other devices" in a for a in explain("gpt2", "h200").assumptions)


def test_fp8_weights_leave_activations_and_cache_alone():
    found = explain("llama-3-8b", "h100", weights="fp8")
    assert (found.activation_format, found.cache_format) == ("bf16", "bf16")


def test_no_cost_formula_stands_outside_the_operators():
    """CONTRIBUTING's rule: explain and predict read costs, they never make them."""
    package = Path(explain.__code__.co_filename).parents[1]
    for part in ("analysis", "predict", "report", "engine", "validation"):
        for file in (package / part).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Flops":
                    assert not node.args, f"{file}:{node.lineno}"
                    assert not node.keywords, f"{file}:{node.lineno}"
