"""Tuning keeps the fastest tile that runs; and no tile changes a result beyond rounding."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ridgeline.kernels import triton as gpu
from ridgeline.kernels.triton import configs, tune
from ridgeline.kernels.triton.configs import Tiles, parse, trying
from tests.kernels.triton.drawing import assert_near, draw


@pytest.mark.parametrize("kernel", tune.CANDIDATES)
def test_the_fastest_tile_that_runs_is_kept(device, kernel, monkeypatch, tmp_path):
    """Without running a call, since times are made up: a tile's is its place in a list; every third has no
    room."""
    place = []

    def seconds(call):
        place.append(len(place))
        if len(place) % 3 == 1:
            raise RuntimeError("out of resource: shared memory")
        return 1 / len(place)

    monkeypatch.setattr(tune, "HEADS", (64,))
    monkeypatch.setitem(tune.CALLS, kernel, lambda size, device, scale: lambda: None)
    [found] = tune.tune(device, seconds, (kernel,))
    candidates = tune.CANDIDATES[kernel]
    last = max(i for i in range(len(candidates)) if i % 3)
    assert found.tile == candidates[last]
    assert (found.ran + found.failed, found.failed) == (len(candidates), -(-len(candidates) // 3))
    tune.write(tmp_path / "new" / "gpu.toml", [found])
    import tomllib

    assert parse(tomllib.loads((tmp_path / "new" / "gpu.toml").read_text())) == {found.entry: found.tile}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", tune.CANDIDATES)
def test_what_is_timed_runs_with_the_tile_that_is_tried(device, kernel, monkeypatch):
    """One tile of each kernel, on a small shape."""
    monkeypatch.setattr(tune, "HEADS", (64,))
    monkeypatch.setattr(tune, "CANDIDATES", {kernel: tune.CANDIDATES[kernel][:1]})
    used = []
    monkeypatch.setattr(
        configs,
        "_lookup",
        lambda table, *key: used.append(key[0]) or table.get(f"{key[0]}-{tune.BYTES.get(key[0], 2)}-64"),
    )
    call = tune.CALLS[kernel]
    monkeypatch.setitem(tune.CALLS, kernel, lambda size, device, scale: call(size, device, 128))

    def seconds(timed):
        timed()
        return 1.0

    [found] = tune.tune(device, seconds, (kernel,))
    assert (found.ran, found.failed) == (1, 0)
    assert kernel in used


@pytest.mark.parametrize("tile", [Tiles(16, 16, 1, 1), Tiles(32, 16, 1, 1), Tiles(64, 64, 1, 1)])
def test_results_do_not_depend_on_the_tile(device, tile):
    q, k, v = (draw(i, 1, n, h, 24, device=device) for i, (n, h) in enumerate([(40, 4), (70, 2), (70, 2)]))
    options = {"causal": True, "window": (30, 0), "sinks": 3, "schedule": "flash"}
    want = gpu.attention(q, k, v, **options)
    with trying("attention-4-24", tile), trying("decode-4-24", tile):
        got = gpu.attention(q, k, v, **options)
    assert_near(got, want.cpu(), 1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_in_a_line(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    said = subprocess.run([sys.executable, "-m", "ridgeline.cli", "tune"], capture_output=True, text=True)
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "no CUDA device" in said.stderr
