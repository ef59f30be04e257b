"""Mixtures of experts on a GPU: choosing experts, and the weighted sum of what they make of their rows.

Everything is launched without knowing what was chosen: blocks of rows of one expert are listed on the GPU, as
many as there can be, and programs of blocks that are none end at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.linear import FORMATS, PackedLinear
from ridgeline.kernels.triton import activations
from ridgeline.kernels.triton import experts_kernel as kernels
from ridgeline.kernels.triton.arguments import (
    check_floats,
    check_no_gradient,
    check_sizes,
    describe,
    result,
)
from ridgeline.kernels.triton.configs import Tiles, tiles
from ridgeline.kernels.triton.linear import GpuLinear
from ridgeline.kernels.triton.runtime import OPTIONS, is_interpreted, triton

#: Up to so many rows an expert on average, products are bound by the experts' weights, and have tiles of
#: their own.
FEW_ROWS = 16
#: Choices that a program reads at a time while it sorts, columns that one sums.
_CHUNK, _COLUMNS = (64, 64) if is_interpreted() else (1024, 1024)


@dataclass(frozen=True, eq=False)
class GpuExperts:
    """The weights ``[experts, out, in]`` of a mixture as the GPU's functions read them: a
    :class:`GpuLinear`'s ``data``, ``scales`` and ``zeros``, those of all experts stacked."""

    data: torch.Tensor
    scales: torch.Tensor | None
    zeros: torch.Tensor | None
    shape: tuple[int, int, int]
    format: str
    gated: bool = False

    @classmethod
    def of(cls, packed: Sequence[PackedLinear], device: torch.device | str) -> GpuExperts:
        """The experts' weights packed for the CPU, with the same integers and scales.

        Raises InputError for FP8, which no kernel of experts reads.
        """
        if packed[0].format not in FORMATS:
            raise InputError(
                f"experts can't be kept as {packed[0].format}; choose one of: {', '.join(FORMATS)}"
            )
        first = GpuLinear.of(packed[0], device)
        stacked = [
            None if x is None else torch.empty((len(packed), *x.shape), dtype=x.dtype, device=device)
            for x in (first.data, first.scales, first.zeros)
        ]
        for i, one in enumerate(packed):
            linear = first if i == 0 else GpuLinear.of(one, "cpu")
            for target, source in zip(stacked, (linear.data, linear.scales, linear.zeros), strict=True):
                if target is not None:
                    target[i].copy_(source)
        return cls(*stacked, (len(packed), *first.shape), first.format, first.gated)

    @classmethod
    def plain(cls, weight: torch.Tensor, *, gated: bool = False) -> GpuExperts:
        """A weight of floats."""
        return cls(weight, None, None, tuple(weight.shape), "", gated)

    def __getitem__(self, expert: int) -> GpuLinear:
        """One expert's weight."""
        parts = (None if x is None else x[expert] for x in (self.data, self.scales, self.zeros))
        return GpuLinear(*parts, self.shape[1:], self.format, self.gated)

    @property
    def columns(self) -> int:
        return self.shape[1] // 2 if self.gated else self.shape[1]

    @property
    def group(self) -> int:
        """Inputs that share a scale, 0 for a whole row or none."""
        return 0 if self.scales is None else FORMATS[self.format][1]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.data, self.scales, self.zeros) if x is not None)


def route(
    logits: torch.Tensor,
    chosen: int,
    *,
    scoring: str = "softmax",
    normalised: bool = True,
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
    groups: int = 1,
    open_groups: int = 1,
    group_score: str = "max",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts that every row takes, int32 ``[rows, chosen]`` in ascending order, and their weights,
    float32: what :func:`ridgeline.ops.routing.choose` gives of ``logits`` [rows, experts], whose arguments
    :class:`ridgeline.ops.mixture.Router` explains. Of equal scores the lower number is chosen; a NaN is
    chosen last.

    Raises InputError that names the argument for a wrong dtype, shape, stride, device or number.
    """
    check_floats("logits", logits)
    check_no_gradient("logits", logits, "use torch.no_grad()")
    if logits.dim() != 2 or not logits.shape[1]:
        raise InputError(f"logits is {describe(logits)}; give [rows, experts]")
    rows, number = logits.shape
    if groups < 1 or number % groups or not 1 <= open_groups <= groups:
        raise InputError(f"groups is {groups}, {open_groups} open; give parts of {number} experts")
    if not 1 <= chosen <= number // groups * open_groups:
        raise InputError(f"chosen is {chosen}; the open groups have {number // groups * open_groups} experts")
    for name, value, known in (
        ("scoring", scoring, ("softmax", "sigmoid")),
        ("group_score", group_score, ("max", "top2")),
    ):
        if value not in known:
            raise InputError(f"{name} is {value!r}; choose one of: {', '.join(known)}")
    if bias is not None:
        check_floats("bias", bias, logits.device)
        check_sizes("bias", bias, (number,), "logits")
    experts = torch.empty(rows, chosen, dtype=torch.int32, device=logits.device)
    weights = torch.empty(rows, chosen, dtype=torch.float32, device=logits.device)
    if rows:
        kernels.route[(rows,)](
            logits, logits if bias is None else bias, experts, weights, logits.stride(0), float(scale),
            number, chosen, groups, open_groups, scoring == "sigmoid", group_score == "top2", normalised,
            bias is not None, triton.next_power_of_2(groups), triton.next_power_of_2(number // groups),
            num_warps=1 if number <= 64 else 4, **OPTIONS,
        )  # fmt: skip
    return experts, weights


def mixture(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    gate_up: GpuExperts,
    down: GpuExperts,
    activation: str,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    *,
    invariant: bool = False,
) -> torch.Tensor:
    """residual + the weighted sum of what each row's experts make of it, ``[rows, width]``.

    ``experts`` int32 and ``weights`` float32 are [rows, chosen], as :func:`route` gives them; numbers of
    experts are not checked. ``gate_up`` [experts, 2 inner, width] is gated and has the ``activation``,
    ``down`` [experts, width, inner] has none. Products are summed in float32, gated values and outputs
    rounded to x's dtype, and outputs summed in float32 in the order of the slots, before the residual.

    A row's bits depend on the other rows only by whether there are more than :data:`FEW_ROWS` an expert on
    average, which take other tiles; ``invariant``, all numbers of rows take one, without fused
    multiply-adds, and they depend on nothing else.

    Raises InputError that names the argument for a wrong dtype, shape, stride or device.
    """
    number, columns, width = gate_up.shape[0], gate_up.columns, gate_up.shape[2]
    check_floats("x", x, gate_up.data.device)
    check_no_gradient("x", x, "use torch.no_grad()")
    check_sizes("x", x, (x.shape[0], width), "gate_up")
    check_sizes("down", down.data, (number, width, down.data.shape[2]), "gate_up")
    if not gate_up.gated or down.gated or down.shape[2] != columns:
        raise InputError(f"down is {list(down.shape)}; a gated gate_up {list(gate_up.shape)} goes before it")
    for name, data in (("gate_up", gate_up), ("down", down)):
        if data.scales is None and data.data.dtype != x.dtype:
            raise InputError(f"{name} is {data.data.dtype} and x {x.dtype}; give one dtype")
        if not data.data.is_contiguous():
            raise InputError(f"{name} has gaps; call contiguous()")
    rows, chosen = experts.shape
    check_sizes("experts", experts, (x.shape[0], chosen), "x")
    check_sizes("weights", weights, (rows, chosen), "experts")
    if experts.dtype != torch.int32 or weights.dtype != torch.float32:
        raise InputError(f"experts is {experts.dtype} and weights {weights.dtype}; give int32 and float32")
    if residual is not None:
        check_floats("residual", residual, x.device)
        check_sizes("residual", residual, tuple(x.shape), "the result")
    number_of, _ = activations.number(activation, True)
    out = result(out, tuple(x.shape), x.dtype, x.device)
    if not out.numel():
        return out
    experts, weights = experts.contiguous(), weights.contiguous()
    few = rows * chosen <= FEW_ROWS * number and not invariant
    kernel = "experts_invariant" if invariant else "experts_few" if few else "experts_many"
    tile = tiles(kernel, 1, x.element_size(), x.device)
    order = None if _alone(rows, chosen, number) else _sorted(experts, number, tile)
    hidden = torch.empty(rows * chosen, columns, dtype=x.dtype, device=x.device)
    outputs = torch.empty(rows * chosen, width, dtype=x.dtype, device=x.device)
    _product(x, gate_up, experts, order, chosen, number_of, tile, few, not invariant, hidden)
    _product(hidden, down, experts, order, 1, activations.NONE, tile, few, not invariant, outputs)
    block = min(_COLUMNS, triton.next_power_of_2(width))
    kernels.combine[(rows, -(-width // block))](
        outputs, weights, outputs if residual is None else residual, out, width,
        0 if residual is None else residual.stride(0), out.stride(0),
        chosen, residual is not None, block, **OPTIONS,
    )  # fmt: skip
    return out


def _alone(rows: int, chosen: int, number: int) -> bool:
    """Whether each choice is multiplied by itself: then hardly two of them are one expert's, and rows need
    not be sorted. The bits are the same."""
    return rows == 1 or 4 * rows * chosen <= number


def _sorted(experts: torch.Tensor, number: int, tile: Tiles) -> tuple[torch.Tensor, torch.Tensor]:
    """Places by expert, int32 [rows * chosen], and the blocks of them, int32 [most, 3]."""
    count = experts.numel()
    # Each of the experts that are taken has at most m - 1 rows less than its blocks have places.
    most = (count + min(count, number) * (tile.m - 1)) // tile.m
    places = torch.empty(count, dtype=torch.int32, device=experts.device)
    blocks = torch.empty(most, 3, dtype=torch.int32, device=experts.device)
    chunk = min(_CHUNK, max(32, triton.next_power_of_2(count)))
    bins = max(32, triton.next_power_of_2(number + 1))
    kernels.sort[(number,)](experts, places, blocks, count, most, number, bins, tile.m, chunk, **OPTIONS)
    return places, blocks


def _product(
    x: torch.Tensor,
    weight: GpuExperts,
    experts: torch.Tensor,
    order: tuple[torch.Tensor, torch.Tensor] | None,
    share: int,
    activation: int,
    tile: Tiles,
    few: bool,
    fused: bool,
    out: torch.Tensor,
) -> None:
    bits = 16 if weight.scales is None else 4 if weight.group else 8
    # A tile of 4-bit inputs stays inside its group, which has one scale.
    inner = min(tile.k, weight.group) if bits == 4 else tile.k
    # A gated program holds two sums, and one of a group beside its sum; with many rows two whole tiles of
    # them don't fit its registers.
    n = tile.n // 2 if (weight.gated or bits == 4) and not few and tile.n >= 64 else tile.n
    places, blocks = (experts, experts) if order is None else order
    scales = weight.data if weight.scales is None else weight.scales
    columns = weight.columns
    kernels.product[(out.shape[0] if order is None else len(blocks), -(-columns // n))](
        x, weight.data, scales, scales if weight.zeros is None else weight.zeros,
        experts, places, blocks, out, columns, x.shape[1], weight.data.shape[2], weight.shape[1],
        x.stride(0), weight.data.stride(0), 0 if weight.scales is None else weight.scales.stride(0),
        out.stride(0),
        share, order is not None, bits, weight.group, weight.zeros is not None, activation, weight.gated,
        tile.m, n, inner, **tile.options(fused=fused),
    )  # fmt: skip
