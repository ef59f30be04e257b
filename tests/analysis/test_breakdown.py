"""Time by class of layer: whose time it is, the published shape, and what is measured here."""

import json
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from ridgeline.analysis.breakdown import GROUPS, PUBLISHED, breakdown, group_of, predict_breakdown
from ridgeline.analysis.check import OperatorCheck, PhaseCheck
from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.lowering import UNFUSED
from ridgeline.predict import predict
from ridgeline.report.breakdown import class_checks, show_breakdown


@pytest.mark.parametrize(
    ("op", "kind", "part", "group"),
    [
        ("attention.qkv", "linear", "matmul", "attention"),
        ("attention.qkv", "linear", "bias", "attention"),
        ("attention", "attend", "softmax", "attention"),
        ("attention.out", "linear", "residual", "activation and norm"),
        ("attention.norm", "norm", "norm", "activation and norm"),
        ("mlp.up", "linear", "matmul", "fully connected"),
        ("mlp.up", "linear", "activation", "activation and norm"),
        ("mlp.down", "linear", "linear", "fully connected"),
        ("input_norm", "norm", "norm", "activation and norm"),
        ("attention", "attend_latent", "scores", "attention"),
        ("split_heads", "split", "norm", "attention"),
        ("experts", "experts", "matmul", "fully connected"),
        ("router", "route", "matmul", "fully connected"),
        ("head", "linear", "matmul", None),
        ("embedding", "embed", "embed", None),
        ("take_rows", "gather", "gather", None),
    ],
)
def test_every_part_has_its_class(op, kind, part, group):
    assert group_of(op, kind, part) == group


def test_the_published_shares_are_of_all_time():
    assert sum(PUBLISHED.values()) == pytest.approx(1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["opt-1.3b", "llama-3-8b", "bert-base"])
def test_the_classes_and_what_is_outside_add_up_to_the_pass(name, training):
    found = predict_breakdown(name, "a100", prompt=128, training=training)
    model = declare(load_config(name))
    ops = Count(activations=model.plain_format, lowering=UNFUSED, pairs=Pairs.SQUARE, train=training)
    trace = ops.trace(model.forward(ops, ops.batch([Span(128)], logits="all")))
    whole = predict(trace.backward() if training else trace, load_device("a100")).seconds
    way = found.ways["unfused"]
    assert sum(way.seconds.values()) + way.outside == pytest.approx(whole)
    assert sum(way.shares.values()) == pytest.approx(1)


def test_attention_of_opt_is_mostly_products_and_grows_with_the_length():
    short, long = (
        predict_breakdown("opt-1.3b", "a100", prompt=n, batch=4).ways["unfused"] for n in (256, 1024)
    )
    assert long.shares["attention"] > short.shares["attention"]
    assert long.products_of_attention < short.products_of_attention
    assert 0.6 < long.products_of_attention < 0.75
    assert long.shares["attention"] == pytest.approx(PUBLISHED["attention"], rel=0.05)


def test_fusion_takes_time_from_attention():
    ways = predict_breakdown("opt-1.3b", "a100", prompt=2048).ways
    assert list(ways) == ["unfused", "naive", "fused"]
    times = [way.seconds["attention"] for way in ways.values()]
    assert times == sorted(times, reverse=True)
    assert times[2] < times[0] / 2


def test_nothing_has_no_shares():
    empty = breakdown([])
    assert (empty.shares, empty.products_of_attention) == (dict.fromkeys(GROUPS, 0.0), 0.0)


def test_what_was_measured_is_divided_likewise():
    operators = (
        OperatorCheck("attention.qkv", "linear", 2, 3.0, 4.0),
        OperatorCheck("mlp.up", "linear", 2, 5.0, 6.0),
        OperatorCheck("input_norm", "norm", 2, 1.0, 2.0),
        OperatorCheck("head", "linear", 1, 7.0, 8.0),
    )
    phase = PhaseCheck("prefill", 5, 5, 16.0, 20.0, 0.0, operators)
    measured = phase.breakdown["measured"]
    assert list(measured.seconds.values()) == [4.0, 6.0, 2.0]
    assert measured.outside == 8.0
    console = Console(width=80, record=True, file=StringIO())
    console.print(class_checks(phase))
    assert "33.3%" in console.export_text()


def test_the_table_shows_what_was_published_of_opt_only():
    for name, shown in (("opt-1.3b", True), ("gpt2", False)):
        console = Console(width=80, record=True, file=StringIO())
        show_breakdown(console, predict_breakdown(name, "a100", prompt=512))
        text = console.export_text()
        assert ("47.9%" in text) == shown
        assert "…" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": 0}, "prompt must be 1 to 1024 tokens for gpt2, not 0"),
        ({"model": "dit-b-2"}, "dit-b-2 denoises images as trained: it has no prompt"),
        ({"batch": 0}, "batch must be 1 to"),
        ({"weights": "fp5"}, "unknown storage format"),
    ],
)
def test_what_cannot_be_divided_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        predict_breakdown(**{"model": "gpt2", "on": "a100", "prompt": 64, **options})


def test_the_command_prints_json():
    command = [sys.executable, "-m", "ridgeline.cli", "breakdown", "opt-1.3b", "--on", "a100", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert set(found["ways"]["unfused"]["shares"]) == set(GROUPS)
