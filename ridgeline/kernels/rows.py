"""What lies between the matrix products: norms, sums, activations, rotations, rows of a table.

Each function computes a row from that row alone, in float32, and rounds once when it stores: a row's
result is the same to the last bit alone, in a batch, and with any number of threads. Results are new
tensors unless ``out`` is given, which may be the input itself.

All raise InputError that names the argument for a wrong type, dtype, shape, stride or device, for an
``out`` that overlaps an input without being it, and for an input that wants a gradient: there is none.
"""

from __future__ import annotations

import math

import torch

from ridgeline import _native
from ridgeline.errors import InputError
from ridgeline.kernels.checks import (
    DTYPES,
    check_integers,
    check_matrix,
    check_no_gradient,
    check_sequences,
    check_tensor,
    check_vector,
    describe,
    has_overlapping_rows,
    overlap,
    same_place,
)
from ridgeline.kernels.dispatch import on_gpu
from ridgeline.kernels.linear import ACTIVATIONS, GATED, PackedLinear

_KINDS = {"layer": _native.NormKind.layer, "rms": _native.NormKind.rms}


@on_gpu
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, eps: float, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x / sqrt(mean of x^2 + eps) * weight over the last dimension (Zhang and Sennrich 2019).

    - ``x``: float32 or bfloat16 ``[rows, dim]``, or ``[rows, heads, dim]`` to normalise each head, its
      last dimension contiguous.
    - ``weight``: float32 or bfloat16 ``[dim]``; None for ones, where x lies on the CPU.
    - ``eps``: 0 or more.
    - ``out``: float32 or bfloat16, x's shape. A new tensor of x's dtype if None.
    """
    return _norm(_native.NormKind.rms, x, None, weight, None, eps, out)


@on_gpu
def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension (Ba et al. 2016).

    The variance is the mean of the squares. ``bias`` has weight's shape and dtype; the rest as
    :func:`rms_norm`.
    """
    return _norm(_native.NormKind.layer, x, None, weight, bias, eps, out)


def modulated_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    shift: torch.Tensor,
    scale: torch.Tensor,
    sequences: torch.Tensor,
    *,
    kind: str = "layer",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`layer_norm` or :func:`rms_norm`, as ``kind`` says (layer or rms), of each row, times 1 + scale
    plus shift, with the vectors of the row's sequence (adaLN; Peebles and Xie 2023).

    - ``x``: float32 or bfloat16 ``[rows, dim]`` on the CPU; ``weight`` and ``bias`` as there, or None.
    - ``shift``, ``scale``: float32 ``[sequences, dim]``.
    - ``sequences``: int64 ``[rows]``, the row of ``shift`` and ``scale`` that each row takes.

    Raises InputError for a sequence without a row, before anything is written.
    """
    _checked_matrix("x", x)
    if kind not in _KINDS:
        raise InputError(f"kind is {kind!r}; choose one of: {', '.join(_KINDS)}")
    for name, vectors in (("shift", shift), ("scale", scale)):
        _checked_matrix(name, vectors)
        if vectors.dtype != torch.float32 or vectors.shape != (len(shift), x.shape[1]):
            raise InputError(f"{name} is {describe(vectors)}; give float32 [{len(shift)}, {x.shape[1]}]")
    check_sequences(sequences, len(x), len(shift), "shift")
    modulation = _native.Modulation(
        shift.data_ptr(), shift.stride(0), scale.data_ptr(), scale.stride(0), sequences.data_ptr()
    )
    return _norm(_KINDS[kind], x, None, weight, bias, eps, out, modulation)


@on_gpu
def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """residual += x in place, then :func:`rms_norm` of it, in one pass and with the bits of the two.

    ``residual`` is float32 or bfloat16 of x's shape; a new result has its dtype. ``out`` may be ``x``.
    """
    return _norm(_native.NormKind.rms, x, residual, weight, None, eps, out)


@on_gpu
def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """residual += x in place, then :func:`layer_norm` of it, as :func:`add_rms_norm`."""
    return _norm(_native.NormKind.layer, x, residual, weight, bias, eps, out)


@on_gpu
def embed(
    ids: torch.Tensor,
    table: torch.Tensor | PackedLinear,
    *,
    offset: int = 0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Row ``ids[i] + offset`` of a table for every i: ``[rows, columns]``.

    - ``ids``: int64 ``[rows]``.
    - ``table``: float32 or bfloat16 ``[ids, columns]``, or a packed weight of that shape (a head that
      shares the embedding), whose rows come out as :meth:`PackedLinear.unpack` gives them.
    - ``out``: float32 or bfloat16 ``[rows, columns]``. If None a new tensor of the table's dtype, float32 for
      a packed one.

    Raises InputError for an id without a row, before anything is written.
    """
    check_integers("ids", ids)
    shape = table.shape if isinstance(table, PackedLinear) else _checked_matrix("table", table).shape
    dtype = torch.float32 if isinstance(table, PackedLinear) else table.dtype
    out = _result(out, (len(ids), shape[1]), dtype)
    try:
        if isinstance(table, PackedLinear):
            _native.gather_packed(
                len(ids),
                shape[1],
                ids.data_ptr(),
                offset,
                table.layout,
                table.data.data_ptr(),
                _vectors(out),
            )
        else:
            _check_apart(out, "table", table)
            _native.gather(
                len(ids), shape[1], ids.data_ptr(), offset, shape[0], _vectors(table), _vectors(out)
            )
    except ValueError as error:
        raise InputError(f"ids {error}") from None
    return out


@on_gpu
def take_rows(x: torch.Tensor, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rows of ``x``, float32 or bfloat16 ``[n, columns]``, by int64 ``rows``: ``[len(rows), columns]``.

    Raises InputError for a row that x lacks, before anything is written.
    """
    check_integers("rows", rows)
    count, columns = _checked_matrix("x", x).shape
    out = _result(out, (len(rows), columns), x.dtype)
    _check_apart(out, "x", x)
    try:
        _native.gather(len(rows), columns, rows.data_ptr(), 0, count, _vectors(x), _vectors(out))
    except ValueError as error:
        raise InputError(f"rows {error}") from None
    return out


@on_gpu
def add(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """a + b, float32 or bfloat16 ``[rows, columns]`` each.

    ``out`` may be a or b; a new result has a's dtype.
    """
    shape = _checked_matrix("a", a).shape
    if _checked_matrix("b", b).shape != shape:
        raise InputError(f"b is {describe(b)} and a is {list(shape)}; give two of one shape")
    out = _result(out, shape, a.dtype)
    _check_same_or_apart(out, "a", a)
    _check_same_or_apart(out, "b", b)
    _native.add(*shape, _vectors(a), _vectors(b), _vectors(out))
    return out


@on_gpu
def activate(x: torch.Tensor, activation: str, out: torch.Tensor | None = None) -> torch.Tensor:
    """act(x), or act(first half of the columns) * second half where the name ends in ``_gated``.

    - ``x``: float32 or bfloat16 ``[rows, columns]``.
    - ``activation``: silu, gelu (exact), gelu_tanh, relu or tanh, with ``_gated`` or without.
    - ``out``: float32 or bfloat16 of the result's shape, ``[rows, columns / 2]`` where gated. A new tensor of
      x's dtype if None.
    """
    rows, columns = _checked_matrix("x", x).shape
    gated = isinstance(activation, str) and activation.endswith(GATED)
    plain = activation.removesuffix(GATED) if isinstance(activation, str) else activation
    if plain not in ACTIVATIONS:
        names = [*ACTIVATIONS, *(name + GATED for name in ACTIVATIONS)]
        raise InputError(f"activation is {activation!r}; choose one of: {', '.join(names)}")
    if gated and columns % 2:
        raise InputError(f"x has {columns} columns; a gated activation takes as many gates as values")
    out = _result(out, (rows, columns // 2 if gated else columns), x.dtype)
    if gated:
        _check_apart(out, "x", x)
    else:
        _check_same_or_apart(out, "x", x)
    _native.activate(rows, out.shape[1], ACTIVATIONS[plain], gated, _vectors(x), _vectors(out))
    return out


@on_gpu
def softcap(x: torch.Tensor, cap: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """cap tanh(x / cap), float32 or bfloat16 ``[rows, columns]``; ``cap`` is above 0.

    ``out`` may be x; a new result has x's dtype.
    """
    rows, columns = _checked_matrix("x", x).shape
    if not isinstance(cap, int | float) or not 0 < cap < math.inf:
        raise InputError(f"cap is {cap!r}; give a finite number above 0")
    out = _result(out, (rows, columns), x.dtype)
    _check_same_or_apart(out, "x", x)
    _native.softcap(rows, columns, cap, _vectors(x), _vectors(out))
    return out


@on_gpu
def rotate(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotary position embedding (Su et al. 2021), of two halves: x cos + (-x2, x1) sin.

    - ``x``: float32 or bfloat16 ``[rows, heads, dim]``, dim even and contiguous; (x1, x2) are its halves. A
      view of the first elements of larger heads turns these alone.
    - ``cos``, ``sin``: float32 ``[angles, dim]``.
    - ``positions``: int64 ``[rows]``, the row of cos and sin that each row of x takes; its own if None, where
      there must be as many angles as rows.
    - ``out``: float32 or bfloat16, x's shape. A new tensor of x's dtype if None.

    Raises InputError for a position without angles, before anything is written.
    """
    _check_vectors("x", x)
    if x.dim() != 3 or x.shape[2] % 2:
        raise InputError(f"x is {describe(x)}; give [rows, heads, dim] with an even dim")
    rows, heads, dim = x.shape
    for name, angles in (("cos", cos), ("sin", sin)):
        _check_angles(name, angles, dim)
    if sin.shape != cos.shape or sin.stride() != cos.stride():
        raise InputError(f"sin is {describe(sin)} and cos {describe(cos)}; give two of one shape and stride")
    if positions is not None:
        check_integers("positions", positions)
    if len(cos if positions is None else positions) != rows:
        name = "cos" if positions is None else "positions"
        raise InputError(f"{name} has {len(cos if positions is None else positions)} rows and x has {rows}")
    out = _result(out, x.shape, x.dtype)
    _check_same_or_apart(out, "x", x)
    try:
        _native.rotate(
            rows,
            heads,
            dim,
            _vectors(x),
            cos.data_ptr(),
            sin.data_ptr(),
            len(cos),
            cos.stride(0),
            0 if positions is None else positions.data_ptr(),
            _vectors(out),
        )
    except ValueError as error:
        raise InputError(f"positions {error}") from None
    return out


def _norm(
    kind: _native.NormKind,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor | None,
    modulation: _native.Modulation | None = None,
) -> torch.Tensor:
    _check_vectors("x", x)
    dim = x.shape[-1]
    if weight is not None:
        check_vector("weight", weight, dim)
    if bias is not None:
        check_vector("bias", bias, dim)
        if weight is not None and bias.dtype != weight.dtype:
            raise InputError(f"bias is {bias.dtype} and weight {weight.dtype}; give two of one dtype")
    if not (isinstance(eps, (int, float)) and math.isfinite(eps) and eps >= 0):
        raise InputError(f"eps is {eps!r}; give a number of 0 or more")
    if residual is not None:
        _check_vectors("residual", residual)
        if residual.shape != x.shape or has_overlapping_rows(residual) or overlap(residual, x):
            raise InputError(
                f"residual is {describe(residual)}; give one of x's shape {list(x.shape)} and of memory of "
                "its own, since it is written to"
            )
    out = _result(out, x.shape, x.dtype if residual is None else residual.dtype)
    _check_same_or_apart(out, "x", x)
    if residual is not None:
        _check_apart(out, "residual", residual)
    _native.norm(
        kind,
        x.shape[0],
        1 if x.dim() == 2 else x.shape[1],
        dim,
        _vectors(x),
        _native.Vectors.none() if residual is None else _vectors(residual),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        next((DTYPES[w.dtype] for w in (weight, bias) if w is not None), _native.Dtype.fp32),
        eps,
        _vectors(out),
        _native.Modulation.none() if modulation is None else modulation,
    )
    return out


def _vectors(tensor: torch.Tensor) -> _native.Vectors:
    """A matrix, or vectors ``[rows, heads, dim]``, by address."""
    head_stride = tensor.stride(1) if tensor.dim() == 3 else 0
    return _native.Vectors(tensor.data_ptr(), tensor.stride(0), head_stride, DTYPES[tensor.dtype])


def _checked_matrix(name: str, tensor: torch.Tensor) -> torch.Tensor:
    check_matrix(name, tensor)
    check_no_gradient(name, tensor)
    return tensor


def _check_vectors(name: str, tensor: torch.Tensor) -> None:
    check_tensor(name, tensor)
    check_no_gradient(name, tensor)
    if tensor.dim() not in (2, 3) or tensor.shape[-1] == 0:
        raise InputError(f"{name} is {describe(tensor)}; give [rows, dim] or [rows, heads, dim], dim above 0")
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise InputError(
            f"{name} has a stride of {tensor.stride(-1)} in its last dimension; call {name}.contiguous()"
        )


def _check_angles(name: str, angles: torch.Tensor, dim: int) -> None:
    check_matrix(name, angles)
    if angles.dtype != torch.float32 or angles.shape[1] != dim:
        raise InputError(f"{name} is {describe(angles)}; give float32 [angles, {dim}]")


def _result(out: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """``out`` if it is fit to be written to, or a new tensor."""
    if out is None:
        return torch.empty(shape, dtype=dtype)
    check_tensor("out", out)
    if out.shape != shape:
        raise InputError(f"out is {describe(out)}; the result is {list(shape)}")
    if out.shape[-1] > 1 and out.stride(-1) != 1:
        raise InputError(f"out has a stride of {out.stride(-1)} in its last dimension; it must be 1")
    if has_overlapping_rows(out):
        raise InputError(f"out has rows that overlap (strides {out.stride()}); give one whose rows do not")
    return out


def _check_apart(out: torch.Tensor, name: str, tensor: torch.Tensor) -> None:
    if overlap(out, tensor):
        raise InputError(f"out shares memory with {name}; give one of its own")


def _check_same_or_apart(out: torch.Tensor, name: str, tensor: torch.Tensor) -> None:
    if not same_place(out, tensor) and overlap(out, tensor):
        raise InputError(f"out shares part of its memory with {name}; give the same tensor or one of its own")
