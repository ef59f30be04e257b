"""Sweeps of decoding techniques: each against arithmetic by hand or against `explain`."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from ridgeline.analysis.decoding import LACKING, decoding
from ridgeline.analysis.explain import explain
from ridgeline.errors import InputError
from ridgeline.report.decoding import draw_decoding, show_decoding


@pytest.fixture(scope="module")
def phone():
    return decoding("llama-2-13b", "phone", weights="int4-g128", output=256)


def test_without_a_cache_time_grows_with_the_square_of_the_output(phone):
    gains = [p.uncached_seconds / p.cached_seconds for p in phone.cache]
    assert gains == sorted(gains)
    # n tokens beyond the prompt compute sequences of up to n: twice as many take three times as long or more
    *_, half, whole = [p.uncached_seconds for p in phone.cache]
    assert 2.5 < whole / half < 4.5
    *_, half, whole = [p.cached_seconds for p in phone.cache]
    assert whole / half < 2.2


def test_a_batch_is_a_step_of_explain():
    found = decoding("llama-3-8b", "h100", prompt=512, output=2)
    step = explain("llama-3-8b", on="h100", prompt=512, output=2, batch=16).phases[1]
    (point,) = [p for p in found.batches if p.batch == 16]
    assert point.step_seconds == pytest.approx(step.seconds)
    assert point.tokens_per_second == pytest.approx(step.tokens_per_second)


def test_speculation_at_no_cost_and_where_rows_are_free_gains_its_expected_tokens():
    found = decoding("llama-3-8b", "h100")
    gains = {(p.acceptance, p.cost): p for p in found.speculation}
    free = gains[0.8, 0.0]
    # 1 / (1 - a) is what no draft length can pass
    assert 0.9 * (1 - 0.8 ** (free.tokens + 1)) / 0.2 < free.gain < 5
    for acceptance in (0.3, 0.6, 0.9):
        row = [gains[acceptance, cost] for cost in (0.0, 0.05, 0.1, 0.2)]
        assert [p.gain for p in row] == sorted((p.gain for p in row), reverse=True)
        assert [p.tokens for p in row] == sorted((p.tokens for p in row), reverse=True)


def test_offloading_is_bound_by_what_storage_gives(phone):
    weights = explain("llama-2-13b", on="phone", weights="int4-g128").memory.weights
    assert [p.lacking for p in phone.offloading] == list(LACKING)
    for point in phone.offloading[2:]:
        assert point.tpot_seconds == pytest.approx(point.lacking * weights / 4e9)
        expected = (1 - 0.7**5) / 0.3
        assert point.speculative_tpot_seconds == pytest.approx(point.tpot_seconds / expected, rel=0.5)
    assert decoding("llama-3-8b", "h100").offloading == ()


def test_fewer_bits_take_less_time_and_room(phone):
    assert [p.bits for p in phone.formats] == [16, 8 + 16 / 4096, 4.5, 4.125]
    times = [p.tpot_seconds for p in phone.formats]
    assert times == sorted(times, reverse=True)


def test_streaming_costs_the_same_at_any_length():
    found = decoding("llama-3.1-8b", "h100")
    assert found.contexts[-1].context == 65_536
    assert {p.streaming_bytes for p in found.contexts[1:]} == {1028 * 131_072}
    assert found.contexts[-1].full_seconds > 1.3 * found.contexts[-1].streaming_seconds


def test_tables_and_charts_show_all_of_it(phone):
    out = StringIO()
    show_decoding(Console(file=out, width=100), phone)
    text = out.getvalue()
    for said in (
        "Without a KV cache",
        "A batch shares",
        "best draft length",
        "from storage",
        "Fewer bits",
        "Long",
    ):
        assert said in text
    assert len(draw_decoding(phone).data) == 2 + 1 + 4 + 1 + 2 + 2


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("bert-base", {}, "bert-base is an encoder"),
        ("gpt2", {"prompt": 0}, "prompt must be 1 to"),
        ("gpt2", {"output": 1}, "output must be 2 to"),
        ("gpt2", {"prompt": 1000}, r"takes 1024 tokens at most, not 1000 \+ 128"),
        ("gpt2", {"acceptance": 2}, "acceptance must be from 0 to 1"),
    ],
)
def test_bad_input_is_named(model, options, message):
    with pytest.raises(InputError, match=message):
        decoding(model, "a100", **options)
