"""Products by weights: 16-bit ones of PyTorch, and those of each quantised format on Triton's kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from ridgeline.hardware.gpu.plan import GpuPlan, Weights
from ridgeline.hardware.gpu.work import Work
from ridgeline.ops.formats import get_format
from ridgeline.ops.records import Weight

if TYPE_CHECKING:
    import torch

    from ridgeline.kernels.triton import GpuLinear
    from ridgeline.ops.gpu import Gpu

PLAIN = "bf16"
#: Outputs that are packed; larger weights repeat them.
PACKED = 128


def product_work(plan: GpuPlan, ops: Gpu) -> list[list[Work]]:
    """Work for the tables ``linear.FORMAT``, a list for each."""
    found = [_table(plan, ops, PLAIN, plan.rows, plan.weights)]
    found += [_table(plan, ops, f, plan.quantised_rows, plan.quantised_weights) for f in plan.formats]
    found += [_table(plan, ops, f, plan.rare_rows, plan.rare_weights) for f in plan.rare_formats]
    return found


def _table(plan: GpuPlan, ops: Gpu, format: str, rows: Iterable[int], weights: Weights) -> list[Work]:
    work = []
    for outputs, inputs in weights:
        nbytes = get_format(format).nbytes((outputs, inputs))
        for n in rows:
            moved = nbytes + 2 * n * (outputs + inputs)
            if moved <= plan.most_bytes:
                make = partial(_make, ops, format, n, outputs, inputs)
                work.append(Work(f"linear.{format}", (n, outputs, inputs), make, moved))
    return work


def _make(ops: Gpu, format: str, rows: int, outputs: int, inputs: int) -> Callable[[], Any]:
    import torch

    if format == PLAIN:
        data = torch.empty(outputs, inputs, dtype=ops.dtype, device=ops.device).normal_()
    else:
        data = random_linear(format, outputs, inputs, ops.device)
    weight = Weight("weight", (outputs, inputs), format, data)
    x = torch.empty(rows, inputs, dtype=ops.dtype, device=ops.device).normal_()
    return partial(ops.linear, x, weight)


@lru_cache(maxsize=32)
def _few_outputs(format: str, outputs: int, inputs: int, device: torch.device) -> GpuLinear:
    """Packed on the host, which takes longer than all that is timed of them."""
    import torch

    from ridgeline.kernels.triton import gpu_linear

    generator = torch.Generator().manual_seed(outputs * inputs)
    return gpu_linear(torch.randn(outputs, inputs, generator=generator), format, device=device)


def random_linear(format: str, outputs: int, inputs: int, device: torch.device) -> GpuLinear:
    """A quantised weight as the kernels read it, made where it lies: the same few outputs again and again."""
    few = min(PACKED, outputs)
    packed = _few_outputs(format, few, inputs, device)
    times = -(-outputs // few)

    def along(x: torch.Tensor | None, dim: int) -> torch.Tensor | None:
        if x is None:
            return None
        copies = [1] * x.dim()
        copies[dim] = times
        size = -(-outputs * x.shape[dim] // few)  # several outputs may share a scale
        return x.repeat(copies).narrow(dim, 0, size).contiguous()

    return replace(
        packed,
        data=along(packed.data, 0),
        scales=along(packed.scales, 1),
        zeros=along(packed.zeros, 1),
        shape=(outputs, inputs),
    )
