"""What a product's activation and its residual cost beyond the product itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ridgeline.hardware.kernels import Affine
from ridgeline.hardware.probes.passes import packed, plain, recorded
from ridgeline.hardware.timing import KernelProbe, Timings
from ridgeline.ops.batch import Batch, Span
from ridgeline.ops.protocol import Ops

#: Rows, inputs and outputs of the product: few inputs, so that the epilogue is much of it.
ROWS, INPUTS, OUTPUTS = 256, 128, 1024
ACTIVATIONS = ("relu", "silu", "gelu", "gelu_tanh", "tanh", "silu_gated")
PLAIN, RESIDUAL = "plain", "residual"
#: Where noise says that an epilogue costs nothing, it moves so many bytes a second.
FASTEST = 1e12
#: The product's number in the pass.
_PRODUCT = 1


def epilogue_probes(between: Callable[[], Sequence[Any]]) -> list[KernelProbe]:
    """Figures ``kernels.epilogue.NAME`` of the same product with an activation, a residual, or plain.
    ``between`` runs before each call."""

    def probe(name: str) -> KernelProbe:
        replay, number = _recorded(name), _PRODUCT + (name == RESIDUAL)

        def seconds() -> float:
            return replay.profile([0] * ROWS, [Span(ROWS)], "last")[number].total

        return KernelProbe(f"kernels.epilogue.{name}", seconds, prepare=between)

    return [probe(name) for name in (PLAIN, RESIDUAL, *ACTIVATIONS)]


def _recorded(name: str) -> Any:
    table = plain("embedding", 1, INPUTS)
    weight = packed("weight", OUTPUTS, INPUTS, gated=name.endswith("_gated"))
    wide = packed("wide", OUTPUTS, INPUTS)

    def forward(ops: Ops, batch: Batch) -> Any:
        x = ops.embed(batch.ids, table)
        if name == RESIDUAL:  # is timed like the others: the second of two alike products adds the first's
            y = ops.linear(x, weight, residual=ops.linear(x, wide))
            return ops.take_rows(y, batch.logit_rows)
        activation = None if name == PLAIN else name
        return ops.take_rows(ops.linear(x, weight, activation=activation), batch.logit_rows)

    return recorded(forward)


def read_epilogues(timings: Timings) -> dict[str, Affine]:
    """By ``epilogue.NAME``, for the bytes that it hands on."""
    product = timings.seconds(f"kernels.epilogue.{PLAIN}")
    found = {}
    for name in (RESIDUAL, *ACTIVATIONS):
        nbytes = 4 * ROWS * OUTPUTS / (2 if name.endswith("_gated") else 1)
        more = timings.seconds(f"kernels.epilogue.{name}") - product
        found[f"epilogue.{name}"] = Affine(0.0, nbytes / max(more, nbytes / FASTEST))
    return found
