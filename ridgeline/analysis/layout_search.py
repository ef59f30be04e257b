"""The search for the best layout: every way to share a model among so many devices, with the reasons.

The passes of a replica are counted once for each number of tensor and context ranks, with arrays over the
numbers of sequences; pipelines, replicas, batches and numbers of devices are then arithmetic on arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import product

import numpy

from ridgeline.analysis.compare import Limits
from ridgeline.analysis.replica import MEMORY_SHARE, Replica, Task, Timing, decode_sizes, prefill_sizes
from ridgeline.errors import InputError
from ridgeline.ops.count_context import ContextKind
from ridgeline.predict.layout import Layout

#: The most requests at once on one replica that a search tries.
MOST_REQUESTS = 4096
#: From this length on, a search also tries to share sequences among ranks.
LONG_PROMPT = 32_768
#: The most ranks that a search lets share a sequence.
MOST_CONTEXT = 16
#: Layouts that are kept beside the best one.
KEPT = 10


class Goal(StrEnum):
    """What a search looks for: least time of a request, or most tokens a second."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"


@dataclass(frozen=True)
class Fixed:
    """Axes that a search keeps to; None leaves it free."""

    tensor: int | None = None
    pipeline: int | None = None
    context: int | None = None
    context_kind: ContextKind = ContextKind.RING
    expert: int | None = None

    def __post_init__(self) -> None:
        axes = {axis: getattr(self, axis) or 1 for axis in ("tensor", "pipeline", "context")}
        kind = Layout(**axes, context_kind=self.context_kind).context_kind  # refuses what is no layout
        object.__setattr__(self, "context_kind", kind)


@dataclass(frozen=True)
class Figures:
    """A layout's figures for ``batch`` requests over all replicas; bytes are those of the fullest device.

    ``tokens_per_second`` are output tokens, prompts' time included; ``bubble`` is of prefill, and the
    shares of communication those of a pass.
    """

    layout: Layout
    devices: int
    batch: int
    ttft_seconds: float
    tpot_seconds: float | None
    total_seconds: float
    tokens_per_second: float
    tokens_per_second_per_device: float
    weights: float
    cache: float
    activations: float
    memory: float
    memory_limit: float
    fits: bool
    bubble: float
    prefill_communication: float
    decode_communication: float | None


@dataclass(frozen=True)
class Dropped:
    """Layouts that were dropped for one reason, and what the one that came closest would have taken."""

    reason: str
    count: int
    closest: str


@dataclass(frozen=True)
class Search:
    """``candidates`` are the layouts that hold all limits, each with its best batch, best first (KEPT of
    them)."""

    devices: int
    considered: int
    held: int
    candidates: tuple[Figures, ...]
    dropped: tuple[Dropped, ...]


def figures(task: Task, layout: Layout, batch: int, timing: Timing, index: int) -> Figures:
    """The figures of one entry of ``timing``, for ``batch`` requests over all replicas."""
    steps = task.output - 1
    ttft, tpot = float(timing.prefill[index]), float(timing.tpot[index])
    total = ttft + steps * tpot
    memory = float(timing.memory[index])
    limit = MEMORY_SHARE * task.cluster.device.memory_bytes
    rate = batch * task.output / total
    return Figures(
        layout=layout,
        devices=layout.devices,
        batch=batch,
        ttft_seconds=ttft,
        tpot_seconds=tpot if steps else None,
        total_seconds=total,
        tokens_per_second=rate,
        tokens_per_second_per_device=rate / layout.devices,
        weights=float(timing.weights),
        cache=float(timing.cache[index]),
        activations=float(timing.activations[index]),
        memory=memory,
        memory_limit=limit,
        fits=memory <= limit,
        bubble=max(float(timing.bubble[index]), 0.0),
        prefill_communication=float(timing.prefill_communication[index]),
        decode_communication=float(timing.decode_communication[index]) if steps else None,
    )


@dataclass
class _Drops:
    """Reasons as they come up: how often, and the least excess with its words."""

    found: dict[str, tuple[int, float, str]] = field(default_factory=dict)

    def add(self, reason: str, excess: float, words: str) -> None:
        count, least, closest = self.found.get(reason, (0, numpy.inf, ""))
        self.found[reason] = (count + 1, min(least, excess), words if excess < least else closest)

    def dropped(self) -> tuple[Dropped, ...]:
        return tuple(Dropped(reason, count, words) for reason, (count, _, words) in self.found.items())


def search(
    task: Task, devices: Sequence[int], goal: Goal, batch: int | None, limits: Limits, fixed: Fixed
) -> list[Search]:
    """The layouts for each number of devices, best first. ``batch`` is the number of requests over all
    replicas; None tries powers of two a replica."""
    drops = {n: _Drops() for n in devices}
    held: dict[int, list[tuple[float, Figures]]] = {n: [] for n in devices}
    considered = dict.fromkeys(devices, 0)
    most = max(devices)
    for tensor in _tensors(task, fixed, most):
        shapes = product(_contexts(task, fixed, most // tensor), _experts(task, fixed, tensor, most))
        for context, expert in shapes:
            together = context * max(tensor, expert)  # devices of a stage in all replicas that share experts
            pipelines = [p for p in _pipelines(task, fixed) if together * p <= most]
            if not pipelines:
                continue
            shape = (tensor, context, expert)
            try:
                replica, batches = _replica(task, shape, fixed, pipelines, devices, batch)
            except InputError as error:
                for n in devices:
                    if together <= n:
                        considered[n] += 1
                        drops[n].add("the model can't be divided so", 0.0, f"tensor {tensor}: {error}")
                continue
            for pipeline in pipelines:
                timing = replica.timing(pipeline, batches)
                for n in devices:
                    if together * pipeline > n:
                        continue
                    considered[n] += 1
                    data = _replicas(shape, pipeline, n, batch)
                    if not data:
                        drops[n].add(
                            "more replicas share experts than there are requests", 0.0, f"ep{expert}"
                        )
                        continue
                    layout = Layout(tensor, pipeline, data, context, fixed.context_kind, expert)
                    best = _best_batch(task, layout, batch, batches, timing, goal, limits, drops[n])
                    if best is not None:
                        held[n].append(best)
    return [_search(n, considered[n], held[n], drops[n]) for n in devices]


def _search(devices: int, considered: int, held: list[tuple[float, Figures]], drops: _Drops) -> Search:
    held.sort(key=lambda one: one[0])
    best = tuple(found for _, found in held[:KEPT])
    return Search(devices, considered, len(held), best, drops.dropped())


def _replicas(shape: tuple[int, int, int], pipeline: int, devices: int, batch: int | None) -> int:
    """How many replicas the devices hold and the requests (if their number is given) keep busy, in whole
    groups
    that share experts."""
    tensor, context, expert = shape
    group = max(expert // tensor, 1)
    most = devices // (tensor * context * pipeline)
    return (most if batch is None else min(most, batch)) // group * group


def _replica(task, shape, fixed, pipelines, devices, batch) -> tuple[Replica, numpy.ndarray]:
    tensor, context, expert = shape
    if batch is None:
        batches = 2 ** numpy.arange(MOST_REQUESTS.bit_length())
    else:
        replicas = {_replicas(shape, p, n, batch) for n in devices for p in pipelines} - {0}
        batches = numpy.array(sorted({-(-batch // r) for r in replicas} or {1}))
    decode = decode_sizes(pipelines, batches)
    prefill = prefill_sizes(task.prompt, context, int(batches[-1]))
    if batch is not None:
        prefill = numpy.union1d(prefill, batches[batches <= prefill[-1]])
    return Replica(task, tensor, context, fixed.context_kind, decode, prefill, expert), batches


def _best_batch(
    task: Task,
    layout: Layout,
    batch: int | None,
    batches: numpy.ndarray,
    timing: Timing,
    goal: Goal,
    limits: Limits,
    drops: _Drops,
) -> tuple[float, Figures] | None:
    """The layout with its best batch, and what it is ranked by (the less the better); None if it is
    dropped."""
    if batch is not None:
        allowed = batches == -(-batch // layout.data)
    else:
        allowed = numpy.ones(len(batches), bool)
    limit = MEMORY_SHARE * task.cluster.device.memory_bytes
    least = numpy.where(allowed, timing.memory, numpy.inf).min()
    allowed = allowed & (timing.memory <= limit)
    if not allowed.any():
        drops.add(
            "does not fit in memory",
            least,
            f"{layout}: {least / 1e9:,.0f} GB of {limit / 1e9:,.0f} GB a device",
        )
        return None
    for name, bound, taken in (("TTFT", limits.ttft, timing.prefill), ("TPOT", limits.tpot, timing.tpot)):
        if bound is None or (name == "TPOT" and task.output == 1):
            continue
        least = taken[allowed].min()
        allowed = allowed & (taken <= bound)
        if not allowed.any():
            words = f"{layout}: {least * 1e3:,.1f} ms of {bound * 1e3:,.1f} ms"
            drops.add(f"{name} above the limit", least, words)
            return None
    total = timing.prefill + (task.output - 1) * timing.tpot
    rank = total if goal is Goal.LATENCY else -layout.data * batches / total
    if batch is not None and goal is Goal.THROUGHPUT:
        rank = total
    index = int(numpy.where(allowed, rank, numpy.inf).argmin())
    requests = batch if batch is not None else int(layout.data * batches[index])
    return float(rank[index]), figures(task, layout, requests, timing, index)


def _tensors(task: Task, fixed: Fixed, most: int) -> Iterator[int]:
    """Divisors of the heads that fill nodes evenly."""
    if fixed.tensor is not None:
        yield fixed.tensor
        return
    heads, per_node = task.model.config.heads, task.cluster.per_node
    for ranks in range(1, min(heads, most) + 1):
        if heads % ranks == 0 and (per_node % ranks == 0 or ranks % per_node == 0):
            yield ranks


def _contexts(task: Task, fixed: Fixed, most: int) -> Iterator[int]:
    if fixed.context is not None:
        yield fixed.context
        return
    yield 1
    if task.model.config.is_encoder_decoder:
        return
    ranks = 2
    while task.prompt >= LONG_PROMPT and ranks <= min(most, MOST_CONTEXT):
        yield ranks
        ranks *= 2


def _experts(task: Task, fixed: Fixed, tensor: int, most: int) -> Iterator[int]:
    """Ranks that share experts by number: those of one replica, and of twice as many each time."""
    if fixed.expert is not None:
        yield fixed.expert
        return
    yield 1
    ranks = tensor
    while task.sharding.experts and ranks <= min(most, task.sharding.experts):
        if ranks > 1:
            yield ranks
        ranks *= 2


def _pipelines(task: Task, fixed: Fixed) -> list[int]:
    """Numbers of stages, of those whose fullest stage has as many layers only the smallest."""
    if fixed.pipeline is not None:
        return [fixed.pipeline]
    layers = task.model.config.layers
    if task.model.config.is_encoder_decoder:  # a step passes through the decoder only
        return [1]
    smallest = {-(-layers // stages): stages for stages in range(layers, 0, -1)}
    return sorted(smallest.values())
