"""Tables and charts of `compare` and `capacity`, and the files that they are written to."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from ridgeline.analysis.capacity import capacity
from ridgeline.analysis.compare import Limits, compare
from ridgeline.errors import InputError
from ridgeline.report.capacity import growth, show_capacity
from ridgeline.report.compare import show_comparison, trade_off
from ridgeline.report.standalone import write_chart


def printed(show, *arguments) -> str:
    out = StringIO()
    show(Console(file=out, width=110), *arguments)
    return out.getvalue()


@pytest.fixture(scope="module")
def comparison():
    return compare(["llama-3-8b"], ["a100", "rtx-4060"], batches=[1, 8], limits=Limits(tpot=0.02))


def test_a_comparison_says_once_what_all_rows_share(comparison):
    text = printed(show_comparison, comparison)
    assert "within TPOT at most 20.0 ms" in text
    assert "model llama-3-8b, weights bf16, cache bf16, in+out 512+128" in text
    best, refused = (next(line for line in text.splitlines() if line.startswith(d)) for d in ("a100", "rtx"))
    assert best.split()[1] == "8"
    assert "does not fit in memory" in refused


def test_every_batch_is_shown_when_asked_for(comparison):
    assert (
        len([x for x in printed(show_comparison, comparison, True).splitlines() if x.startswith("a100")]) == 2
    )


def test_the_trade_off_draws_a_line_for_each_setting_that_fits(comparison):
    (line,) = trade_off(comparison).data
    assert line.name == "llama-3-8b, a100-80gb, bf16, 512+128"
    assert list(line.customdata) == [1, 8]
    assert line.y[1] > line.y[0]


def test_capacity_as_a_table_and_as_lines_that_grow_to_the_window():
    found = capacity("llama-3-8b", "rtx-4090", weights=[None, "int8"], caches=[None], batch=4)
    text = printed(show_capacity, found)
    assert "sequences of 8,192" in text
    assert "window of 8,192" in text
    figure = growth(found)
    (bf16, int8), held = figure.data, found.holdings[0]
    assert bf16.x[-1] == 8192
    assert bf16.y[-1] == pytest.approx(held.weight_bytes + held.activation_bytes + 4 * 8192 * 131_072)
    assert all(a > b for a, b in zip(bf16.y, int8.y, strict=True))


def test_a_chart_is_a_page_that_loads_nothing(comparison, tmp_path):
    path = write_chart(trade_off(comparison), tmp_path / "chart.html")
    page = path.read_text(encoding="utf-8")
    assert "<title>Throughput against latency, batch by batch - Ridgeline</title>" in page
    assert 'src="http' not in page


def test_a_chart_of_unknown_kind_and_one_that_cannot_be_written_are_refused(comparison, tmp_path):
    with pytest.raises(InputError, match=r"end it in \.html"):
        write_chart(trade_off(comparison), tmp_path / "chart.doc")
    with pytest.raises(InputError, match="cannot write the chart"):
        write_chart(trade_off(comparison), tmp_path / "none" / "chart.html")
