"""What pack_linear and linear are meant to compute, in plain PyTorch."""

from __future__ import annotations

import torch

from ridgeline.ops.reference import activate

FLOAT_FORMATS = ("fp32", "bf16")
INT_FORMATS = ("int8", "int4-g32", "int4-g64", "int4-g128", "int4-g32-zp", "int4-g64-zp", "int4-g128-zp")
FORMATS = FLOAT_FORMATS + INT_FORMATS


def group_of(format: str, inputs: int) -> int:
    """Inputs that share a scale."""
    return int(format.split("-g")[1].split("-")[0]) if format.startswith("int4") else inputs


def grouped(x: torch.Tensor, group: int) -> torch.Tensor:
    """[rows, inputs] -> [rows, groups, group], padded with zeros."""
    groups = -(-x.shape[1] // group)
    return torch.nn.functional.pad(x, (0, groups * group - x.shape[1])).view(x.shape[0], groups, group)


def inverse(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, 0.0, 1.0 / scale)


def rounded(w: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
    return (w * inverse(scale)).round().clamp(low, high) * scale


def int8_weight(weight: torch.Tensor) -> torch.Tensor:
    scale = (weight.abs().amax(1, keepdim=True) / 127).half().float()
    return rounded(weight, scale, -127, 127)


def int4_candidates(weight: torch.Tensor, group: int) -> torch.Tensor:
    """[22, rows, groups, group]: the weight by each of the scales of which the best is fitted."""
    w = grouped(weight, group)
    peak = w.gather(2, w.abs().argmax(2, keepdim=True))
    quotients = [-8 + s / 8 for s in range(-2, 11)] + [7 - s / 8 for s in range(-4, 5)]
    scales = [(peak / quotient).half().float() for quotient in quotients]
    return torch.stack([rounded(w, scale, -8, 7) for scale in scales])


def int4_zero_weight(weight: torch.Tensor, group: int) -> torch.Tensor:
    w = grouped(weight, group)
    low, high = w.amin(2, keepdim=True).clamp(max=0), w.amax(2, keepdim=True).clamp(min=0)
    scale = ((high - low) / 15).half().float()
    zero = (-low * inverse(scale)).round().clamp(0, 15)
    q = ((w * inverse(scale)).round() + zero).clamp(0, 15)
    return ((q - zero) * scale).flatten(1)[:, : weight.shape[1]]


def quantized_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows as int8 with one scale each, as float64."""
    scale = (x.float().abs().amax(1, keepdim=True) / 127).clamp(min=2.0**-126)
    return (x.float() * (1 / scale)).round().double() * scale.double()


def activations_of(x: torch.Tensor, format: str, weight_only: bool = False) -> torch.Tensor:
    """x as the kernel of that format sees it, as float64."""
    if format == "fp32":
        return x.double()
    if format == "bf16" or weight_only:
        return x.bfloat16().double()
    return quantized_rows(x)


def finish(
    y: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The epilogue in float64."""
    if bias is not None:
        y = y + bias.double()
    if activation is not None:
        y = activate(y, activation)
    return y if residual is None else residual.double() + y
