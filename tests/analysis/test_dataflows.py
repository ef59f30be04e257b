"""The comparison of dataflows: shapes from models, curves, crossovers, charts, the command."""

import json
import math
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from ridgeline.analysis.dataflows import CURVE_SIZES, compare_dataflows, shape_of
from ridgeline.errors import InputError
from ridgeline.predict.dataflows import DATAFLOWS, Tiles
from ridgeline.report.dataflows import charts, show_dataflows
from ridgeline.report.standalone import write_chart


@pytest.fixture(scope="module")
def found():
    return compare_dataflows(shape_of("llama-3-8b", prompt=2048), "h100", model="llama-3-8b")


def test_the_shape_is_the_models():
    shape = shape_of("llama-3-8b", prompt=10, past=5, batch=3)
    assert (shape.heads, shape.kv_heads, shape.dim) == (32, 8, 128)
    assert (shape.queries, shape.keys, shape.batch, shape.causal) == (10, 15, 3, True)
    assert not shape_of("bert-base").causal
    assert shape_of("opt-1.3b").format == "fp16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name a model, or give the attention itself"),
        ({"heads": 4}, "name a model"),
        ({"model": "gpt2", "heads": 4}, "gpt2 has its own heads"),
        ({"model": "gpt2", "prompt": 0}, "prompt must be 1 to"),
        ({"model": "gpt2", "past": -1}, "past must be 0 to"),
        ({"model": "gpt2", "format": "fp5"}, "unknown storage format 'fp5'"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        shape_of(options.pop("model", None), **options)


def test_every_dataflow_has_an_outcome_and_a_curve(found):
    names = [flow.name for flow in DATAFLOWS]
    assert [o.name for o in found.outcomes] == names
    for curves in (found.curves.bytes, found.curves.seconds, found.curves.intensity):
        assert list(curves) == names
        assert {len(ys) for ys in curves.values()} == {len(CURVE_SIZES)}


def test_traffic_falls_along_the_curves_and_nothing_passes_below_the_operands(found):
    for ys in found.curves.bytes.values():
        fitting = [math.inf if y is None else y for y in ys]
        assert fitting == sorted(fitting, reverse=True)
        assert fitting[-1] >= found.least_bytes


def test_live_memory_grows_with_the_length_for_flat_alone(found):
    live = found.curves.live
    doubled = found.curves.lengths[-1] / found.curves.lengths[-2]
    assert live["FLAT head"][-1] / live["FLAT head"][-2] == pytest.approx(doubled**2, rel=0.01)
    assert live["FLAT row"][-1] / live["FLAT row"][-2] == pytest.approx(doubled, rel=0.01)
    assert live["flash v2"][-1] == live["flash v2"][0]


def test_flat_overtakes_flash_where_a_heads_keys_and_values_fit(found):
    (crossing,) = [c for c in found.crossovers if (c.winner, c.other) == ("FLAT row", "flash v2")]
    keys_and_values = 2 * 2 * 2048 * 128 * 2  # in two buffers, bf16
    assert keys_and_values < crossing.on_chip < 1.01 * keys_and_values


def test_given_tiles_hold_for_every_dataflow():
    shape = shape_of("gpt2", prompt=512)
    found = compare_dataflows(shape, "a100", tiles=Tiles(64, 32, 4))
    by_name = {o.name: o.cost for o in found.outcomes}
    assert {by_name[n].tiles for n in ("naive", "flash v1", "flash v2", "split-KV")} == {Tiles(64, 32, 4)}


def test_the_table_names_every_dataflow_within_80_columns(found):
    console = Console(width=80, record=True, file=StringIO())
    show_dataflows(console, found)
    text = console.export_text()
    assert "…" not in text
    for words in (*(o.name for o in found.outcomes), "stops fitting", "Attention overtakes the MLP at"):
        assert words in text


def test_the_charts_hold_a_line_for_every_dataflow(found):
    figure = charts(found)
    lines = [trace.name for trace in figure.data]
    assert all(lines.count(flow.name) == 4 for flow in DATAFLOWS)
    assert lines.count("attention") == lines.count("MLP") == 1


def test_charts_are_written_as_one_page(found, tmp_path):
    page = write_chart(charts(found), tmp_path / "page.html")
    assert "FLAT row" in page.read_text(encoding="utf-8")


def test_the_command_prints_a_table_or_json(tmp_path):
    command = [sys.executable, "-m", "ridgeline.cli", "dataflows", "gpt2", "--on", "a100", "--prompt", "256"]
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)
    assert found["outcomes"][0]["cost"]["bytes"] > found["least_bytes"]
    refused = subprocess.run([*command, "--rows", "64"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--rows and --keys together" in refused.stderr
