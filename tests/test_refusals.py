"""Inputs that once ended in a traceback, hung, or were taken for something else: one line each, code 2."""

from __future__ import annotations

import sys

import pytest

from ridgeline.cli import main

PARALLEL = "parallel llama-3.2-1b --on h100-sxm"
ON_TWO = "--on h100-sxm,epyc-9654"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (f"place llama-3.2-1b {ON_TWO} --latency inf", "a latency that is finite"),
        ("dataflows llama-3.2-1b --on h100-sxm --on-chip nan", "finite number of bytes, not nan"),
        ("dataflows llama-3.2-1b --on h100-sxm --on-chip inf", "finite number of bytes, not inf"),
        ("dataflows llama-3.2-1b --on h100-sxm --format=", "unknown storage format ''"),
        (f"{PARALLEL} --devices 0", "devices must be 1 to"),
        (f"{PARALLEL} --tensor 2 --devices 0", "devices must be 1 to"),
        (f"{PARALLEL} --devices 2 --per-node 0", "per_node must be 1 to"),
        (f"{PARALLEL} --devices 2 --batch 0", "batch must be 1 to"),
        (f"{PARALLEL} --tensor 2 --batch 0", "batch must be 1 to"),
        (f"{PARALLEL} --devices 2 --goal=", "goal must be latency or throughput"),
        ("simulate llama-3.2-1b --on h100-sxm --requests poisson:1 --count 1000001", "count must be 1 to"),
    ],
)
def test_is_refused_in_one_line(line, named, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ridgeline", *line.split()])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.out == ""
    assert said.err.startswith("ridgeline: ")
    assert said.err.count("\n") == 1
    assert named in said.err
