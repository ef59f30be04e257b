"""Activations inside a kernel, by number."""

from __future__ import annotations

import triton
import triton.language as tl

from ridgeline.errors import InputError
from ridgeline.kernels.triton.runtime import LOG2E, tanh

NONE, SILU, GELU, GELU_TANH, RELU, TANH = range(6)
ACTIVATIONS = {"silu": SILU, "gelu": GELU, "gelu_tanh": GELU_TANH, "relu": RELU, "tanh": TANH}
GATED = "_gated"


def number(activation: str | None, gated: bool | None = None) -> tuple[int, bool]:
    """An activation's number, and whether it is gated. Raises InputError for another name, and where it is
    not ``gated`` although it should be, or is."""
    plain = activation.removesuffix(GATED) if isinstance(activation, str) else activation
    if plain is None and not gated:
        return NONE, False
    is_gated = isinstance(activation, str) and activation.endswith(GATED)
    if plain not in ACTIVATIONS or (gated is not None and is_gated != gated):
        names = [name + GATED for name in ACTIVATIONS] if gated else ["None", *ACTIVATIONS]
        if gated is None:
            names = [*ACTIVATIONS, *(name + GATED for name in ACTIVATIONS)]
        raise InputError(f"activation is {activation!r}; choose one of: {', '.join(names)}")
    return ACTIVATIONS[plain], is_gated


@triton.jit
def apply(x, ACTIVATION: tl.constexpr):
    """The activation of float32 x; 0 is none, the others as ACTIVATIONS numbers them."""
    if ACTIVATION == 1:
        return x / (1 + tl.exp2(-x * LOG2E))
    elif ACTIVATION == 2:
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == 3:
        return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == 4:
        return tl.where(x > 0, x, tl.where(x != x, x, 0.0))
    elif ACTIVATION == 5:
        return tanh(x)
    else:
        return x
