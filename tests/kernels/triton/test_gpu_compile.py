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
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 120: 99 << 10}
KERNELS = {
    *("forward", "merge", "keys_and_values", "queries", "linear", "partial", "finish"),
    *("norm", "activate", "rotate", "rotate_append", "best_of_chunk", "running"),
}


def instructions(rows):
    """The tensor instructions of each invariant call, as often as they differ between numbers of rows."""
    found = {}
    for row in rows:
        call = row["call"].rpartition(" ")[0]
        if call.startswith("invariant ") and row["kernel"] in ("forward", "linear", "partial"):
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
    assert {row["kernel"] for row in rows} == KERNELS | ({"quantise"} if has_fp8 else set())
    assert max(row["shared"] for row in rows) <= SHARED[capability]
    assert any("e4m3" in shape for row in rows for shape in row["instructions"]) == has_fp8
    used = instructions(rows)
    assert len(used) > 8
    # Few rows and many are summed by the same instructions.
    assert all(len(found) == 1 for found in used.values()), used
    if capability == 90:  # 16-bit prompts run on the tensor cores that warp groups share
        assert any(row["kernel"] == "forward" and row["wgmma"] for row in rows)
        assert any(row["kernel"] == "keys_and_values" and row["wgmma"] for row in rows)
