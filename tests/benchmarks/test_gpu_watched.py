"""A benchmark whose process hangs or has its context ruined goes on behind the part that did it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import gpu as shared  # isort: skip  (it skips the module where there is no Triton)

import torch

from benchmarks import gpu_cases, gpu_warm, gpu_watched
from benchmarks.gpu_results import Results, Row
from benchmarks.gpu_watched import Ran

patched_once_a_launch = shared.patched_once_a_launch
CPU = torch.device("cpu")
PARTS = ("decode", "fp8", "fp8_linear")
#: What stands for a benchmark: it ends parts, says why some stopped, and may hang.
CHILD = """
import json, pathlib, sys, time
path, ends, stopped, hangs = pathlib.Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
seconds = {}
for part in ends:
    seconds[part] = 0.1
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps({"seconds": seconds, "stopped": stopped}))
    draft.rename(path)
time.sleep(60 if hangs else 0)
"""


@pytest.fixture
def watched(tmp_path, monkeypatch):
    for part in PARTS:
        monkeypatch.setitem(gpu_watched.BUDGETS, part, 0.1)
    monkeypatch.setattr(gpu_watched, "GRACE", 0.2)
    monkeypatch.setattr(gpu_watched, "START", 10.0)

    def run(ends: list[str], stopped: dict[str, str] | None = None, hangs: bool = False) -> Ran:
        path = tmp_path / "watched.json"
        command = [sys.executable, "-c", CHILD, str(path)]
        command += [json.dumps(x) for x in (ends, stopped or {}, hangs)]
        process = subprocess.Popen(command)
        ran = gpu_watched.watch(process, path, PARTS, time.monotonic() + 60, pause=0.02)
        assert process.poll() is not None
        return ran

    return run


def test_a_process_that_ends_all_its_parts_leaves_none(watched):
    assert watched(list(PARTS)) == Ran(PARTS, None)


def test_a_part_that_hangs_is_ended_and_passed_over(watched):
    assert watched(["decode"], hangs=True) == Ran(("decode",), "fp8")


def test_a_process_that_dies_passes_over_the_part_it_was_at(watched):
    assert watched(["decode", "fp8"]) == Ran(("decode", "fp8"), "fp8_linear")


def test_a_ruined_context_passes_over_the_part_that_ruined_it(watched):
    stopped = {"fp8_linear fp8 1x64": "Triton Error [CUDA]: an illegal memory access was encountered"}
    assert watched(list(PARTS), stopped) == Ran(("decode", "fp8"), "fp8_linear")
    assert watched(list(PARTS), {"fp8 one": "out of resource: shared memory"}) == Ran(PARTS, None)


#: A benchmark whose part fp8 never ends.
HANGS_AT_FP8 = """
import pathlib, sys, time
from benchmarks.gpu_results import Results, Row
parts, path = sys.argv[2].split(","), pathlib.Path(sys.argv[4])
found = Results({}, path, 4e12)
for part in parts:
    if part == "fp8":
        time.sleep(60)
    found.rows.append(Row(part, "case", 0.0, 1.0, 0.0, 0.0))
    found.seconds[part] = 0.1
    found.save()
"""


def test_what_is_behind_a_part_that_hangs_runs_in_a_new_process(watched, tmp_path, monkeypatch):
    (tmp_path / "hanging_benchmark.py").write_text(HANGS_AT_FP8)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path.cwd()}")
    found = gpu_watched.run(PARTS, tmp_path, 60, "hanging_benchmark")
    assert [ran for _, ran in found] == [Ran(("decode",), "fp8"), Ran(("fp8_linear",), None)]
    every = gpu_watched.together(found)
    assert [row.part for row in every.rows] == ["decode", "fp8_linear"]
    assert every.stopped == {"fp8": "ended its process"}


def test_the_parts_of_all_processes_come_together(tmp_path):
    rows = [Row(part, "case", 0.0, 1.0, 0.0, 0.0, {"ours": 1e-3}) for part in PARTS]
    first, second = Results({}, tmp_path / "0", 4e12), Results({}, tmp_path / "1")
    first.rows, second.rows = rows[:1], rows[2:]
    first.seconds = dict.fromkeys(PARTS, 1.0)
    first.stopped = {"fp8": "CUDA error: misaligned address", "fp8_linear case": "CUDA error: the same"}
    second.seconds = {"fp8_linear": 3.0}
    for found in (first, second):
        found.save()
    ends = Ran(("decode",), "fp8"), Ran(("fp8_linear",), None)
    every = gpu_watched.together(
        list(zip((first.path, second.path, Path("none")), (*ends, ends[1]), strict=True))
    )
    assert every.rows == [rows[0], rows[2]]
    assert every.seconds == {"decode": 1.0, "fp8": 1.0, "fp8_linear": 3.0}
    assert every.stopped == {"fp8": "CUDA error: misaligned address"}
    assert every.bandwidth == 4e12


def test_warming_up_meets_every_variant_once_and_runs_the_cases():
    works = gpu_warm.measured(CPU)
    once = gpu_warm.distinct(works)
    variants = [gpu_warm.variant(work) for work in once]
    assert len(set(variants)) == len(variants) < len(works) / 2
    assert {w.figure for w in works} - {w.figure for w in once} == {"linear.bf16"}
    ran = list(gpu_warm.calls(["rows"], CPU, tiny=True))
    assert len(ran) == len(list(gpu_cases.PARTS["rows"](CPU, True)))
    for call in ran:
        call()
