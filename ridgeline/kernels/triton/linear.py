"""Linear layers on a GPU: plain weights through PyTorch's matrix product, quantised ones through a kernel.

:func:`linear_invariant` sums every row in one fixed order, plain weights too, so that a row's bits depend on
that row and the weight alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.checks import has_overlapping_rows, overlap, same_place
from ridgeline.kernels.fp8 import FP8_BLOCKS, Fp8Linear, pack_fp8, spread
from ridgeline.kernels.linear import PackedLinear, pack_linear
from ridgeline.kernels.triton import activations, naive
from ridgeline.kernels.triton.arguments import (
    check_floats,
    check_no_gradient,
    check_sizes,
    describe,
    result,
)
from ridgeline.kernels.triton.linear_launch import Call, fast, invariant, launch
from ridgeline.kernels.triton.packing import integers
from ridgeline.ops.formats import get_format

#: Rows of a stored weight begin at multiples of so many bytes, which is what a thread copies at a time.
_ROW_BYTES = 16
_PLAIN = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True, eq=False)
class GpuLinear:
    """A weight ``[out, in]`` as the GPU's functions read it.

    - ``data``: the weight itself, ``[out, in]`` of float32, bfloat16 or float16; int8 ``[out, width]``; FP8's
      bits as uint8 ``[out, width]``; or 4-bit uint8 ``[out, width]``, whose byte i holds input i in its low
      half and input i + width in its high one. What is behind a row's inputs is 0.
    - ``scales``: float16 ``[groups, out]``, of FP8 float32 ``[groups of inputs, groups of outputs]``;
      ``zeros``: int8 ``[groups, out]``. None where the format has none.
    - ``gated``: the first half of outputs gates the second; products have ``out / 2`` columns.
    """

    data: torch.Tensor
    scales: torch.Tensor | None
    zeros: torch.Tensor | None
    shape: tuple[int, int]
    format: str
    gated: bool = False

    @classmethod
    def of(cls, packed: PackedLinear | Fp8Linear, device: torch.device | str) -> GpuLinear:
        """A packed weight, with the same numbers and scales."""
        kind = packed.format
        if kind in ("fp32", "bf16"):
            weight = packed.unpack().to(torch.bfloat16 if kind == "bf16" else torch.float32)
            return cls(weight.to(device), None, None, packed.shape, kind, packed.gated)
        if isinstance(packed, Fp8Linear):
            return cls(
                _aligned(packed.data).to(device),
                packed.scales.to(device),
                None,
                packed.shape,
                kind,
                packed.gated,
            )
        found = integers(packed)
        data, scales, zeros = found.q, found.scales, found.zeros
        if found.group:
            if len(scales) % 2:  # as many groups in either half
                data = torch.nn.functional.pad(data, (0, found.group))
                scales = torch.nn.functional.pad(scales, (0, 0, 0, 1))
                zeros = None if zeros is None else torch.nn.functional.pad(zeros, (0, 0, 0, 1))
            codes = (data + (0 if zeros is not None else 8)).to(torch.uint8)
            low, high = codes.chunk(2, dim=1)
            data = low | high << 4
        else:
            data = _aligned(data)
        on = [None if x is None else x.contiguous().to(device) for x in (data, scales, zeros)]
        return cls(*on, packed.shape, kind, packed.gated)

    @classmethod
    def plain(cls, weight: torch.Tensor, *, gated: bool = False) -> GpuLinear:
        """A weight [out, in] as it is, of one of the dtypes that kernels read."""
        return cls(weight, None, None, tuple(weight.shape), _PLAIN[weight.dtype], gated)

    @property
    def columns(self) -> int:
        return self.shape[0] // 2 if self.gated else self.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.data, self.scales, self.zeros) if x is not None)

    @property
    def group(self) -> int:
        """Inputs that share a scale, 0 for a whole row."""
        return get_format(self.format).group or 0

    @property
    def scale_rows(self) -> int:
        """Outputs that share a scale."""
        return FP8_BLOCKS.get(self.format, (1, 0))[0]

    def unpack(self) -> torch.Tensor:
        """The float32 weight ``[out, in]`` that this one stands for."""
        return self.rows(torch.arange(self.shape[0], device=self.data.device))

    def rows(self, outputs: torch.Tensor) -> torch.Tensor:
        """Those rows of the weight in float32, ``[len(outputs), in]``, plain ones in their own dtype."""
        data, inputs = self.data.index_select(0, outputs), self.shape[1]
        if self.scales is None:
            return data
        if self.format in FP8_BLOCKS:
            scales = self.scales[:, outputs // self.scale_rows].T
            wide = data.view(torch.float8_e4m3fn).float()[:, :inputs]
            return wide * spread(scales, 1, self.group or inputs)[:, :inputs]
        if not self.group:
            return (data.float() * self.scales[0, outputs, None].float())[:, :inputs]
        q = torch.cat((data & 15, data >> 4), 1).float().unflatten(1, (-1, self.group))
        zeros = 8 if self.zeros is None else self.zeros[:, outputs].T[..., None].float()
        weight = (q - zeros) * self.scales[:, outputs].T[..., None].float()
        return weight.flatten(1)[:, :inputs]


def _aligned(data: torch.Tensor) -> torch.Tensor:
    """Rows of bytes, padded with zeros, so that each begins where a thread may copy from."""
    return torch.nn.functional.pad(data, (0, -data.shape[1] % _ROW_BYTES)).contiguous()


def gpu_linear(
    weight: torch.Tensor, format: str, *, gated: bool = False, device: torch.device | str | None = None
) -> GpuLinear:
    """``weight`` [out, in] in ``format``: as :func:`ridgeline.kernels.pack_linear` packs it on the CPU, or in
    FP8, by :func:`ridgeline.kernels.fp8.pack_fp8`."""
    device = weight.device if device is None else device
    if format in FP8_BLOCKS:
        return GpuLinear.of(pack_fp8(weight, format, gated=gated), device)
    return GpuLinear.of(pack_linear(weight.cpu(), format, gated=gated), device)


def linear(
    x: torch.Tensor,
    packed: GpuLinear,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """residual + activation(x W^T + bias), ``[rows, columns]``, as :func:`ridgeline.kernels.linear`.

    x stays in floating point: integer and FP8 weights meet it exactly, in its own dtype, and are summed in
    float32. Only where more than 64 rows meet FP8 weights on a GPU that multiplies FP8 (compute capability
    8.9) is x quantised, too, each row to FP8 with a scale of its own; a row that is not finite gives NaN
    then. With plain weights x, weight and bias have one dtype, and sums are those of PyTorch's matrix
    product.

    Raises InputError that names the argument for a wrong type, dtype, shape, stride or device, and for
    ``out`` that shares memory with x, or some of it with ``residual``.
    """
    call = _call(x, packed, bias, activation, residual, out)
    if packed.scales is not None:
        return launch(call, fast(call))
    y = naive.linear(x, packed.data, bias, activation, residual)
    return y if out is None else out.copy_(y)


def linear_invariant(
    x: torch.Tensor,
    packed: GpuLinear,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As :func:`linear`, but a row's bits depend on nothing but that row and the weight: not on how many rows
    there are, and not on its place among them. x is never quantised, and plain weights have x's dtype and
    are summed in float32, as the others are, and rounded once, behind the residual.

    Every number of rows takes tiles of one size, so that the same instructions sum the inputs in the same
    order, and multiplications are not fused with additions outside of them.
    """
    call = _call(x, packed, bias, activation, residual, out)
    if packed.scales is None and packed.data.dtype != x.dtype:
        raise InputError(f"x is {x.dtype} and the weight {packed.data.dtype}; give one dtype")
    return launch(call, invariant(call))


def _call(
    x: torch.Tensor,
    packed: GpuLinear,
    bias: torch.Tensor | None,
    activation: str | None,
    residual: torch.Tensor | None,
    out: torch.Tensor | None,
) -> Call:
    """The arguments, checked."""
    if not isinstance(packed, GpuLinear):
        raise InputError(f"packed is a {type(packed).__name__}; give what gpu_linear returns")
    check_floats("x", x, packed.data.device)
    check_no_gradient("x", x, "use torch.no_grad()")
    if x.dim() != 2 or x.shape[1] != packed.shape[1]:
        raise InputError(
            f"x is {describe(x)}; the weight {list(packed.shape)} takes [rows, {packed.shape[1]}]"
        )
    if bias is not None:
        check_floats("bias", bias, x.device)
        check_sizes("bias", bias, packed.shape[:1], "the weight")
    number, _ = activations.number(activation, packed.gated)
    shape = (x.shape[0], packed.columns)
    if residual is not None:
        check_floats("residual", residual, x.device)
        check_sizes("residual", residual, shape, "the result")
    if out is not None:
        result(out, shape, x.dtype, x.device)
        _check_apart(out, x, residual)
    return Call(x, packed, bias, number, residual, out)


def _check_apart(out: torch.Tensor, x: torch.Tensor, residual: torch.Tensor | None) -> None:
    """Programs write tiles of ``out`` while others still read x."""
    if has_overlapping_rows(out):
        raise InputError(f"out has rows that overlap (stride {out.stride(0)}); give one whose rows do not")
    if overlap(out, x):
        raise InputError("out shares memory with x; give one of its own")
    if residual is not None and not same_place(out, residual) and overlap(out, residual):
        raise InputError(
            "out shares part of its memory with residual; give the same tensor or one of its own"
        )
