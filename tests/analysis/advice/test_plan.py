"""What a plan takes: against `explain`, against arithmetic by hand, and against what a technique must do."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest

from ridgeline.analysis.advice.plan import Plan, Speculation, Workbench, narrowed
from ridgeline.analysis.explain import explain
from ridgeline.analysis.setting import settle
from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.models import declare, load_config

LLAMA = load_config("llama-3-8b")


def bench(device="h100", prompt=512, output=128, config=LLAMA) -> Workbench:
    return Workbench(config, load_device(device), prompt, output)


@pytest.mark.parametrize("weights", [None, "int4-g128"])
def test_a_plain_plan_is_what_explain_says(weights):
    found = bench().outcome(Plan(batch=4, weights=weights))
    explained = explain("llama-3-8b", on="h100", prompt=512, output=128, batch=4, weights=weights)
    request = explained.request
    assert found.ttft_seconds == pytest.approx(request.ttft_seconds)
    assert found.total_seconds == pytest.approx(request.total_seconds, rel=1e-3)
    assert found.tokens_per_second == pytest.approx(request.output_tokens_per_second, rel=1e-3)
    assert found.memory_bytes == explained.memory.total
    assert (found.fits, found.bound) == (True, "memory")


def test_without_a_cache_every_token_costs_a_prefill():
    work = bench(prompt=1000, output=1001)
    found = work.outcome(Plan(keeps_cache=False))
    prefills = settle(LLAMA, "h100").first(numpy.arange(1001, 2001)).seconds
    assert found.tpot_seconds == pytest.approx(prefills.mean(), rel=0.02)
    assert found.bound == "matrix"
    assert work.outcome(Plan()).bound == "memory"


def test_a_perfect_free_proposer_divides_the_passes():
    work = bench(output=129)
    plain = work.outcome(Plan()).tpot_seconds
    found = work.outcome(Plan(speculation=Speculation(1.0, 3))).tpot_seconds
    assert found == pytest.approx(plain / 4, rel=0.02)  # four rows take hardly longer than one
    useless = work.outcome(Plan(speculation=Speculation(0.0, 3))).tpot_seconds
    assert plain < useless < 1.05 * plain


def test_a_draft_takes_its_passes_and_its_memory():
    config, draft = load_config("llama-3.1-8b"), load_config("llama-3.2-1b")
    work = bench(config=config)
    plain = work.outcome(Plan())
    found = work.outcome(Plan(speculation=Speculation(0.0, 2, draft)))
    own = explain("llama-3.2-1b", on="h100", prompt=512, output=128)
    assert found.tpot_seconds == pytest.approx(plain.tpot_seconds + 2 * own.request.tpot_seconds, rel=0.02)
    assert found.memory_bytes - plain.memory_bytes == pytest.approx(
        own.memory.weights + own.memory.cache, rel=1e-6
    )


def test_a_window_bounds_what_is_read_and_kept():
    config = load_config("llama-3.1-8b")
    long, short = bench(prompt=100_000, config=config), bench(prompt=1024, config=config)
    windowed = Plan(window=1024, sinks=4)
    assert long.outcome(windowed).tpot_seconds == pytest.approx(short.outcome(Plan()).tpot_seconds, rel=0.02)
    kept = replace(windowed, batch=2)
    more = long.outcome(kept).memory_bytes - long.outcome(windowed).memory_bytes
    assert more > 1028 * 131_072  # the cache of another sequence, and activations


def test_narrowed_masks_touch_nothing_else():
    model = declare(LLAMA)
    narrow = narrowed(model, 100)
    assert all(layer.mask.window == (100, 0) for layer in narrow.layers)
    assert narrow.layers[0].qkv is model.layers[0].qkv
    assert narrowed(narrow, 200).layers[0].mask.window == (100, 0)
    assert narrowed(declare(load_config("bert-base")), 5) is not None  # no causal mask: as it was


def test_what_memory_does_not_hold_is_read_from_storage_at_every_pass():
    # The document: 7.7 GB in 3.5 GB at 4 GB/s gives a pass of 1.05 s at least.
    phone = replace(load_device("phone"), levels=(replace(load_device("phone").levels[-1], capacity=3.5e9),))
    config = load_config("llama-2-13b")
    found = Workbench(config, phone, 16, 16).outcome(Plan(weights="int4-g128"))
    over = found.memory_bytes - 3.5e9
    assert found.fits
    assert found.bound == "storage"
    assert found.streamed_bytes == pytest.approx(over)
    assert found.tpot_seconds == pytest.approx(over / 4e9)


def test_without_storage_it_does_not_fit():
    assert not bench("rtx-4060").outcome(Plan()).fits


@pytest.mark.parametrize(("values", "message"), [((1.5, 1), "acceptance"), ((0.5, 0), "at least 1")])
def test_bad_speculation_is_named(values, message):
    with pytest.raises(InputError, match=message):
        Speculation(*values)
