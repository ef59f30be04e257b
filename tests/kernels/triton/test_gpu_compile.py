"""Every kernel compiles for the generations that have a table of tiles, and one that has none, and fits.

The interpreter takes what the compiler refuses, and knows no registers. Triton brings the whole compiler, so
this takes no GPU; it takes a process of its own, in which nothing is interpreted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

#: Bytes of shared memory that a block may have, by compute capability (CUDA C++ Programming Guide, table of
#: technical specifications).
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
#: Bytes of stack of the kernels that a model runs, at most: a few registers may spill, a tile must not.
MOST_STACK = 200
KERNELS = {
    *("forward", "forward_splits", "merge", "keys_and_values", "queries", "linear", "partial", "finish"),
    *("norm", "activate", "rotate", "rotate_append", "best_of_chunk", "running"),
    *("route", "sort", "product", "combine", "turn_append", "attend"),
}
#: Those of invariant calls that have tensor instructions.
SUMMING = {"forward", "forward_splits", "linear", "partial", "product"}


def instructions(rows):
    """The tensor instructions of each invariant call, as often as they differ between numbers of rows."""
    found = {}
    for row in rows:
        call = row["call"].rpartition(" ")[0]
        if call.startswith("invariant ") and row["kernel"] in SUMMING:
            found.setdefault(call, set()).add(tuple(row["instructions"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
def test_kernels_compile_and_fit(capability, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    said = subprocess.run(
        [sys.executable, "-m", "tests.kernels.triton.compile_for", str(capability)],
        capture_output=True,
        text=True,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert said.returncode == 0, said.stderr[-3000:]
    rows = [json.loads(line) for line in said.stdout.splitlines() if line.startswith("{")]
    has_fp8 = capability >= 89
    assert {row["kernel"] for row in rows} == (KERNELS | {"quantise"} if has_fp8 else KERNELS)
    assert max(row["shared"] for row in rows) <= SHARED[capability]
    products_of_fp8 = [s for row in rows for s in row["instructions"] if "e4m3" in s or "f8f6f4" in s]
    assert bool(products_of_fp8) == has_fp8
    used = instructions(rows)
    assert len(used) > 14
    # Few rows and many are summed by the same instructions.
    assert all(len(found) == 1 for found in used.values()), used
    forward, splits, gradients = (
        [row for row in rows if row["kernel"] == name]
        for name in ("forward", "forward_splits", "keys_and_values")
    )
    assert max(row["stack"] for row in splits) <= MOST_STACK
    if 90 <= capability < 120:
        # 16-bit prompts have their keys and values copied in bulk, whatever their head size, and run on the
        # tensor cores that warp groups share, or that have a memory of their own.
        products = "wgmma" if capability == 90 else "tcgen05"
        both = [row for row in forward if row["bulk"] and row[products]]
        assert {row["size"] for row in both} >= {"64 bf16", "128 bf16", "256 bf16", "80 fp16"}
        assert {row["size"] for row in both} >= {"64 fp8", "128 fp8", "256 fp8"}  # products of FP8
        assert {row["size"] for row in splits if row["bulk"]} >= {"64 bf16", "128 bf16", "256 bf16"}
        assert capability != 90 or any(row["wgmma"] for row in gradients)
    else:
        assert not any(row["bulk"] or row["wgmma"] or row["tcgen05"] for row in rows)
        assert all(row["mma"] for row in forward if row["size"] == "128 bf16")
