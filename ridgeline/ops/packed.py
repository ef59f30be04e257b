"""Rows of a packed weight, for the embedding that is the output head too."""

from __future__ import annotations

import torch

from ridgeline.kernels.linear import PackedLinear
from ridgeline.ops.formats import PANEL, get_format
from ridgeline.ops.torch_batch import TORCH_DTYPE


def packed_rows(packed: PackedLinear, ids: torch.Tensor) -> torch.Tensor:
    """Rows ``ids`` of a packed weight [out, in] that is not gated: float32 [rows, in].

    csrc/linear/layout.h describes what is read here.
    """
    panels = packed.data.view(packed.layout.panels, -1)
    at, lane = ids // PANEL, ids % PANEL
    read = _quantised if get_format(packed.format).is_quantised else _floats
    return read(packed, panels, at, lane)[:, : packed.shape[1]]


def _floats(packed: PackedLinear, panels: torch.Tensor, at: torch.Tensor, lane: torch.Tensor) -> torch.Tensor:
    steps = panels.view(TORCH_DTYPE[packed.format]).unflatten(1, (-1, PANEL, 4 * 8 // _bits(packed)))
    return steps[at, :, lane].flatten(1).float()


def _quantised(
    packed: PackedLinear, panels: torch.Tensor, at: torch.Tensor, lane: torch.Tensor
) -> torch.Tensor:
    inputs, group = packed.shape[1], get_format(packed.format).group
    if not group:  # int8: all inputs share a scale
        group = -(-inputs // 4) * 4
    groups = -(-inputs // group)
    step_bytes, scale_bytes = 4 * PANEL * (group * _bits(packed) // 32), 2 * PANEL
    blocks = panels[:, : groups * (step_bytes + scale_bytes)].unflatten(1, (groups, -1))
    scales = blocks[:, :, step_bytes:].view(torch.float16)[at, :, lane].float()
    quads = blocks[:, :, :step_bytes].unflatten(2, (-1, PANEL, 4))[at, :, :, lane]
    if _bits(packed) == 8:
        return ((quads.flatten(2).float() - 128) * scales[:, :, None]).flatten(1)
    q = torch.stack((quads & 15, quads >> 4), dim=3).flatten(2).float()
    return ((q - _zeros(packed, panels, at, lane, groups)) * scales[:, :, None]).flatten(1)


def _zeros(
    packed: PackedLinear, panels: torch.Tensor, at: torch.Tensor, lane: torch.Tensor, groups: int
) -> torch.Tensor | float:
    if not packed.format.endswith("-zp"):
        return 8.0
    half = PANEL // 2
    begin = groups * (4 * PANEL * (get_format(packed.format).group // 8) + 2 * PANEL)
    pairs = panels[:, begin : begin + groups * half].unflatten(1, (groups, half))[at, :, lane % half]
    return torch.where((lane < half)[:, None], pairs & 15, pairs >> 4).float()[:, :, None]


def _bits(packed: PackedLinear) -> int:
    return get_format(packed.format).bits
