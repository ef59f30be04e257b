"""How a product with a weight is cut into programs, and its launch.

A product of few rows has few tiles: too few, often, to keep a GPU busy reading. Then each program takes one
split of the inputs, and a second kernel adds them. Splits are of one absolute size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ridgeline.kernels.fp8 import FP8_BLOCKS
from ridgeline.kernels.triton import linear_kernel as kernels
from ridgeline.kernels.triton.configs import Tiles, processors, tiles
from ridgeline.kernels.triton.runtime import OPTIONS, has_fp8, is_interpreted, triton

if TYPE_CHECKING:
    from ridgeline.kernels.triton.linear import GpuLinear

#: Up to so many rows a product is bound by its weight, and has tiles of their own.
FEW_ROWS = 16
#: From more rows than these on FP8 weights meet x in FP8, where the GPU multiplies it: below, a product is
#: bound by its weight in either case, and x keeps its precision.
FP8_ROWS = 64
#: Inputs of a split, whatever the device: it fixes the order of sums. The interpreter is slow, so that its
#: splits are short.
SPLIT = 32 if is_interpreted() else 1024
#: Elements that a program of ``finish``, and of ``quantise``, takes at a time.
_FINISHED, _QUANTISED = 256, 2048
_FLOATS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Call:
    """The checked arguments of a product; ``activation`` is its number. A new result is made if ``out`` is
    None."""

    x: torch.Tensor
    packed: GpuLinear
    bias: torch.Tensor | None
    activation: int
    residual: torch.Tensor | None
    out: torch.Tensor | None

    @property
    def kind(self) -> str:
        """The weight's, as the kernels tell them apart."""
        if self.packed.format in _FLOATS:
            return "float"
        return "fp8" if self.packed.format in FP8_BLOCKS else self.packed.format.split("-")[0]

    @property
    def splits(self) -> int:
        return -(-self.packed.data.shape[1] // self.split)

    @property
    def split(self) -> int:
        """Stored columns of a split: one of a 4-bit weight holds two inputs."""
        return SPLIT // 2 if self.kind == "int4" else SPLIT


@dataclass(frozen=True)
class Plan:
    """``tile``: rows, columns and stored columns of a program. ``split``: stored columns that are summed from
    zero, 0 for all. ``parallel``: whether programs take a split each. ``both``: whether x becomes FP8.
    ``fused``: whether a multiplication and an addition may be one instruction."""

    tile: Tiles
    split: int = 0
    parallel: bool = False
    both: bool = False
    fused: bool = True

    def options(self) -> dict[str, Any]:
        return self.tile.options(fused=self.fused)


def fast(call: Call) -> Plan:
    """What is fastest for the number of rows."""
    rows, device = len(call.x), call.x.device
    if call.kind == "fp8" and rows > FP8_ROWS and has_fp8(device):
        return Plan(_fitted(call, tiles("linear_fp8", 1, 1, device), call.packed.gated), both=True)
    few = rows <= FEW_ROWS
    tile = tiles("linear_few" if few else "linear_many", 1, call.x.element_size(), device)
    if _leaves_room(call, tile):
        return Plan(_fitted(call, tile), call.split, parallel=True)
    return Plan(_fitted(call, tile, call.packed.gated and not few))


def invariant(call: Call) -> Plan:
    """One tile for every number of rows. A row's sums are in the same order whether or not splits are
    parallel, and nothing is contracted in one kernel that the other can't."""
    tile = tiles("linear_invariant", 1, call.x.element_size(), call.x.device)
    tile = _fitted(call, tile, call.packed.gated or call.packed.group > 0)
    return Plan(tile, call.split, _leaves_room(call, tile), fused=False)


def launch(call: Call, plan: Plan) -> torch.Tensor:
    """The result. It and a workspace of parallel splits are all that is allocated, and nothing is waited for,
    so that a CUDA graph may hold it."""
    x, packed = call.x, call.packed
    rows, columns = len(x), packed.columns
    out = torch.empty(rows, columns, dtype=x.dtype, device=x.device) if call.out is None else call.out
    if not out.numel():
        return out
    if plan.parallel:
        _launch_parallel(call, plan, out)
        return out
    read, x_scales = quantise_rows(x) if plan.both else (x, x)
    tile, residual = plan.tile, call.residual
    kernels.linear[(_cells(call, tile),)](
        _typed(read), _stored(call), *_scales(call), x_scales, *_epilogue(call), out,
        rows, columns, x.shape[1], packed.data.shape[1], _scale_stride(call),
        read.stride(0), 0 if residual is None else residual.stride(0), out.stride(0),
        call.kind, packed.group, packed.scale_rows, packed.zeros is not None, plan.both,
        call.bias is not None, call.activation, packed.gated, residual is not None, plan.split,
        tile.m, tile.n, tile.k, **plan.options(),
    )  # fmt: skip
    return out


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every row in FP8 (e4m3's bits, uint8 ``[rows, in]``) with a float32 scale of its own, ``[rows]``."""
    rows, inputs = x.shape
    width = -(-inputs // 16) * 16  # rows begin where a thread may copy from
    codes = torch.empty(rows, width, dtype=torch.uint8, device=x.device)
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    block = min(_QUANTISED, triton.next_power_of_2(inputs))
    kernels.quantise[(rows,)](
        x, codes, scales, x.stride(0), width, inputs, block, num_warps=max(1, block // 256), **OPTIONS
    )
    return codes[:, :inputs], scales


def _launch_parallel(call: Call, plan: Plan, out: torch.Tensor) -> None:
    x, packed, tile = call.x, call.packed, plan.tile
    (rows, columns), outputs = out.shape, packed.shape[0]
    sums = torch.empty(call.splits, rows, outputs, dtype=torch.float32, device=x.device)
    kernels.partial[(-(-outputs // tile.n) * -(-rows // tile.m), call.splits)](
        x, _stored(call), *_scales(call), sums, rows, outputs, x.shape[1], packed.data.shape[1],
        _scale_stride(call), x.stride(0), sums.stride(0),
        call.kind, packed.group, packed.scale_rows, packed.zeros is not None, plan.split,
        tile.m, tile.n, tile.k, **plan.options(),
    )  # fmt: skip
    scales, _ = _scales(call)
    bias, residual = _epilogue(call)
    scaled = call.kind != "float" and not packed.group
    block = min(_FINISHED, triton.next_power_of_2(columns))
    kernels.finish[(rows, -(-columns // block))](
        sums, scales, bias, residual, out, columns, call.splits, outputs, sums.stride(0),
        0 if call.residual is None else residual.stride(0), out.stride(0),
        scaled, call.bias is not None, call.activation, packed.gated, call.residual is not None, block,
        **OPTIONS | {"enable_fp_fusion": plan.fused},
    )  # fmt: skip


def _fitted(call: Call, tile: Tiles, halved: bool = False) -> Tiles:
    """The tile inside one group of inputs, which has one scale. ``halved`` in columns: a gated program, or
    one of splits and groups, holds several sums, and whole tiles of them don't fit its registers."""
    k = min(tile.k, call.packed.group or tile.k, call.split)
    n = tile.n // 2 if halved and tile.n >= 64 else tile.n
    return Tiles(tile.m, n, tile.warps, tile.stages, k)


def _cells(call: Call, tile: Tiles) -> int:
    return -(-call.packed.columns // tile.n) * -(-len(call.x) // tile.m)


def _leaves_room(call: Call, tile: Tiles) -> bool:
    """Whether whole sums are too few programs for the GPU's processors, and splits are more."""
    return call.splits > 1 and _cells(call, tile) < processors(call.x.device)


def _stored(call: Call) -> torch.Tensor:
    data = call.packed.data
    return _typed(data) if call.kind == "fp8" and has_fp8(data.device) else data


def _typed(data: torch.Tensor) -> torch.Tensor:
    """FP8's bits as what its instructions take. The interpreter has none."""
    return data.view(torch.float8_e4m3fn) if data.dtype == torch.uint8 and not is_interpreted() else data


def _scales(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points; a kernel's argument that it does not read still is a tensor."""
    scales = call.x if call.packed.scales is None else call.packed.scales
    return scales, scales if call.packed.zeros is None else call.packed.zeros


def _scale_stride(call: Call) -> int:
    return 0 if call.packed.scales is None else call.packed.scales.shape[1]


def _epilogue(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        call.x if call.bias is None else call.bias,
        call.x if call.residual is None else call.residual,
    )
