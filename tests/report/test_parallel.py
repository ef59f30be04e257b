"""ridgeline parallel on the terminal and as JSON: figures, reasons, refusals."""

import json

import pytest
from typer.testing import CliRunner

from ridgeline.cli import app
from ridgeline.errors import InputError

RUNNER = CliRunner(env={"COLUMNS": "140"})


def run(*arguments):
    return RUNNER.invoke(app, ["parallel", *arguments])


def test_a_layout_shows_what_bounds_it_and_what_it_exchanges():
    text = run("llama-3-70b", "--on", "h100-sxm:8", "--tensor", "4", "--pipeline", "2", "--batch", "8").output
    for said in (
        "llama-3-70b on 8 x h100-sxm",
        "tp4 pp2",
        "What bounds a decode step: reads and writes of memory",
        "The fullest device holds",
        "of activations, of 72.0 GB",
        "the bubble",
        "mlp.down: all_reduce",
        "one-shot, small",
        "assumed attention, collectives",
        "Assumed: nothing is computed while tensor-parallel ranks exchange",
    ):
        assert said in text, said


def test_a_search_shows_the_best_layout_those_behind_and_why_not_others():
    text = run("llama-3-405b", "--on", "h100-sxm", "--devices", "16", "--goal", "latency").output
    assert "tp16" in text
    assert "Behind it, of" in text
    assert "layouts dropped, does not fit in memory; closest was" in text


def test_a_search_of_several_numbers_is_one_table():
    text = run("llama-3-405b", "--on", "h100-sxm", "--devices", "8,16,32", "--goal", "throughput").output
    assert "Best throughput of each number of devices" in text
    assert "none holds" in text
    lines = [line.split()[0] for line in text.splitlines() if line.strip()]
    assert {"8", "16", "32"} <= set(lines)


def test_json_has_every_figure_of_the_layout():
    found = json.loads(run("llama-3-8b", "--on", "h100-sxm:2", "--tensor", "2", "--json").output)
    assert found["figures"]["layout"]["tensor"] == 2
    assert found["figures"]["fits"] is True
    assert found["exchanges"][0]["collective"] == "all_reduce"
    (searched,) = json.loads(run("llama-3-8b", "--on", "h100-sxm:2", "--json").output)
    assert searched["search"]["considered"] >= 3
    assert searched["best"]["figures"]["layout"]["tensor"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tensor", "16"), "the layout takes 16 devices"),
        (("--tensor", "2", "--devices", "8,16", "--on", "h100-sxm"), "only a search"),
        (("--data", "2", "--goal", "latency"), "leave --data out"),
        (("--devices", "4"), "already says how many"),
        (("--devices", "four", "--on", "h100-sxm"), "--devices is 'four'"),
        (("--goal", "joy"), "goal must be latency or throughput"),
        (("--tpot-limit", "0"), "must be a positive number of seconds"),
        (("--context", "2", "--context-kind", "star"), "context_kind must be"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(arguments, said):
    given = arguments if "--on" in arguments else ("--on", "h100-sxm:8", *arguments)
    found = run("llama-3-8b", *given)
    assert isinstance(found.exception, InputError)
    assert said in str(found.exception)
    assert "\n" not in str(found.exception)


def test_a_placement_shows_intensities_places_and_simple_ones_beside_it():
    found = RUNNER.invoke(
        app, ["place", "llama-2-7b", "--on", "h100-sxm,epyc-9654", "--batch", "64", "--prompt", "3000"]
    )
    for said in (
        "llama-2-7b over h100-sxm, epyc-9654",
        "FLOP/byte",
        "attention on epyc-9654, the rest on h100-sxm",
        "all on h100-sxm",
        "Assumed: devices exchange 32 GB/s after 10 µs",
    ):
        assert said in found.output, said
