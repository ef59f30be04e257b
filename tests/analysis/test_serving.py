"""``ridgeline.simulate``: the engine's own scheduler, with predicted times."""

import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

import ridgeline
from ridgeline.engine.arrivals import Arrival, Lengths, poisson
from ridgeline.errors import InputError
from ridgeline.report.simulate import show_simulation
from ridgeline.validation import serving


@pytest.mark.parametrize("tier", ["datasheet", "calibrated"])
def test_a_request_alone_takes_what_explain_says(tier):
    found = ridgeline.simulate("llama-3-8b", "h100-sxm", [Arrival(0.0, 512, 64)], tier=tier)
    expected = ridgeline.explain("llama-3-8b", "h100-sxm", prompt=512, output=64, tier=tier).request
    serving = found.simulation.serving
    assert serving.ttft.mean == pytest.approx(expected.ttft_seconds, rel=1e-6)
    assert serving.tpot.mean == pytest.approx(expected.tpot_seconds, rel=0.01)


def test_a_recorded_run_stands_beside_its_simulation():
    recorded = [Arrival(0.0, 64, 8, 0.02, 0.1), Arrival(0.1, 64, 8, 0.12, 0.2)]
    found = ridgeline.simulate("llama-3-8b", "h100-sxm", recorded)
    assert found.recorded.ttft.mean == pytest.approx(0.02)
    plain = ridgeline.simulate("llama-3-8b", "h100-sxm", [Arrival(0.0, 64, 8), Arrival(0.1, 64, 8)])
    assert plain.recorded is None
    assert plain.simulation == found.simulation
    text = StringIO()
    show_simulation(Console(file=text, width=100), found)
    assert "beside the recorded run" in text.getvalue()
    assert "TTFT, mean" in text.getvalue()


def test_the_default_cache_fills_the_memory_beside_the_weights():
    config = ridgeline.load_config("llama-3-8b")
    found = ridgeline.simulate(config, "a100-80gb", [Arrival(0.0, 16, 4)])
    weights = ridgeline.declare(config).weight_bytes()
    a_token = 2 * config.layers * config.kv_heads * config.head_dim * 2
    most = (0.9 * 80e9 - weights) / a_token
    assert 0.97 * most < found.limits.kv_tokens < most


def test_smaller_weights_leave_more_room_and_serve_faster():
    arrivals = poisson(50.0, 60, Lengths(32, 128), Lengths(16, 64))
    plain = ridgeline.simulate("llama-3-8b", "rtx-4090", arrivals)
    small = ridgeline.simulate("llama-3-8b", "rtx-4090", arrivals, weights="int4-g128")
    assert small.limits.kv_tokens > plain.limits.kv_tokens
    fast, slow = (f.simulation.serving.output_tokens_per_second for f in (small, plain))
    assert fast > 1.2 * slow


def test_more_load_means_longer_waits():
    found = [
        ridgeline.simulate("llama-3-8b", "rtx-4090", poisson(rate, 150, Lengths(200, 200), Lengths(50, 50)))
        for rate in (1.0, 100.0)
    ]
    easy, heavy = (f.simulation.serving for f in found)
    assert heavy.ttft.p90 > 5 * easy.ttft.p90
    assert heavy.output_tokens_per_second > 5 * easy.output_tokens_per_second


@pytest.fixture(scope="module")
def vllm():
    """300 requests that vLLM served on an RTX 4090 (see ridgeline/validation/serving.py)."""
    return serving.real()


def test_a_real_run_of_vllm_took_as_long_as_its_simulation(vllm):
    """With the card's constants fitted to 64 kernel times, and nothing to the run."""
    found = serving.simulated()
    ours = found.simulation.serving
    assert found.tier == "calibrated"
    assert (ours.prompt_tokens, ours.output_tokens) == (vllm.prompt_tokens, vllm.output_tokens)
    assert ours.seconds == pytest.approx(vllm.seconds, rel=0.1)
    assert ours.output_tokens_per_second == pytest.approx(vllm.output_tokens_per_second, rel=0.1)
    assert ours.tpot.mean == pytest.approx(vllm.tpot.mean, rel=0.1)
    assert ours.ttft.mean == pytest.approx(vllm.ttft.mean, rel=0.1)


@pytest.mark.slow
def test_a_real_run_of_vllm_took_longer_than_its_datasheet_says(vllm):
    """The roofline is what the hardware could do at best, so the real run must come after it."""
    found = serving.simulated(tier="datasheet").simulation.serving
    assert 0.8 < found.seconds / vllm.seconds < 1
    assert 0.8 < found.tpot.mean / vllm.tpot.mean < 1


@pytest.mark.parametrize(
    ("model", "device", "arrivals", "options", "message"),
    [
        ("bert-base", "a40", [Arrival(0, 1, 1)], {}, "is an encoder"),
        ("llama-3-8b", "a40", [], {}, "no request to simulate"),
        ("llama-3-8b", "a40", [Arrival(0, 8000, 193)], {}, r"request 1 has 8000 \+ 193 tokens"),
        ("llama-3-70b", "a40", [Arrival(0, 1, 1)], {}, "leaves no room for a cache on a40"),
        ("llama-3-8b", "a40", [Arrival(0, 100, 1)], {"kv_tokens": 64}, "takes 4 cache blocks of 32 tokens"),
        ("llama-3-8b", "a40", [Arrival(0, 1, 1)], {"sequences": 0}, "sequences is 0, expected"),
        ("llama-3-8b", "a40", [Arrival(0, 1, 1)], {"batched_tokens": 0}, "batched_tokens is 0, expected"),
        ("llama-3-8b", "a40", [Arrival(0, 1, 1)], {"block_size": 0}, "block_size is 0, expected"),
        ("llama-3-8b", "a40", [Arrival(0, 1, 1)], {"kv_tokens": 0}, "kv_tokens is 0, expected"),
        ("llama-3-8b", "a40", [Arrival(0, 1, 1)], {"headroom": -1}, "headroom is -1, expected"),
        ("llama-3-8b", "a40", [Arrival(0, 1, 1)], {"kv_tokens": 10**30}, "at most 16777216 can be simulated"),
        ("llama-3-8b", "a40", [Arrival(0, 1, 1)], {"kv_tokens": 2**30}, "so lower it, or raise the block"),
        ("llama-3-8b", "nothing", [Arrival(0, 1, 1)], {}, "nothing"),
    ],
)
def test_bad_input_is_refused_in_one_line(model, device, arrivals, options, message):
    with pytest.raises(InputError, match=message) as caught:
        ridgeline.simulate(model, device, arrivals, **options)
    assert "\n" not in str(caught.value)


def test_it_imports_no_pytorch():
    code = (
        "import sys, ridgeline; from ridgeline.engine.arrivals import Arrival;"
        "ridgeline.simulate('llama-3-8b', 'a40', [Arrival(0.0, 9, 2)]); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
