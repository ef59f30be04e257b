"""What surrounds the kernels of a step: bandwidths, launches, what the host issues, and whole small steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ridgeline.hardware.gpu.plan import GpuPlan
from ridgeline.hardware.gpu.products import random_linear
from ridgeline.hardware.gpu.rows import ROWS_OF_ISSUE
from ridgeline.hardware.gpu.work import Work
from ridgeline.hardware.kernels import EngineTimes
from ridgeline.hardware.probes.engine import FEW_LOGITS, MANY_LOGITS, ONE, engine_core, engine_times
from ridgeline.ops.batch import Span
from ridgeline.ops.records import Weight

if TYPE_CHECKING:
    from ridgeline.ops.gpu import Gpu

#: Bytes of the L2 cache that a copy within it reads, as a share; it writes as many.
SHARE_OF_L2 = 0.25
#: Taken where the driver does not tell the size of the L2 cache.
USUAL_L2 = 32 << 20
#: Layers of the two steps from which a layer's time and what comes beside follow.
FEW_LAYERS, MANY_LAYERS = 1, 9
#: Outputs and inputs of a product that is issued: small, so that the device is done first.
SMALL = 256
#: Operators of a layer of the small steps, by the kind that the host issues, and those outside of layers.
A_LAYER = {"norm": 2, "linear": 4, "attend": 1, "activation": 1, "add": 2}
OUTSIDE = {"gather": 2, "norm": 1, "linear": 1}
#: Kernels of a recorded step outside of layers: embedding, norm and head.
OUTSIDE_KERNELS = 3
#: By how much a layer's host time may differ from the sum of its operators'.
LEAST_SCALE, MOST_SCALE = 0.5, 3.0


def fixed_work(plan: GpuPlan, ops: Gpu, l2: float) -> list[Work]:
    """What there is one figure of; all of it is needed."""
    near = int((l2 or USUAL_L2) * SHARE_OF_L2)
    work = [
        Work("gap", (), partial(_tiny, ops), stays=True),
        Work("launch", (), partial(_tiny, ops), how="issue"),
        Work("bandwidth.copy", (plan.copied,), partial(_copy, ops, plan.copied), 2 * plan.copied),
        Work("bandwidth.read", (plan.copied,), partial(_read, ops, plan.copied), plan.copied),
        Work("bandwidth.l2", (near,), partial(_copy, ops, near), 2 * near, stays=True),
        Work("issue.linear", (), partial(_linear, ops), how="issue"),
        Work("issue.quantised", (), partial(_linear, ops, "int4-g128"), how="issue"),
    ]
    work += [
        Work(f"issue.{kind}", (), partial(make, ops), how="issue") for kind, make in ROWS_OF_ISSUE.items()
    ]
    for layers in (FEW_LAYERS, MANY_LAYERS):
        work.append(Work("step.graph", (layers,), partial(_step, ops, layers, 1), how="wall"))
        work.append(Work("step.eager", (layers,), partial(_step, ops, layers, 2), how="wall"))
    for shape in (ONE, FEW_LOGITS, MANY_LOGITS):
        work.append(Work("engine", shape, partial(_engine, ops, *shape), how="wall"))
    return work


def read_replay(seconds: Mapping[tuple, float], gap: float) -> float:
    """What replaying a graph costs beside its kernels: a small step without its layer and the kernels
    around."""
    layer, one = _layer(seconds, "step.graph")
    return max(one - layer - OUTSIDE_KERNELS * gap, 0.0)


def read_issue(seconds: Mapping[tuple, float]) -> tuple[dict[str, float], float]:
    """What the host takes for an operator of each kind, as in a layer of a model, and what a step costs
    beside."""
    alone = {figure[6:]: s for (figure, _), s in seconds.items() if figure.startswith("issue.")}
    layer, one = _layer(seconds, "step.eager")
    scale = layer / sum(n * alone[kind] for kind, n in A_LAYER.items())
    scale = min(max(scale, LEAST_SCALE), MOST_SCALE)
    issue = {kind: scale * s for kind, s in alone.items()}
    return issue, max(one - layer - sum(n * issue[kind] for kind, n in OUTSIDE.items()), 0.0)


def read_engine(seconds: Mapping[tuple, float]) -> EngineTimes:
    return engine_times(*(seconds["engine", shape] for shape in (ONE, FEW_LOGITS, MANY_LOGITS)))


def _layer(seconds: Mapping[tuple, float], figure: str) -> tuple[float, float]:
    """What a layer takes, and a step of the fewest."""
    few, many = (seconds[figure, (layers,)] for layers in (FEW_LAYERS, MANY_LAYERS))
    return max((many - few) / (MANY_LAYERS - FEW_LAYERS), 1e-9), few


def _tiny(ops: Gpu) -> Callable[[], Any]:
    import torch

    return partial(torch.zeros(1, device=ops.device).add_, 1)


def _copy(ops: Gpu, nbytes: int) -> Callable[[], Any]:
    import torch

    source, target = (torch.zeros(nbytes, dtype=torch.uint8, device=ops.device) for _ in "st")
    return partial(target.copy_, source)


def _read(ops: Gpu, nbytes: int) -> Callable[[], Any]:
    import torch

    return torch.zeros(nbytes // 4, device=ops.device).sum


def _linear(ops: Gpu, format: str = "bf16") -> Callable[[], Any]:
    import torch

    data = torch.zeros(SMALL, SMALL, dtype=ops.dtype, device=ops.device)
    if format != "bf16":
        data = random_linear(format, SMALL, SMALL, ops.device)
    x = torch.zeros(1, SMALL, dtype=ops.dtype, device=ops.device)
    return partial(ops.linear, x, Weight("weight", (SMALL, SMALL), format, data))


def _step(ops: Gpu, layers: int, rows: int) -> Callable[[], Any]:
    """A step of a small gated decoder: of one row, which is a graph, or of more."""
    from ridgeline.models import load_config
    from ridgeline.ops.gpu import Gpu, to_gpu
    from ridgeline.weights.load import random_model

    given = load_config("llama-3-8b")
    config = replace(
        given, name="small", vocab=SMALL, width=SMALL, layers=layers, heads=4, kv_heads=2, head_dim=64,
        intermediate=2 * SMALL, window=1024, windows=(-1,) * layers, rope=replace(given.rope, dim=64),
    )  # fmt: skip
    model = to_gpu(random_model(config, "bf16"), ops.device)
    own = Gpu(ops.dtype, ops.device)
    spec = model.cache_spec("bf16")
    cache = own.alloc_cache(spec, 8)
    cache.randomise()
    spans = [Span(rows, 128, table=tuple(range(8)))]

    def step() -> None:
        own.run(model, [1] * rows, spans, cache=cache)
        own.synchronise()

    return step


def _engine(ops: Gpu, sequences: int, vocab: int) -> Callable[[], Any]:
    return engine_core(sequences, vocab, ops.device).step
