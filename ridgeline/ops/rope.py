"""Rotary frequencies, plain and scaled.

Plain: f_i = theta^(-2i/dim) for i < dim/2. The scalings stretch them beyond the trained length:
linear (positions divided by the factor), dynamic NTK (theta grown with the length that a request
was admitted with), llama3 (only long wavelengths, with a smooth passage; Llama 3.1's release),
YaRN (Peng et al. 2023, arXiv 2309.00071: a ramp between interpolated and plain frequencies, and
an attention factor on cos and sin).
"""

from __future__ import annotations

import math

from ridgeline.ops.protocol import Rope, RopeScaling


def inverse_frequencies(rope: Rope, admitted: int = 0) -> tuple[list[float], float]:
    """The ``dim / 2`` angular frequencies (radians a token) and the factor on cos and sin.

    ``admitted`` is the length that the request was admitted with; only dynamic scaling asks.
    """
    scaling = rope.scaling
    if scaling is None:
        return _plain(rope.theta, rope.dim), 1.0
    if scaling.kind == "linear":
        return [f / scaling.factor for f in _plain(rope.theta, rope.dim)], 1.0
    if scaling.kind == "dynamic":
        return _plain(_dynamic_theta(rope, scaling, admitted), rope.dim), 1.0
    if scaling.kind == "llama3":
        return [_llama3(f, scaling) for f in _plain(rope.theta, rope.dim)], 1.0
    return _yarn(rope, scaling)


def _plain(theta: float, dim: int) -> list[float]:
    return [theta ** (-2 * i / dim) for i in range(dim // 2)]


def _dynamic_theta(rope: Rope, scaling: RopeScaling, admitted: int) -> float:
    stretch = max(admitted, scaling.original_length) / scaling.original_length
    grown = scaling.factor * stretch - (scaling.factor - 1)
    return rope.theta * grown ** (rope.dim / (rope.dim - 2))


def _llama3(frequency: float, scaling: RopeScaling) -> float:
    """Wavelengths beyond original/low are divided, those within original/high kept."""
    turns = scaling.original_length * frequency / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = min(max((turns - low) / (high - low), 0.0), 1.0)
    return (1 - kept) * frequency / scaling.factor + kept * frequency


def _yarn(rope: Rope, scaling: RopeScaling) -> tuple[list[float], float]:
    def dimension(rotations: float) -> float:  # the dimension that turns so often in the trained length
        return (
            rope.dim
            * math.log(scaling.original_length / (rotations * 2 * math.pi))
            / (2 * math.log(rope.theta))
        )

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    frequencies = []
    for i, f in enumerate(_plain(rope.theta, rope.dim)):
        interpolated = min(max((i - low) / (high - low), 0.0), 1.0)
        frequencies.append(f / scaling.factor * interpolated + f * (1 - interpolated))
    attention_factor = scaling.attention_factor
    if attention_factor is None:
        attention_factor = 0.1 * math.log(scaling.factor) + 1.0
    return frequencies, attention_factor
