"""Linear layers with packed weights: x W^T with what comes before and after it in one pass.

A weight is packed once, by :func:`pack_linear`, and then serves one row and thousands alike: a row's
result is the same to the last bit alone, in a batch, and with any number of threads, because every
output is summed over the inputs in one fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ridgeline import _native
from ridgeline.errors import InputError
from ridgeline.kernels.checks import (
    DTYPES,
    check_matrix,
    check_no_gradient,
    check_sequences,
    check_vector,
    describe,
    has_overlapping_rows,
    overlap,
    same_place,
)
from ridgeline.kernels.dispatch import on_gpu

#: What a weight can be packed as: the kind of number, inputs that share a scale, zero points or not.
FORMATS: dict[str, tuple[_native.Format, int, bool]] = {
    "fp32": (_native.Format.fp32, 0, False),
    "bf16": (_native.Format.bf16, 0, False),
    "int8": (_native.Format.int8, 0, False),
    "int4-g32": (_native.Format.int4, 32, False),
    "int4-g64": (_native.Format.int4, 64, False),
    "int4-g128": (_native.Format.int4, 128, False),
    "int4-g32-zp": (_native.Format.int4, 32, True),
    "int4-g64-zp": (_native.Format.int4, 64, True),
    "int4-g128-zp": (_native.Format.int4, 128, True),
}
#: Integer sums are 32 bits wide: 127 * 127 times this still fits.
MOST_INPUTS = 131_072

GATED = "_gated"
ACTIVATIONS = {
    "silu": _native.Activation.silu,
    "gelu": _native.Activation.gelu,
    "gelu_tanh": _native.Activation.gelu_tanh,
    "relu": _native.Activation.relu,
    "tanh": _native.Activation.tanh,
}

#: Bytes of weight that are packed between two reports of progress.
_PACK_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class PackedLinear:
    """A weight ``[out, in]`` as the kernels read it.

    ``data`` is ``[bytes]`` of uint8 and holds everything, scales and zero points included; it is
    the same for every instruction set, so it may be saved, and later be given a memory-mapped file.
    A ``gated`` weight's first half of outputs gates its second half; products have ``out / 2`` columns.

    Raises InputError for a format that :data:`FORMATS` lacks, for data of another length than the format
    and shape need, and for data with gaps or at an address that is no multiple of 4.
    """

    data: torch.Tensor
    shape: tuple[int, int]
    format: str
    gated: bool = False
    layout: _native.Layout = field(init=False, repr=False)

    def __post_init__(self) -> None:
        layout = _layout(self.shape, self.format, self.gated)
        data = self.data
        if data.dtype != torch.uint8 or data.shape != (layout.bytes,) or data.device.type != "cpu":
            raise InputError(
                f"data is {describe(data)}; a weight {list(self.shape)} as {self.format} takes uint8 "
                f"[{layout.bytes}] on the CPU"
            )
        if not data.is_contiguous():
            raise InputError("data has gaps between its bytes; call data.contiguous()")
        if data.data_ptr() % 4:
            raise InputError("data begins at an address that is no multiple of 4; call data.clone()")
        object.__setattr__(self, "layout", layout)

    @property
    def columns(self) -> int:
        """Columns of a product: ``out``, or half of it for a gated weight."""
        return self.layout.product_columns

    @property
    def nbytes(self) -> int:
        """Bytes of memory, padding to whole panels of 32 outputs included."""
        return self.layout.bytes

    def unpack(self) -> torch.Tensor:
        """The float32 weight ``[out, in]`` that the packed one stands for."""
        weight = torch.empty(self.shape, dtype=torch.float32)
        _native.unpack(self.layout, self.data.data_ptr(), weight.data_ptr())
        return weight


def packed_bytes(shape: tuple[int, int], format: str, *, gated: bool = False) -> int:
    """Bytes of a packed weight ``[out, in]``: the length that :class:`PackedLinear` wants of its data.

    Raises InputError as :func:`pack_linear` does.
    """
    return _layout(shape, format, gated).bytes


def pack_linear(
    weight: torch.Tensor,
    format: str,
    *,
    gated: bool = False,
    progress: Callable[[int], None] | None = None,
) -> PackedLinear:
    """Pack ``weight``, float32 or bfloat16 ``[out, in]``, on all threads.

    ``format`` is one of :data:`FORMATS`. fp32 and bf16 round each weight to nearest. The integer
    formats round to nearest, ties to even, against a scale in fp16:

    - ``int8``: one scale an output, max|w| / 127; -127 <= q <= 127.
    - ``int4-gN``: one scale for N inputs of an output, w = scale q with -8 <= q <= 7. With m the weight of
      largest size, sign included, the scale is that of -m / 6.75 .. -m / 8.25 and m / 6.5 .. m / 7.5, in
      steps of 1/8, whose squared error is the least, then fitted to its q by least squares while that helps.
    - ``int4-gN-zp``: w = scale (q - zero) with 0 <= q, zero <= 15, scale = (hi - lo) / 15 and
      zero = -lo / scale, rounded, where lo = min(w, 0) and hi = max(w, 0).

    ``gated`` packs a weight whose first half of outputs gates the second half. ``progress`` is called
    with the bytes of ``weight`` that have been packed since its last call.

    Raises InputError for a weight of another dtype, shape, stride or device, one whose integer
    format cannot hold it (not finite, or beyond the range of fp16 scales), an odd number of
    outputs where ``gated``, and an unknown format.
    """
    check_matrix("weight", weight)
    out, inputs = weight.shape
    layout = _layout((out, inputs), format, gated)
    data = torch.empty(layout.bytes, dtype=torch.uint8)
    _native.advise_large_pages(data.data_ptr(), layout.bytes)
    panel_bytes = max(1, weight.nbytes // max(1, layout.panels))
    panels = max(1, _PACK_BYTES // panel_bytes)
    for begin in range(0, layout.panels, panels):
        end = min(begin + panels, layout.panels)
        try:
            _native.pack(
                layout,
                weight.data_ptr(),
                weight.stride(0),
                DTYPES[weight.dtype],
                data.data_ptr(),
                begin,
                end,
            )
        except ValueError as error:
            raise InputError(f"weight {error}; it cannot be packed as {format}") from None
        if progress is not None:
            progress(panel_bytes * (end - begin))
    return PackedLinear(data, (out, inputs), format, gated)


@on_gpu
def linear(
    x: torch.Tensor,
    packed: PackedLinear,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """residual + activation(x W^T + bias), ``[rows, columns]``.

    - ``x``: float32 or bfloat16 ``[rows, in]``, rows >= 0, its rows contiguous.
    - ``bias``: float32 or bfloat16 ``[out]``, contiguous.
    - ``activation``: silu, gelu (exact), gelu_tanh, relu or tanh; for a gated weight one of these with
      ``_gated`` after it, act(first half) * second half.
    - ``residual``: the shape and dtype of the result. It may be ``out`` itself.
    - ``out``: where the result goes, float32 or bfloat16 ``[rows, columns]``, its rows contiguous.
      A new tensor of x's dtype if None.

    Sums, bias, activation and residual are float32; the result is rounded once. By format: ``fp32``
    multiplies float32; ``bf16`` rounds x to bf16 and sums in float32; integer formats quantise each row of
    x to int8 (scale = max|x| / 127, round to nearest, ties to even), so that a row that holds a NaN or
    an infinity gives NaN in every column. :func:`linear_weight_only` leaves x in floating point.

    Raises InputError that names the argument for a wrong type, dtype, shape, stride or device,
    for ``out`` that shares memory with ``x``, and for an x that wants a gradient: there is none.
    """
    return _run(_native.linear, x, packed, bias, activation, residual, out)


def modulated_linear(
    x: torch.Tensor,
    packed: PackedLinear,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor,
    gate: torch.Tensor,
    sequences: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """residual + gate * activation(x W^T + bias), with the gate of each row's sequence (adaLN-Zero; Peebles
    and Xie 2023); on the CPU.

    - ``gate``: float32 ``[sequences, columns]``.
    - ``sequences``: int64 ``[rows]``, the row of ``gate`` that each row takes.

    The rest is as for :func:`linear`; the product with the gate is rounded to float32 before it is added.
    Raises InputError for a sequence without a gate, before anything is written.
    """
    check_matrix("gate", gate)
    fits = gate.dtype == torch.float32 and gate.shape[1] == getattr(packed, "columns", None)
    if isinstance(packed, PackedLinear) and not fits:
        raise InputError(f"gate is {describe(gate)}; give float32 [sequences, {packed.columns}]")
    check_sequences(sequences, len(x), len(gate), "gate")
    gates = _native.SequenceGate(gate.data_ptr(), gate.stride(0), sequences.data_ptr())
    return _run(_native.linear, x, packed, bias, activation, residual, out, gates)


def linear_weight_only(
    x: torch.Tensor,
    packed: PackedLinear,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`linear`, but integer weights meet x rounded to bf16 instead of int8.

    Closer to the unquantised product and slower on many rows. fp32 and bf16 weights give what
    :func:`linear` gives.
    """
    return _run(_native.linear_weight_only, x, packed, bias, activation, residual, out)


def _run(
    kernel: Callable[..., None],
    x: torch.Tensor,
    packed: PackedLinear,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
    out: torch.Tensor | None,
    gate: _native.SequenceGate | None = None,
) -> torch.Tensor:
    if not isinstance(packed, PackedLinear):
        raise InputError(f"packed is a {type(packed).__name__}; give what pack_linear returns")
    check_matrix("x", x)
    rows, inputs = x.shape
    if inputs != packed.shape[1]:
        raise InputError(
            f"x is {describe(x)}; the weight {list(packed.shape)} takes {packed.shape[1]} columns"
        )
    check_no_gradient("x", x)
    if bias is not None:
        check_vector("bias", bias, packed.shape[0])
    shape = (rows, packed.columns)
    if out is None:
        out = torch.empty(shape, dtype=x.dtype)
    else:
        _check_out(out, shape, x, residual)
    if residual is not None:
        _check_shape("residual", residual, shape)
        if residual.dtype != out.dtype:
            raise InputError(
                f"residual is {residual.dtype} and the result {out.dtype}; they must be the same"
            )
    kernel(
        packed.layout,
        packed.data.data_ptr(),
        x.data_ptr(),
        x.stride(0),
        DTYPES[x.dtype],
        rows,
        0 if bias is None else bias.data_ptr(),
        _native.Dtype.fp32 if bias is None else DTYPES[bias.dtype],
        _activation(activation, packed.gated),
        0 if residual is None else residual.data_ptr(),
        0 if residual is None else residual.stride(0),
        out.data_ptr(),
        out.stride(0),
        DTYPES[out.dtype],
        _native.SequenceGate.none() if gate is None else gate,
    )
    return out


def _layout(shape: tuple[int, int], format: str, gated: bool) -> _native.Layout:
    if format not in FORMATS:
        raise InputError(f"format is {format!r}; choose one of: {', '.join(FORMATS)}")
    kind, group, zero_points = FORMATS[format]
    out, inputs = shape
    if out < 1 or inputs < 1:
        raise InputError(f"weight is {list(shape)}; give one with at least one output and one input")
    if gated and out % 2:
        raise InputError(f"weight has {out} outputs; a gated one has as many gates as values, an even number")
    if kind in (_native.Format.int8, _native.Format.int4) and inputs > MOST_INPUTS:
        raise InputError(f"weight has {inputs} inputs; {format} takes {MOST_INPUTS} at most")
    return _native.Layout(kind, out, inputs, group, zero_points, gated)


def _activation(name: str | None, gated: bool) -> _native.Activation:
    if name is None and not gated:
        return _native.Activation.none
    plain = None if name is None else name.removesuffix(GATED)
    if plain not in ACTIVATIONS:
        raise InputError(f"activation is {name!r}; choose one of: {', '.join(_activations(gated))}")
    if name.endswith(GATED) != gated:
        raise InputError(f"activation is {name!r}, but the weight was packed with gated={gated}")
    return ACTIVATIONS[plain]


def _activations(gated: bool) -> list[str]:
    return [name + GATED for name in ACTIVATIONS] if gated else ["None", *ACTIVATIONS]


def _check_shape(name: str, tensor: torch.Tensor, shape: tuple[int, int]) -> None:
    check_matrix(name, tensor)
    if tensor.shape != shape:
        raise InputError(f"{name} is {describe(tensor)}; the result is {list(shape)}")


def _check_out(
    out: torch.Tensor, shape: tuple[int, int], x: torch.Tensor, residual: torch.Tensor | None
) -> None:
    _check_shape("out", out, shape)
    if has_overlapping_rows(out):
        raise InputError(f"out has rows that overlap (stride {out.stride(0)}); give one whose rows do not")
    if overlap(out, x):
        raise InputError("out shares memory with x; give one of its own")
    if isinstance(residual, torch.Tensor) and not same_place(out, residual) and overlap(out, residual):
        raise InputError(
            "out shares part of its memory with residual; give the same tensor or one of its own"
        )
