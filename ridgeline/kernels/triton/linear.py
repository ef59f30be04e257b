"""Linear layers on a GPU: plain weights through PyTorch's matrix product, quantised ones through a kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.linear import FORMATS, PackedLinear, pack_linear
from ridgeline.kernels.triton import activations, naive
from ridgeline.kernels.triton.arguments import (
    check_floats,
    check_no_gradient,
    check_sizes,
    describe,
    result,
)
from ridgeline.kernels.triton.configs import tiles
from ridgeline.kernels.triton.linear_kernel import linear as linear_kernel
from ridgeline.kernels.triton.packing import integers

#: Up to so many rows a product is bound by its weight, and has tiles of their own.
FEW_ROWS = 16


@dataclass(frozen=True, eq=False)
class GpuLinear:
    """A weight ``[out, in]`` as the GPU's functions read it.

    - ``data``: the weight itself, ``[out, in]`` of float32, bfloat16 or float16; int8 ``[out, width]``; or
      4-bit uint8 ``[out, width]``, whose byte i holds input i in its low half and input i + width in its high
      one.
    - ``scales``: float16 ``[groups, out]``; ``zeros``: int8 ``[groups, out]``. None where the format has
      none.
    - ``gated``: the first half of outputs gates the second; products have ``out / 2`` columns.
    """

    data: torch.Tensor
    scales: torch.Tensor | None
    zeros: torch.Tensor | None
    shape: tuple[int, int]
    format: str
    gated: bool = False

    @classmethod
    def of(cls, packed: PackedLinear, device: torch.device | str) -> GpuLinear:
        """A weight packed for the CPU, with the same integers and scales."""
        kind = packed.format
        if kind in ("fp32", "bf16"):
            weight = packed.unpack().to(torch.bfloat16 if kind == "bf16" else torch.float32)
            return cls(weight.to(device), None, None, packed.shape, kind, packed.gated)
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
        on = [None if x is None else x.contiguous().to(device) for x in (data, scales, zeros)]
        return cls(*on, packed.shape, kind, packed.gated)

    @property
    def columns(self) -> int:
        return self.shape[0] // 2 if self.gated else self.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.data, self.scales, self.zeros) if x is not None)

    @property
    def group(self) -> int:
        """Inputs that share a scale, 0 for a whole row."""
        return FORMATS[self.format][1]

    def unpack(self) -> torch.Tensor:
        """The float32 weight ``[out, in]`` that this one stands for."""
        return self.rows(torch.arange(self.shape[0], device=self.data.device))

    def rows(self, outputs: torch.Tensor) -> torch.Tensor:
        """Those rows of the weight in float32, ``[len(outputs), in]``, plain ones in their own dtype."""
        data = self.data.index_select(0, outputs)
        if self.scales is None:
            return data
        if not self.group:
            return (data.float() * self.scales[0, outputs, None].float())[:, : self.shape[1]]
        q = torch.cat((data & 15, data >> 4), 1).float().unflatten(1, (-1, self.group))
        zeros = 8 if self.zeros is None else self.zeros[:, outputs].T[..., None].float()
        weight = (q - zeros) * self.scales[:, outputs].T[..., None].float()
        return weight.flatten(1)[:, : self.shape[1]]


def gpu_linear(
    weight: torch.Tensor, format: str, *, gated: bool = False, device: torch.device | str | None = None
) -> GpuLinear:
    """``weight`` [out, in] in ``format``, quantised as :func:`ridgeline.kernels.pack_linear` does on the
    CPU."""
    packed = pack_linear(weight.cpu(), format, gated=gated)
    return GpuLinear.of(packed, weight.device if device is None else device)


def linear(
    x: torch.Tensor,
    packed: GpuLinear,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """residual + activation(x W^T + bias), ``[rows, columns]``, as :func:`ridgeline.kernels.linear`.

    x stays in floating point: integer weights meet it exactly, in its own dtype, and are summed in float32.
    With plain weights x, weight and bias have one dtype, and sums are those of PyTorch's matrix product.

    Raises InputError that names the argument for a wrong type, dtype, shape, stride or device.
    """
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
    if packed.scales is None:
        y = naive.linear(x, packed.data, bias, activation, residual)
        return y if out is None else result(out, shape, x.dtype, x.device).copy_(y)
    out = result(out, shape, x.dtype, x.device)
    if out.numel():
        _launch(x, packed, bias, number, residual, out)
    return out


def _launch(
    x: torch.Tensor,
    packed: GpuLinear,
    bias: torch.Tensor | None,
    activation: int,
    residual: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    rows, columns = out.shape
    few = rows <= FEW_ROWS
    tile = tiles("linear_few" if few else "linear_many", 1, x.element_size(), x.device)
    bits = 4 if packed.group else 8
    # A tile of 4-bit inputs stays inside its group, which has one scale.
    inner = min(tile.k, packed.group) if bits == 4 else tile.k
    # A gated program holds two sums; with many rows two whole tiles of them don't fit its registers.
    n = tile.n // 2 if packed.gated and not few and tile.n >= 64 else tile.n
    linear_kernel[(-(-columns // n), -(-rows // tile.m))](
        x, packed.data, packed.scales, packed.scales if packed.zeros is None else packed.zeros,
        x if bias is None else bias, x if residual is None else residual, out,
        rows, columns, x.shape[1], packed.data.shape[1], packed.shape[0],
        x.stride(0), 0 if residual is None else residual.stride(0), out.stride(0),
        bits, packed.group, packed.zeros is not None, bias is not None, activation, packed.gated,
        residual is not None, tile.m, n, inner,
        **tile.options(),
    )  # fmt: skip
