"""Cases of ``benchmarks.gpu``: FP8 weights beside PyTorch's products, and what invariance costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from ridgeline.kernels import triton as gpu
from ridgeline.kernels.triton.linear_launch import FP8_ROWS, quantise_rows

if TYPE_CHECKING:
    from benchmarks.gpu_cases import Case

#: Rows of a product: a decode step of one sequence and of several, and prompts.
ROWS = (1, 16, 256, 4096)


def scaled_mm(x: torch.Tensor, packed: gpu.GpuLinear) -> torch.Tensor:
    """PyTorch's product of FP8 with a scale a row and a column; x is quantised for it, as for ours."""
    codes, scales = quantise_rows(x)
    weight = packed.data.view(torch.float8_e4m3fn)
    return torch._scaled_mm(
        codes.contiguous().view(torch.float8_e4m3fn),
        weight.T,
        scales[:, None],
        packed.scales,
        out_dtype=x.dtype,
    )


def fp8_cases(case: type[Case], dense: type, device: torch.device, tiny: bool) -> Iterator[Case]:
    """Both FP8 formats. Where x is quantised, too, it is to three bits behind the first, which the tolerance
    allows for."""
    outputs, inner = (64, 96) if tiny else (14336, 4096)
    dtype = torch.float16 if tiny else torch.bfloat16
    for format in ("fp8", "fp8-128x128"):
        for rows in (1, 70) if tiny else ROWS:
            peers: dict[str, Callable[..., Any]] = {"cublas of 16 bits": dense()}
            if format == "fp8":
                peers["scaled_mm"] = scaled_mm
            yield case(
                f"{format} {rows}x{inner} -> {outputs}",
                partial(_packed, format, rows, outputs, inner, dtype, device),
                gpu.linear,
                lambda x, packed: x.double() @ packed.unpack().double().T,
                0.06 if rows > FP8_ROWS else 1e-2, flops=2 * rows * outputs * inner,
                bytes=outputs * inner, peers=peers,
            )  # fmt: skip


def invariant_cases(case: type[Case], device: torch.device, tiny: bool) -> Iterator[Case]:
    """What a fixed order of sums costs: plain weights beside PyTorch's product, 4-bit ones beside our own."""
    outputs, inner = (64, 96) if tiny else (14336, 4096)
    dtype = torch.float16 if tiny else torch.bfloat16
    for rows in (1, 20) if tiny else ROWS:
        common = {"flops": 2 * rows * outputs * inner}

        def plain(generator: torch.Generator, rows: int = rows) -> tuple[torch.Tensor, gpu.GpuLinear]:
            draw = partial(torch.randn, generator=generator, device=generator.device)
            weight = draw((outputs, inner)).to(device, dtype)
            return draw((rows, inner)).to(device, dtype), gpu.GpuLinear.plain(weight)

        yield case(
            f"{str(dtype).removeprefix('torch.')} {rows}x{inner} -> {outputs}",
            plain, gpu.linear_invariant, lambda x, packed: x.double() @ packed.data.double().T, 1e-2,
            bytes=outputs * inner * dtype.itemsize,
            peers={"pytorch": lambda x, packed: F.linear(x, packed.data)}, **common,
        )  # fmt: skip
        yield case(
            f"int4-g128 {rows}x{inner} -> {outputs}",
            partial(_packed, "int4-g128", rows, outputs, inner, dtype, device), gpu.linear_invariant,
            lambda x, packed: x.double() @ packed.unpack().double().T, 1e-2,
            bytes=outputs * inner * (0.5 + 2 / 128), peers={"not invariant": gpu.linear}, **common,
        )  # fmt: skip


def _packed(
    format: str,
    rows: int,
    outputs: int,
    inner: int,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> tuple[torch.Tensor, gpu.GpuLinear]:
    draw = partial(torch.randn, generator=generator, device=generator.device)
    weight = draw((outputs, inner))
    return draw((rows, inner)).to(device, dtype), gpu.gpu_linear(weight, format, device=device)
