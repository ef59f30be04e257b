"""One quantity is one number, whichever analysis says it; and no time is below a datasheet's."""

from __future__ import annotations

from functools import cache

import pytest

from ridgeline.analysis.advice import Plan, Workbench
from ridgeline.analysis.capacity import capacity
from ridgeline.analysis.compare import compare
from ridgeline.analysis.explain import explain
from ridgeline.analysis.parallel import best_layouts, parallel
from ridgeline.analysis.serving import simulate
from ridgeline.analysis.sweep import sweep
from ridgeline.engine.arrivals import Arrival
from ridgeline.hardware import load_device
from ridgeline.models import load_config
from ridgeline.predict.layout import Layout

MODELS = (
    "llama-3.2-1b",
    "gemma-3-4b",
    "mixtral-8x7b",
    "qwen3-30b-a3b",
    "deepseek-v2-lite",
    "gpt2",
    "falcon-7b",
    "t5-base",
    "flan-t5-xxl",
    "bert-base",
)
DEVICES = (
    "h100-sxm",
    "a100-80gb",
    "mi300x",
    "tpu-v5e",
    "apple-m4-max",
    "epyc-9654",
    "rtx-4090",
    "phone-ufs-4.0",
)
PROMPT, OUTPUT, BATCH = 96, 40, 4


@cache
def explained(model, device):
    output = OUTPUT if load_config(model).is_decoder else None
    return explain(model, device, prompt=PROMPT, output=output, batch=BATCH)


def figures(model, device):
    """TTFT, TPOT, total seconds, tokens a second, and bytes, as explain has them."""
    found = explained(model, device)
    if found.request is None:
        (phase,) = found.phases
        return (phase.seconds, None, phase.seconds, phase.tokens_per_second, found.memory.total)
    r = found.request
    return (
        r.ttft_seconds,
        r.tpot_seconds,
        r.total_seconds,
        r.output_tokens_per_second,
        found.memory.total,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
def test_explain_compare_advise_and_parallel_say_the_same(model, device):
    expected = figures(model, device)
    config = load_config(model)
    output = OUTPUT if config.is_decoder else 0
    (point,) = compare([model], [device], prompts=[PROMPT], outputs=[output], batches=[BATCH]).points
    assert (
        point.ttft_seconds,
        point.tpot_seconds,
        point.total_seconds,
        point.tokens_per_second,
        point.memory_bytes,
    ) == pytest.approx(expected)
    assert point.fits == explained(model, device).memory.fits
    if point.fits:  # what does not fit, advice streams from storage
        now = Workbench(config, load_device(device), PROMPT, output).outcome(Plan(batch=BATCH))
        assert (
            now.ttft_seconds,
            now.tpot_seconds,
            now.total_seconds,
            now.tokens_per_second,
            now.memory_bytes,
        ) == pytest.approx(expected)
    if config.is_decoder:
        one = parallel(model, device, Layout(), prompt=PROMPT, output=OUTPUT, batch=BATCH).figures
        assert (
            one.ttft_seconds,
            one.tpot_seconds,
            one.total_seconds,
            one.tokens_per_second,
            one.memory,
        ) == pytest.approx(expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
def test_no_tier_is_faster_than_the_datasheets_work(model, device):
    """A launch is no bound: kernels that follow each other in a graph take less than one from outside."""
    launch = load_device(device).launch_seconds
    for phase in explained(model, device).phases:
        launches = sum(kernel.repeat for kernel in phase.kernels) * launch
        least = phase.seconds_by_tier["datasheet"] - launches
        assert least > 0
        for tier, seconds in phase.seconds_by_tier.items():
            assert seconds >= least * (1 - 1e-9), tier


@pytest.mark.parametrize("model", ["llama-3.2-1b", "deepseek-v2-lite", "gemma-3-4b"])
@pytest.mark.parametrize("device", ["h100-sxm", "epyc-9654"])
def test_a_simulated_request_alone_takes_what_explain_says(model, device):
    """But for the lengths, which a simulation takes to five binary digits."""
    request = explain(model, device, prompt=64, output=OUTPUT).request
    done = simulate(model, device, [Arrival(0.0, 64, OUTPUT)]).simulation
    assert done.serving.ttft.mean == pytest.approx(request.ttft_seconds, rel=0.02)
    assert done.serving.tpot.mean == pytest.approx(request.tpot_seconds, rel=0.02)
    assert done.serving.end_to_end.mean == pytest.approx(request.total_seconds, rel=0.02)


@pytest.mark.parametrize("model", ["llama-3.2-1b", "t5-base", "bert-base"])
@pytest.mark.parametrize("device", ["h100-sxm", "phone-ufs-4.0"])
def test_the_reports_sliders_begin_at_what_explain_says(model, device):
    config = load_config(model)
    output = 2 if config.is_decoder else None
    found = explain(model, device, prompt=128, output=output, batch=4)
    swept = sweep(config, load_device(device), [None])
    batch, context = swept.batches.index(4), swept.contexts.index(128)
    phases = swept.formats[0].phases
    assert list(phases) == [phase.name for phase in found.phases]
    for phase in found.phases:
        assert phases[phase.name].seconds[batch][context] == pytest.approx(phase.seconds, rel=1e-3)


@pytest.mark.parametrize("model", ["llama-3.2-1b", "t5-base"])
def test_capacity_and_explain_agree_on_what_a_token_takes(model):
    found = explain(model, "rtx-4060", prompt=2048, output=2)
    (held,) = capacity(model, "rtx-4060", weights=[None], caches=[None]).holdings
    assert held.cache_bytes_per_token == found.memory.cache_bytes_per_token
    assert held.weight_bytes == found.memory.weights
    assert held.tokens == found.memory.tokens_that_fit


def test_a_search_finds_what_its_layout_is_said_to_take():
    (found,) = best_layouts("llama-3.1-8b", "h100-sxm", [4], prompt=PROMPT, output=OUTPUT)
    first = found.search.candidates[0]
    again = parallel("llama-3.1-8b", "h100-sxm", first.layout, devices=4, prompt=PROMPT, output=OUTPUT)
    assert again.figures.tpot_seconds == pytest.approx(first.tpot_seconds)
    assert again.figures.ttft_seconds == pytest.approx(first.ttft_seconds)
