"""Weights in FP8: e4m3 (OCP 8-bit Floating Point Specification, 2023), one sign, four exponent and three
mantissa bits, with one scale an output, or one a block of 128 x 128 as DeepSeek-V3 is published (DeepSeek-AI
2024, arXiv:2412.19437, section 3.3). The GPU's kernels run them; the native ones don't.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ridgeline.errors import InputError

#: Rows and columns that share a scale; a 0 is a whole row's.
FP8_BLOCKS = {"fp8": (1, 0), "fp8-128x128": (128, 128)}
#: The largest e4m3.
LARGEST = 448.0
#: Rows that are quantised between two reports of progress: whole blocks.
_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Fp8Linear:
    """A weight ``[out, in]``: ``data``, uint8 [out, in], is e4m3's bits; ``scales`` are float32 [groups of
    inputs, groups of outputs], one group of inputs and every output for ``fp8``. A ``gated`` weight's first
    half of outputs gates its second half."""

    data: torch.Tensor
    scales: torch.Tensor
    format: str
    gated: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.data.shape)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes

    def unpack(self) -> torch.Tensor:
        """The float32 weight ``[out, in]`` that this one stands for."""
        rows, columns = FP8_BLOCKS[self.format]
        wide = self.data.view(torch.float8_e4m3fn).float()
        return wide * spread(self.scales.T, rows, columns or wide.shape[1])[: wide.shape[0], : wide.shape[1]]


def pack_fp8(
    weight: torch.Tensor,
    format: str,
    *,
    gated: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Fp8Linear:
    """``weight``, of any float dtype ``[out, in]``, in ``fp8`` or ``fp8-128x128``.

    A scale is the largest |w| that it serves over 448, 1 where all are 0; numbers are rounded to nearest,
    ties to even. ``progress`` is called with the bytes of ``weight`` that are done since its last call.

    Raises InputError for an unknown format, a weight that is no matrix or not finite, and an odd number of
    outputs where ``gated``.
    """
    if format not in FP8_BLOCKS:
        raise InputError(f"format is {format!r}; choose one of: {', '.join(FP8_BLOCKS)}")
    if weight.dim() != 2 or not weight.is_floating_point() or 0 in weight.shape:
        raise InputError(f"weight is {weight.dtype} {list(weight.shape)}; give a float matrix [out, in]")
    out, inputs = weight.shape
    if gated and out % 2:
        raise InputError(f"weight has {out} outputs; a gated one has as many gates as values, an even number")
    rows, columns = FP8_BLOCKS[format]
    columns = columns or inputs
    data = torch.empty(out, inputs, dtype=torch.uint8, device=weight.device)
    scales = torch.empty(-(-inputs // columns), -(-out // rows), device=weight.device)
    for begin in range(0, out, _ROWS):
        part = weight[begin : begin + _ROWS].float()
        largest = _largest(part, rows, columns)
        if not largest.isfinite().all():
            raise InputError(f"weight is not finite; it cannot be packed as {format}")
        scale = torch.where(largest > 0, largest / LARGEST, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
        wide = spread(scale, rows, columns)[: len(part), :inputs]
        codes = (part / wide).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        data[begin : begin + _ROWS] = codes.view(torch.uint8)
        scales[:, begin // rows : begin // rows + len(scale)] = scale.T
        if progress is not None:
            progress(part.shape[0] * inputs * weight.element_size())
    return Fp8Linear(data, scales, format, gated)


def spread(scales: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Each scale of [groups of outputs, groups of inputs] for all the elements that it serves."""
    return scales.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


def _largest(weight: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Of each block, the largest |w|; NaN where one is."""
    out, inputs = weight.shape
    padded = torch.nn.functional.pad(weight.abs(), (0, -inputs % columns, 0, -out % rows))
    return padded.unflatten(0, (-1, rows)).unflatten(2, (-1, columns)).amax((1, 3))
