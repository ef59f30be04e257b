"""What lies between the matrix products, on a GPU: the functions of :mod:`ridgeline.kernels.rows`.

Computed in float32 and rounded once, a row from that row alone. ``out`` may be the input itself where the
CPU's may. Whole numbers that lie on the GPU are not checked.
"""

from __future__ import annotations

import math

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.triton import activations
from ridgeline.kernels.triton import row_kernels as kernels
from ridgeline.kernels.triton.arguments import (
    check_floats,
    check_integers,
    check_no_gradient,
    check_sizes,
    describe,
    result,
)
from ridgeline.kernels.triton.linear import GpuLinear
from ridgeline.kernels.triton.runtime import OPTIONS, triton

#: A row has to fit one program.
MOST_DIM = 65536
_WAY_OUT = "use torch.no_grad()"
_COLUMNS = 1024


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """As :func:`ridgeline.kernels.rms_norm`: ``[rows, dim]`` or ``[rows, heads, dim]``."""
    return _norm(False, x, None, weight, None, eps, out)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`ridgeline.kernels.layer_norm`."""
    return _norm(True, x, None, weight, bias, eps, out)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`ridgeline.kernels.add_rms_norm`: residual += x in place, then its norm."""
    return _norm(False, x, residual, weight, None, eps, out)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`ridgeline.kernels.add_layer_norm`."""
    return _norm(True, x, residual, weight, bias, eps, out)


def activate(x: torch.Tensor, activation: str, out: torch.Tensor | None = None) -> torch.Tensor:
    """As :func:`ridgeline.kernels.activate`: ``[rows, columns]``, half as many columns where gated."""
    _check_matrix("x", x)
    number, gated = activations.number(activation)
    if number == activations.NONE:
        raise InputError("activation is None; name one")
    rows, columns = x.shape
    if gated and columns % 2:
        raise InputError(f"x has {columns} columns; a gated activation takes as many gates as values")
    columns = columns // 2 if gated else columns
    out = result(out, (rows, columns), x.dtype, x.device)
    if out.numel():
        block = min(_COLUMNS, triton.next_power_of_2(columns))
        grid = (rows, -(-columns // block))
        kernels.activate[grid](x, out, x.stride(0), out.stride(0), columns, number, gated, block, **OPTIONS)
    return out


def rotate(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`ridgeline.kernels.rotate`: ``[rows, heads, dim]``."""
    check_floats("x", x)
    check_no_gradient("x", x, _WAY_OUT)
    if x.dim() != 3 or x.shape[2] % 2:
        raise InputError(f"x is {describe(x)}; give [rows, heads, dim] with an even dim")
    rows, heads, dim = x.shape
    positions = check_angles(cos, sin, positions, rows, dim, x.device)
    out = result(out, tuple(x.shape), x.dtype, x.device)
    if out.numel():
        kernels.rotate[(rows, heads)](
            x, cos, sin, x if positions is None else positions, out,
            *x.stride()[:2], cos.stride(0), *out.stride()[:2],
            dim // 2, triton.next_power_of_2(dim // 2), positions is not None, **OPTIONS,
        )  # fmt: skip
    return out


def embed(
    ids: torch.Tensor, table: torch.Tensor | GpuLinear, *, offset: int = 0, out: torch.Tensor | None = None
) -> torch.Tensor:
    """As :func:`ridgeline.kernels.embed`: rows ``ids + offset`` of a table, or of a packed weight."""
    places = ids.long() + offset
    found = table.rows(places) if isinstance(table, GpuLinear) else table.index_select(0, places)
    return found if out is None else out.copy_(found)


def take_rows(x: torch.Tensor, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """As :func:`ridgeline.kernels.take_rows`."""
    return torch.index_select(x, 0, rows, out=out) if out is not None else x.index_select(0, rows)


def add(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """As :func:`ridgeline.kernels.add`; a new result has a's dtype."""
    return (a.float() + b.float()).to(a.dtype) if out is None else out.copy_(a.float() + b.float())


def softcap(x: torch.Tensor, cap: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """As :func:`ridgeline.kernels.softcap`: cap tanh(x / cap)."""
    _check_matrix("x", x)
    if not isinstance(cap, int | float) or not 0 < cap < math.inf:
        raise InputError(f"cap is {cap!r}; give a finite number above 0")
    capped = (cap * torch.tanh(x.float() / cap)).to(x.dtype)
    return capped if out is None else out.copy_(capped)


def check_angles(
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None,
    rows: int,
    dim: int,
    device: torch.device,
) -> torch.Tensor | None:
    """Angles of a rotation, and the row of them that each of ``rows`` takes."""
    for name, angles in (("cos", cos), ("sin", sin)):
        check_floats(name, angles, device)
        if angles.dtype != torch.float32 or angles.dim() != 2 or angles.shape[1] != dim:
            raise InputError(f"{name} is {describe(angles)}; give float32 [angles, {dim}]")
    if sin.shape != cos.shape or sin.stride() != cos.stride():
        raise InputError(f"sin is {describe(sin)} and cos {describe(cos)}; give two of one shape and stride")
    if positions is None:
        if len(cos) < rows:
            raise InputError(f"cos has {len(cos)} rows and x has {rows}; give one a row, or positions")
        return None
    check_sizes("positions", positions, (rows,), "x")
    known = positions.device.type == "cpu" and rows > 0
    if known and not 0 <= int(positions.min()) <= int(positions.max()) < len(cos):
        raise InputError(f"positions reach outside of cos, which has {len(cos)} rows")
    return check_integers("positions", positions, 1, device)


def _norm(
    layer: bool,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor | None,
) -> torch.Tensor:
    check_floats("x", x)
    check_no_gradient("x", x, _WAY_OUT)
    if x.dim() not in (2, 3) or not 1 <= x.shape[-1] <= MOST_DIM:
        raise InputError(
            f"x is {describe(x)}; give [rows, dim] or [rows, heads, dim], dim from 1 to {MOST_DIM}"
        )
    dim = x.shape[-1]
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check_floats(name, vector, x.device)
            check_sizes(name, vector, (dim,), f"x {list(x.shape)}")
    if not (isinstance(eps, int | float) and math.isfinite(eps) and eps >= 0):
        raise InputError(f"eps is {eps!r}; give a number of 0 or more")
    if residual is not None:
        check_floats("residual", residual, x.device)
        check_sizes("residual", residual, tuple(x.shape), "x")
    out = result(out, tuple(x.shape), x.dtype if residual is None else residual.dtype, x.device)
    if not out.numel():
        return out
    added = x if residual is None else residual
    block = triton.next_power_of_2(dim)
    kernels.norm[(x.shape[0], 1 if x.dim() == 2 else x.shape[1])](
        x, added, weight, weight if bias is None else bias, out,
        *_strides(x), *_strides(added), *_strides(out), float(eps),
        dim, block, layer, residual is not None, bias is not None,
        num_warps=max(1, min(16, block // 512)), **OPTIONS,
    )  # fmt: skip
    return out


def _check_matrix(name: str, x: torch.Tensor) -> None:
    check_floats(name, x)
    check_no_gradient(name, x, _WAY_OUT)
    if x.dim() != 2:
        raise InputError(f"{name} is {describe(x)}; give a matrix of 2 dimensions")


def _strides(x: torch.Tensor) -> tuple[int, int]:
    return x.stride(0), x.stride(1) if x.dim() == 3 else 0
