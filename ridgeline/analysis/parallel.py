"""``ridgeline parallel``: a model shared among the devices of a cluster, in a given layout or in the best
one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy

from ridgeline.analysis.arguments import config_of
from ridgeline.analysis.compare import Limits
from ridgeline.analysis.explanation import Workload
from ridgeline.analysis.layout_search import Figures, Fixed, Goal, Search, figures, search
from ridgeline.analysis.replica import (
    MEMORY_SHARE,
    STEP_TOKENS,
    Pass,
    Replica,
    Task,
    decode_sizes,
    prefill_sizes,
)
from ridgeline.errors import InputError
from ridgeline.hardware.cluster import Cluster, load_cluster
from ridgeline.models import ModelConfig, declare
from ridgeline.models.model import refuse_diffusion
from ridgeline.ops.formats import storage_format
from ridgeline.predict.collectives import Links, chosen, constants_of
from ridgeline.predict.layout import Layout
from ridgeline.predict.prediction import Prediction
from ridgeline.predict.tiers import Tier, tier_of


@dataclass(frozen=True)
class Exchange:
    """What one kind of exchange costs in a phase: ``times`` a pass, of ``bytes`` each, ``seconds`` in all."""

    phase: str
    name: str
    axis: str
    collective: str
    algorithm: str
    bytes: float
    times: int
    seconds: float


@dataclass(frozen=True)
class Parallel:
    """A layout's prediction. ``by_class`` and ``by_bound`` are seconds of one decode step (of a prefill
    step, if there is a single new token) in all stages together."""

    model: str
    parameters: int
    device: str
    per_node: int
    workload: Workload
    weight_format: str
    cache_format: str
    figures: Figures
    by_class: Mapping[str, float]
    by_bound: Mapping[str, float]
    exchanges: tuple[Exchange, ...]
    basis: Mapping[str, str]
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class BestLayout:
    """What a search for so many devices found: None as ``best`` if nothing fits or holds the limits."""

    devices: int
    goal: str
    search: Search
    best: Parallel | None


def parallel(
    model: str | ModelConfig,
    on: str | Cluster,
    layout: Layout,
    *,
    devices: int | None = None,
    per_node: int | None = None,
    prompt: int = 512,
    output: int = 128,
    batch: int = 1,
    weights: str | None = None,
    cache: str | None = None,
) -> Parallel:
    """Predict ``batch`` requests, over all replicas, of a model that a cluster's devices share as
    ``layout`` says.

    ``on`` is a cluster (``h100-sxm:8x4``), or a device with ``devices`` and ``per_node``; without a
    number of devices there are as many as the layout takes. Raises InputError for anything unknown, an
    encoder, a layout of more devices than there are, and one that the model can't be divided by.
    """
    if not isinstance(on, Cluster):
        on = load_cluster(on, devices if devices is not None or ":" in on else layout.devices, per_node)
    if layout.devices > on.devices:
        raise InputError(f"the layout takes {layout.devices} devices ({layout}), and there are {on.devices}")
    task, workload, format = _task(model, on, prompt, output, batch, weights, cache)
    return _explain(task, workload, format, layout)


def best_layouts(
    model: str | ModelConfig,
    on: str | Cluster,
    devices: Sequence[int] | None = None,
    *,
    per_node: int | None = None,
    goal: str = Goal.LATENCY,
    prompt: int = 512,
    output: int = 128,
    batch: int | None = None,
    weights: str | None = None,
    cache: str | None = None,
    limits: Limits | None = None,
    fixed: Fixed | None = None,
) -> list[BestLayout]:
    """The best layout for each number of devices: of least latency of ``batch`` requests (1), or of most
    tokens a second with any batch (or the given one).

    Raises InputError as :func:`parallel`, and for an unknown goal.
    """
    try:
        goal = Goal(goal)
    except ValueError:
        raise InputError(f"goal must be {' or '.join(Goal)}, not '{goal}'") from None
    if not isinstance(on, Cluster):
        most = None if devices is None else max(devices)
        on = load_cluster(on, most, per_node)
    numbers = list(devices or [on.devices])
    if max(numbers) > on.devices:
        raise InputError(f"{max(numbers)} devices are asked for, and there are {on.devices}")
    if batch is None and goal is Goal.LATENCY:
        batch = 1
    task, workload, format = _task(model, on, prompt, output, 1 if batch is None else batch, weights, cache)
    found = search(task, numbers, goal, batch, limits or Limits(), fixed or Fixed())
    results = []
    for number, one in zip(numbers, found, strict=True):
        best = None
        if one.candidates:
            first = one.candidates[0]
            load = Workload(workload.prompt, workload.output, first.batch)
            best = _explain(task, load, format, first.layout)
        results.append(BestLayout(number, str(goal), one, best))
    return results


def _task(model, cluster, prompt, output, batch, weights, cache) -> tuple[Task, Workload, str]:
    config = config_of(model)
    refuse_diffusion(config)
    if not config.is_decoder:
        raise InputError(
            f"{config.name} is an encoder, and a layout is judged by the tokens that it generates: `compare` "
            "predicts it on one device, of which replicas are as many times as fast"
        )
    workload = Workload(prompt, output, batch)
    if output < 1:
        raise InputError("output must be 1 or more: a layout is judged by the tokens that it generates")
    if prompt + output > config.window:
        raise InputError(
            f"{config.name} takes {config.window} tokens at most; prompt {prompt} + output {output} is longer"
        )
    built = declare(config, None if weights is None else storage_format(weights))
    cache_format = built.plain_format if cache is None else storage_format(cache)
    return Task(built, cluster, prompt, output, cache_format), workload, weights or config.format


def _explain(task: Task, workload: Workload, weight_format: str, layout: Layout) -> Parallel:
    if task.model.config.is_encoder_decoder and (layout.pipeline > 1 or layout.context > 1):
        raise InputError(
            f"{task.model.config.name} is an encoder-decoder, whose layers or sequences are not shared among "
            "stages or ranks of a context: give --tensor and --data only"
        )
    replicas = min(layout.data, workload.batch)
    if layout.expert > 1 and not task.sharding.experts:
        raise InputError(f"{task.model.config.name} has no experts to share: leave expert ranks out")
    if layout.expert_replicas > replicas:
        raise InputError(
            f"{layout.expert_replicas} replicas share experts, and {workload.batch} requests are too few "
            "for them: raise --batch"
        )
    own = -(-workload.batch // replicas)
    batches = numpy.array([own])
    replica = Replica(
        task,
        layout.tensor,
        layout.context,
        layout.context_kind,
        decode_sizes([layout.pipeline], batches),
        prefill_sizes(task.prompt, layout.context, own),
        layout.expert,
    )
    timing = replica.timing(layout.pipeline, batches)
    shown = figures(task, layout, workload.batch, timing, 0)
    predictions = {}
    if task.output > 1:
        middle = (task.output + 1) // 2
        predictions["decode"] = replica.step(int(replica.decode_sizes[0]), middle)
    reading = "encode" if task.model.config.is_encoder_decoder else "prefill"
    predictions[reading] = replica.read(int(replica.prefill_sizes[-1]))
    first = next(iter(predictions.values())).prediction
    return Parallel(
        model=task.model.config.name,
        parameters=task.model.parameter_count(),
        device=task.cluster.device.name,
        per_node=task.cluster.per_node,
        workload=workload,
        weight_format=weight_format,
        cache_format=task.cache_format,
        figures=shown,
        by_class=first.by_class(),
        by_bound=first.by_bound(),
        exchanges=tuple(
            exchange for phase, found in predictions.items() for exchange in _exchanges(replica, phase, found)
        ),
        basis={section: str(source) for section, source in _basis(first, task.cluster).items()},
        assumptions=tuple(_assumptions(task, layout, shown)),
    )


def _basis(prediction: Prediction, cluster: Cluster) -> Mapping[str, object]:
    return {**prediction.basis, **cluster.basis}


def _exchanges(replica: Replica, phase: str, found: Pass) -> Iterator[Exchange]:
    trace, prediction = found.trace, found.prediction
    cluster, layout = replica.task.cluster, replica.layout
    seconds: dict[str, float] = {}
    for kernel in prediction.kernels:
        if kernel.op_kind == "communicate":
            seconds[kernel.op] = seconds.get(kernel.op, 0.0) + float(kernel.seconds) * kernel.repeat
    for op, kernel in trace.kernels():
        if kernel.comm is None:
            continue
        comm = kernel.comm
        group = layout.group(comm.axis, cluster.per_node)
        yield Exchange(
            phase=phase,
            name=op.name,
            axis=comm.axis,
            collective=comm.collective,
            algorithm=chosen(
                constants_of(cluster.device),
                Links(cluster.link_bandwidth, cluster.network_bandwidth),
                comm.collective,
                comm.bytes,
                group.ranks,
                group.per_node,
                group.concurrent,
            ),
            bytes=float(comm.bytes),
            times=int(op.repeat * comm.times),
            seconds=seconds[op.name],
        )


def _assumptions(task: Task, layout: Layout, shown: Figures) -> Iterator[str]:
    device = task.cluster.device
    yield "all requests start together: prompts first, then one token of each at a time"
    yield f"a step of prompts takes {STEP_TOKENS:,} tokens at most, or one prompt"
    if task.sharding.experts:
        yield "experts are chosen uniformly, so all ranks have equally many tokens for theirs"
    yield f"{MEMORY_SHARE:.0%} of a device's memory can be used"
    if layout.tensor > 1:
        yield "nothing is computed while tensor-parallel ranks exchange"
    if layout.pipeline > 1:
        yield "micro-batches follow each other as in GPipe; a stage sends before it goes on"
    if layout.context > 1:
        yield "a decode step's rows are computed by every rank of the context, its keys are divided"
    if "collective" not in device.calibration:
        yield (
            "collectives take latencies and shares of bandwidth as fitted to A100 nodes; the network's are "
            "assumed"
        )
    tier = tier_of(device)
    if tier is Tier.DATASHEET:
        yield "every kernel reaches the device's rates: an optimistic estimate, not a forecast"
    if tier is Tier.GENERIC:
        yield "kernels reach as much of the device's rates as those of calibrated devices do"
    if not shown.fits:
        yield "the devices hold the model, which in fact does not fit in their memory"
