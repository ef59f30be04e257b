"""Stored tiles: every kernel has some on every GPU, and a device's own file goes first."""

from __future__ import annotations

import pytest
import torch

from ridgeline.errors import InputError
from ridgeline.kernels.triton import configs

GPUS = {
    "NVIDIA H200": (9, 0),
    "NVIDIA A100": (8, 0),
    "NVIDIA A40": (8, 6),
    "NVIDIA L4": (8, 9),
    "Other": (12, 0),
}
CUDA = torch.device("cuda", 0)


@pytest.fixture
def on(monkeypatch, tmp_path):
    """``on(name)``: as if that GPU were there."""
    monkeypatch.setattr(configs, "is_interpreted", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configs._tuned.cache_clear()

    def there(name):
        monkeypatch.setattr(configs, "_device", lambda index: (name, GPUS[name]))

    yield there
    configs._tuned.cache_clear()


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_kernel_has_tiles_on_every_gpu(on, gpu, itemsize):
    on(gpu)
    found = [
        configs.tiles(kernel, size, itemsize, CUDA)
        for kernel in ("attention", "attention_invariant", "decode", "backward")
        for size in (1, 64, 96, 128, 256)
    ]
    found += [
        configs.tiles(kernel, 1, itemsize, CUDA)
        for kernel in ("linear_few", "linear_many", "linear_invariant", "experts_invariant")
    ]
    found += [configs.tiles("attention_invariant", size, 1, CUDA) for size in (64, 128, 256)]
    found.append(configs.tiles("linear_fp8", 1, 1, CUDA))
    for tile in found:
        assert all(n >= 16 and n & (n - 1) == 0 for n in (tile.m, tile.n))
        assert 512 % tile.n == 0  # whole tiles make a split


def test_generations_have_their_own_tiles_and_8_6_has_adas(on):
    found = {}
    for gpu in GPUS:
        on(gpu)
        found[gpu] = configs.tiles("attention", 128, 2, CUDA)
    assert found["NVIDIA A40"] == found["NVIDIA L4"]
    assert len({found[gpu] for gpu in ("NVIDIA H200", "NVIDIA A100", "NVIDIA L4", "Other")}) == 4


def test_a_devices_own_file_goes_first(on):
    path = configs.tuned_path("NVIDIA H200")
    path.parent.mkdir(parents=True)
    path.write_text("attention-2-128 = { m = 64, n = 32, warps = 4, stages = 5 }\n")
    on("NVIDIA H200")
    assert configs.tiles("attention", 100, 2, CUDA) == configs.Tiles(64, 32, 4, 5)
    assert configs.tiles("attention", 256, 2, CUDA).stages == 2  # the package's
    on("NVIDIA A100")
    assert configs.tiles("attention", 100, 2, CUDA).stages == 3


@pytest.mark.parametrize("text", ["attention-2-64 = { m = 64 }", "attention-2-64 = 3", "not toml"])
def test_a_broken_file_is_named(on, text):
    path = configs.tuned_path("NVIDIA L4")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    on("NVIDIA L4")
    with pytest.raises(InputError, match=r"nvidia-l4\.toml|attention-2-64"):
        configs.tiles("attention", 64, 2, CUDA)


def test_a_kernel_without_tiles_is_named(on):
    on("Other")
    with pytest.raises(InputError, match="no configuration of attention for heads of 512"):
        configs.tiles("attention", 512, 2, CUDA)
