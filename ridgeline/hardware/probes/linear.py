"""Linear layers on the native kernels, by rows and weight size, without what Python adds to a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ridgeline.hardware.kernels import LinearTable
from ridgeline.hardware.probes.ring import Ring
from ridgeline.hardware.timing import Probe, Timings
from ridgeline.ops.formats import get_format, packed_shape
from ridgeline.ops.protocol import Weight

if TYPE_CHECKING:
    import torch

    from ridgeline.kernels import PackedLinear

#: A layer that takes next to no time, to tell what Python adds.
CALL_WIDTH = 64
CALL, BARE_CALL = "kernels.call.python", "kernels.call.kernel"


def linear_probes(
    format: str, rows: Sequence[int], widths: Sequence[int], ring: Ring, prepare: Callable[[], tuple[()]]
) -> list[Probe]:
    """Square weights; figures ``kernels.linear.FORMAT.warm[ROWS, WIDTH]``, with the same weight at every
    call, and ``.fresh[...]``, with one that comes from memory."""
    import torch

    from ridgeline import _native

    def probe(place: str, n: int, width: int, piece: Callable[..., torch.Tensor]) -> Probe:
        x, out = torch.rand(n, width), torch.empty(n, width)

        def arguments() -> Sequence[Any]:
            prepare()
            return kernel_arguments(x, _packed(format, width, piece), out)

        return Probe(_figure(format, place, n, width), _native.linear, prepare=arguments)

    places = (("warm", ring.keep), ("fresh", ring.take))
    return [probe(place, n, w, piece) for place, piece in places for w in widths for n in rows]


def call_probes(format: str, ring: Ring, prepare: Callable[[], tuple[()]]) -> list[Probe]:
    """A small layer through the cpu reading and as the bare kernel."""
    import torch

    from ridgeline import _native
    from ridgeline.ops.cpu import Cpu

    packed = _packed(format, CALL_WIDTH, ring.keep)
    ops, weight = Cpu(), Weight("weight", packed.shape, format, packed)
    x, out = torch.rand(1, CALL_WIDTH), torch.empty(1, CALL_WIDTH)

    def arguments() -> Sequence[Any]:
        prepare()
        return kernel_arguments(x, packed, out)

    return [
        Probe(CALL, lambda: ops.linear(x, weight), prepare=prepare),
        Probe(BARE_CALL, _native.linear, prepare=arguments),
    ]


def read_linear(timings: Timings, format: str, rows: Sequence[int], widths: Sequence[int]) -> LinearTable:
    """The table as measured."""

    def table(place: str) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(timings.seconds(_figure(format, place, n, w)) for w in widths) for n in rows)

    stored = get_format(format)
    weight_bytes = tuple(float(stored.nbytes(packed_shape((w, w), format, gated=False))) for w in widths)
    return LinearTable(tuple(rows), weight_bytes, table("warm"), table("fresh"))


def read_call(timings: Timings) -> float:
    """What Python takes for a linear layer beside its kernel."""
    return max(timings.seconds(CALL) - timings.seconds(BARE_CALL), 0.0)


def kernel_arguments(x: torch.Tensor, packed: PackedLinear, out: torch.Tensor) -> Sequence[Any]:
    """What the bare kernel takes for out = x W^T, all in float32: addresses, so the tensors have to be kept
    until it has run."""
    from ridgeline import _native

    fp32 = _native.Dtype.fp32
    given, result = (x.data_ptr(), x.stride(0), fp32), (out.data_ptr(), out.stride(0), fp32)
    no_bias, no_residual = (0, fp32), (0, 0)
    weight = (packed.layout, packed.data.data_ptr())
    return *weight, *given, x.shape[0], *no_bias, _native.Activation.none, *no_residual, *result


def _packed(format: str, width: int, piece: Callable[..., torch.Tensor]) -> PackedLinear:
    """A square weight in a piece of memory, whatever numbers that holds."""
    import torch

    from ridgeline.kernels.linear import PackedLinear, packed_bytes

    shape = (width, width)
    return PackedLinear(piece((packed_bytes(shape, format),), torch.uint8), shape, format)


def _figure(format: str, place: str, rows: int, width: int) -> str:
    return f"kernels.linear.{format}.{place}[{rows}, {width}]"
