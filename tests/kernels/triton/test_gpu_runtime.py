"""Where kernels run."""

from __future__ import annotations

import torch

from ridgeline.kernels.triton.runtime import default_device, with_index


def test_a_gpu_is_known_by_its_number(monkeypatch):
    """A tensor made on "cuda" lies on "cuda:0", which is another device to a comparison."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert with_index("cuda") == torch.device("cuda", 1)
    assert with_index(torch.device("cuda", 3)) == torch.device("cuda", 3)
    assert with_index("cpu") == torch.device("cpu")
    assert with_index(None) == default_device()
