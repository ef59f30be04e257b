"""Rotary frequencies, plain and scaled.

Plain: f_i = theta^(-2i/dim) for i < dim/2. The scalings stretch them beyond the trained length:
linear (positions divided by the factor), dynamic NTK (theta grown with the length that a request
was admitted with), LongRoPE (Ding et al. 2024, arXiv 2402.13753: a factor for each frequency, from one
list up to the trained length and from another for longer requests), llama3 (only long wavelengths, with
a smooth passage; Llama 3.1's release), YaRN (Peng et al. 2023, arXiv 2309.00071: a ramp between
interpolated and plain frequencies, and an attention factor on cos and sin).

The frequencies are computed in the reading's own precision and in the order that models were
trained with, because at a far position a last bit of theirs is a visible angle.
"""

from __future__ import annotations

import math

import torch

from ridgeline.ops.records import Rope, RopeScaling


def inverse_frequencies(
    rope: Rope, admitted: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, float]:
    """The ``dim / 2`` angular frequencies (radians a token) and the factor on cos and sin.

    ``admitted`` is the length that the request was admitted with; only dynamic scaling and LongRoPE ask.
    """
    scaling = rope.scaling
    if scaling is None:
        return _plain(rope.theta, rope.dim, dtype), 1.0
    if scaling.kind == "dynamic":
        return _plain(_dynamic_theta(rope, scaling, admitted), rope.dim, dtype), 1.0
    plain = _plain(rope.theta, rope.dim, dtype)
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    if scaling.kind == "longrope":
        factors = scaling.long if admitted > scaling.original_length else scaling.short
        grown = torch.tensor(factors, dtype=dtype) * _powers(rope.theta, rope.dim, dtype)
        return 1.0 / grown, _longrope_factor(scaling)
    return _yarn(plain, rope, scaling)


def _plain(theta: float, dim: int, dtype: torch.dtype) -> torch.Tensor:
    return 1.0 / _powers(theta, dim, dtype)


def _powers(theta: float, dim: int, dtype: torch.dtype) -> torch.Tensor:
    return theta ** (torch.arange(0, dim, 2).to(dtype) / dim)


def _longrope_factor(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_length))


def _dynamic_theta(rope: Rope, scaling: RopeScaling, admitted: int) -> float:
    length = max(admitted, scaling.original_length)
    grown = scaling.factor * length / scaling.original_length - (scaling.factor - 1)
    return rope.theta * grown ** (rope.dim / (rope.dim - 2))


def _llama3(plain: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Wavelengths beyond original/low are divided, those within original/high kept."""
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_length / (2 * math.pi / plain)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    between = (1 - kept) * plain / scaling.factor + kept * plain
    return torch.where(kept == 0, plain / scaling.factor, torch.where(kept == 1, plain, between))


def _yarn(plain: torch.Tensor, rope: Rope, scaling: RopeScaling) -> tuple[torch.Tensor, float]:
    def dimension(rotations: float) -> float:
        """The dimension that turns so often in the trained length."""
        wavelength = scaling.original_length / (rotations * 2 * math.pi)
        return rope.dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    steps = torch.arange(rope.dim // 2).to(plain.dtype)
    kept = 1 - ((steps - low) / (high - low)).clamp(0.0, 1.0)
    attention_factor = scaling.attention_factor
    if attention_factor is None:
        attention_factor = 0.1 * math.log(scaling.factor) + 1.0
    return plain / scaling.factor * (1 - kept) + plain * kept, attention_factor
