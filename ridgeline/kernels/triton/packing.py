"""From the packed weights of the CPU's kernels (``csrc/linear/layout.h``) to what the GPU's read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ridgeline.kernels.linear import FORMATS, PackedLinear

#: Of csrc/linear/layout.h: outputs of a panel, bytes of an output in a step.
_PANEL, _STEP_BYTES = 32, 4


@dataclass(frozen=True)
class Integers:
    """A quantised weight, w = scale (q - zero): ``q`` int8 [out, inputs], ``scales`` float16 [groups, out],
    and ``zeros`` int8 [groups, out], None where there are none. ``group`` is 0 where a row has one scale."""

    q: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    group: int


def integers(packed: PackedLinear) -> Integers:
    """The integers, scales and zero points of a packed weight; inputs are padded to whole groups."""
    _, group, has_zeros = FORMATS[packed.format]
    layout = packed.layout
    data = packed.data.view(layout.panels, -1)
    bits = 4 if group else 8
    step = _STEP_BYTES * 8 // bits
    groups = -(-packed.shape[1] // group) if group else 1
    inputs = groups * group if group else -(-packed.shape[1] // step) * step
    steps = inputs // step // groups
    group_bytes = steps * _STEP_BYTES * _PANEL + 2 * _PANEL
    blocks = data[:, : groups * group_bytes].reshape(layout.panels, groups, group_bytes)
    stored = blocks[..., : -2 * _PANEL].reshape(layout.panels, groups, steps, _PANEL, _STEP_BYTES)
    scales = blocks[..., -2 * _PANEL :].contiguous().view(torch.float16)
    if bits == 4:
        q = torch.cat((stored & 15, stored >> 4), -1).to(torch.int8) - (0 if has_zeros else 8)
    else:
        q = (stored.to(torch.int16) - 128).to(torch.int8)
    q = q.permute(0, 3, 1, 2, 4).reshape(layout.panels * _PANEL, inputs)
    rows = _rows(packed)
    zeros = None
    if has_zeros:
        halves = data[:, groups * group_bytes :][:, : groups * _PANEL // 2].reshape(layout.panels, groups, -1)
        zeros = _by_group(torch.cat((halves & 15, halves >> 4), -1), rows).to(torch.int8)
    return Integers(q[rows], _by_group(scales, rows), zeros, group)


def _by_group(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[panels, groups, outputs of a panel] as [groups, out]."""
    return x.permute(1, 0, 2).flatten(1)[:, rows].contiguous()


def _rows(packed: PackedLinear) -> torch.Tensor:
    """Where each output of the weight lies among the panels' lanes."""
    out = torch.arange(packed.shape[0])
    if not packed.gated:
        return out
    column, half = out % packed.columns, _PANEL // 2
    return column // half * _PANEL + column % half + torch.where(out < packed.columns, 0, half)
