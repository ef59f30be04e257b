"""``ridgeline place``: a model split over unlike devices, operator by operator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy

from ridgeline.analysis.arguments import config_of, device_of
from ridgeline.analysis.explanation import Workload
from ridgeline.analysis.replica import MEMORY_SHARE
from ridgeline.analysis.step import default_lowering, trace_step
from ridgeline.engine.request import refuse_encoder
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models import Model, ModelConfig, declare
from ridgeline.ops.batch import Span
from ridgeline.ops.formats import storage_format
from ridgeline.ops.kernel import Role, Value
from ridgeline.ops.trace import Trace
from ridgeline.predict.placement import Costs, Flow, Placement, best, flows, given
from ridgeline.predict.prediction import Prediction, predict
from ridgeline.predict.tiers import Tier, tier_of

#: What links unlike devices unless it is said: PCIe 4 x16 in one direction, and the time that a copy takes to
#: begin.
LINK_BANDWIDTH = 32e9
LINK_LATENCY = 10e-6


@dataclass(frozen=True)
class PlacedOperator:
    """An operator, its operational intensity (FLOP/byte), its seconds on each device in all layers, and the
    device that it is placed on."""

    name: str
    kind: str
    calls: int
    intensity: float
    seconds: Mapping[str, float]
    device: str


@dataclass(frozen=True)
class Choice:
    """A placement by its rule; ``over`` are bytes beyond the devices' memory."""

    rule: str
    seconds: float
    transfer_seconds: float
    transfers: int
    transferred_bytes: float
    over: float

    @property
    def fits(self) -> bool:
        return self.over == 0


@dataclass(frozen=True)
class Placed:
    """What :func:`place` found for one phase; ``ridges`` are FLOP/byte of the devices, and ``choices`` the
    best placement beside simple ones."""

    model: str
    phase: str
    workload: Workload
    devices: tuple[str, ...]
    ridges: Mapping[str, float]
    operators: tuple[PlacedOperator, ...]
    best: Choice
    choices: tuple[Choice, ...]
    basis: Mapping[str, Mapping[str, str]]
    assumptions: tuple[str, ...]


def place(
    model: str | ModelConfig,
    on: Sequence[str | Device],
    *,
    phase: str = "decode",
    prompt: int = 512,
    output: int = 128,
    batch: int = 1,
    weights: str | None = None,
    cache: str | None = None,
    link_bandwidth: float = LINK_BANDWIDTH,
    link_latency: float = LINK_LATENCY,
) -> Placed:
    """Put every operator of a ``decode`` step (in the middle of the output) or of ``prefill`` on that of
    the devices where the step takes least, transfers included, within 90 % of their memory.

    Raises InputError for fewer than two devices, devices given twice, and anything unknown.
    """
    config = config_of(model)
    devices = [device_of(name) for name in on]
    names = [device.name for device in devices]
    if len(devices) < 2 or len(set(names)) < len(names):
        raise InputError("a placement takes two or more unlike devices, like h100-sxm,epyc-9654")
    refuse_encoder(config)
    if phase not in ("decode", "prefill"):
        raise InputError(f"phase must be decode or prefill, not {phase!r}")
    if not (link_bandwidth > 0 and 0 <= link_latency < math.inf):
        raise InputError("a link needs a bandwidth above 0 and a latency that is finite and not negative")
    workload = Workload(prompt, output, batch)
    built = declare(config, None if weights is None else storage_format(weights))
    cache_format = built.plain_format if cache is None else storage_format(cache)
    span = Span(prompt, 0, batch) if phase == "prefill" else Span(1, prompt + output // 2, batch)
    traces = [
        trace_step(built, [span], cache_format=cache_format, lowering=default_lowering(device))
        for device in devices
    ]
    predictions = [predict(trace, device) for trace, device in zip(traces, devices, strict=True)]
    used = [index for index, op in enumerate(traces[0].ops) if op.parts]
    seconds, held = _tables(built, traces, predictions, used, workload, cache_format)
    capacity = numpy.array([MEMORY_SHARE * device.memory_bytes for device in devices])
    costs = Costs(seconds, held, tuple(_flows(traces[0], used)), capacity, link_latency, link_bandwidth)
    found = best(costs)
    choices = [("best", found), *_rules(traces[0], used, names, costs)]
    shown = [_choice(rule, placement) for rule, placement in choices]
    return Placed(
        model=config.name,
        phase=phase,
        workload=workload,
        devices=tuple(names),
        ridges={device.name: device.ridge(built.plain_format) for device in devices},
        operators=tuple(_operators(traces[0], used, names, costs, found)),
        best=shown[0],
        choices=tuple(shown),
        basis={p.device: {s: str(source) for s, source in p.basis.items()} for p in predictions},
        assumptions=tuple(_assumptions(shown[0], devices, link_bandwidth, link_latency)),
    )


def _tables(
    model: Model,
    traces: Sequence[Trace],
    predictions: Sequence[Prediction],
    used: Sequence[int],
    workload: Workload,
    cache_format: str,
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Seconds, and bytes of weights and cache, of the ``used`` operators on each device, in all layers."""
    seconds, held = (numpy.zeros((len(used), len(traces))) for _ in range(2))
    token = model.cache_spec(cache_format).bytes_per_token
    cache = token * workload.batch * (workload.prompt + workload.output)
    calls = sum(traces[0].ops[index].repeat for index in used if _reads(traces[0], index, Role.CACHE))
    for column, (trace, prediction) in enumerate(zip(traces, predictions, strict=True)):
        for kernel in prediction.kernels:
            if kernel.op_index in used:
                seconds[used.index(kernel.op_index), column] += float(kernel.seconds) * kernel.repeat
        for row, index in enumerate(used):
            repeat = trace.ops[index].repeat
            held[row, column] = repeat * sum(v.nbytes for v in _reads(trace, index, Role.WEIGHT))
            if _reads(trace, index, Role.CACHE):
                held[row, column] += cache * repeat / calls
    return seconds, held


def _reads(trace: Trace, index: int, role: Role) -> set[Value]:
    """The values of that role that an operator reads."""
    return {a.value for part in trace.ops[index].parts for a in part.reads if a.value.role is role}


def _flows(trace: Trace, used: Sequence[int]) -> Iterator[Flow]:
    """What the ``used`` operators hand to each other, by their places among them."""
    for flow in flows(trace):
        targets = tuple(used.index(target) for target in flow.targets)
        yield replace(flow, source=used.index(flow.source), targets=targets)


def _rules(
    trace: Trace, used: Sequence[int], names: Sequence[str], costs: Costs
) -> Iterator[tuple[str, Placement]]:
    """Every device alone, and attention apart from the rest."""
    for device, name in enumerate(names):
        yield f"all on {name}", given(costs, [device] * len(used))
    for device, name in enumerate(names):
        for other, rest in enumerate(names):
            if other != device:
                chosen = [device if trace.ops[i].kind == "attend" else other for i in used]
                yield f"attention on {name}, the rest on {rest}", given(costs, chosen)


def _choice(rule: str, placement: Placement) -> Choice:
    return Choice(
        rule,
        placement.seconds,
        placement.transfer_seconds,
        placement.transfers,
        placement.transferred_bytes,
        placement.excess,
    )


def _operators(
    trace: Trace, used: Sequence[int], names: Sequence[str], costs: Costs, found: Placement
) -> Iterator[PlacedOperator]:
    for row, index in enumerate(used):
        op = trace.ops[index]
        kernels = op.kernels(trace.lowering)
        moved = float(sum(kernel.bytes for kernel in kernels))
        yield PlacedOperator(
            name=op.name,
            kind=op.kind,
            calls=op.repeat,
            intensity=float(op.flops.total) / moved if moved else 0.0,
            seconds=dict(zip(names, costs.seconds[row].tolist(), strict=True)),
            device=names[found.devices[row]],
        )


def _assumptions(
    chosen: Choice, devices: Sequence[Device], bandwidth: float, latency: float
) -> Iterator[str]:
    yield f"devices exchange {bandwidth / 1e9:,.3g} GB/s after {latency * 1e6:,.3g} µs"
    yield "operators run one after another, each on one device, the same in every layer"
    rated = [device.name for device in devices if tier_of(device) is Tier.DATASHEET]
    if rated:
        yield f"every kernel reaches the rates of {', '.join(rated)}: an optimistic estimate there"
    if not chosen.fits:
        yield "the devices hold the model, which in fact does not fit in their memory in any placement"
