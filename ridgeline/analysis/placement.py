"""``ridgeline place``: a model split over unlike devices, operator by operator."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy

from ridgeline.analysis.arguments import config_of, device_of
from ridgeline.analysis.denoising import STEP, trace_denoising
from ridgeline.analysis.explanation import Workload
from ridgeline.analysis.replica import MEMORY_SHARE
from ridgeline.analysis.step import default_lowering, trace_encode, trace_step
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models import Model, ModelConfig, declare
from ridgeline.models.denoising import grid_of
from ridgeline.ops.batch import Span
from ridgeline.ops.formats import storage_format
from ridgeline.ops.kernel import Role, Value
from ridgeline.ops.lowering import Lowering
from ridgeline.ops.trace import OpCost, Trace
from ridgeline.predict.placement import Costs, Flow, Placement, best, flows, given
from ridgeline.predict.prediction import Prediction
from ridgeline.predict.tiers import Tier, tier_of
from ridgeline.predict.times import predict

#: What links unlike devices unless it is said: PCIe 4 x16 in one direction, and the time that a copy takes to
#: begin.
LINK_BANDWIDTH = 32e9
LINK_LATENCY = 10e-6
#: Tokens of a request unless it is said.
PROMPT, OUTPUT = 512, 128


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
    phase: str | None = None,
    prompt: int | None = None,
    output: int | None = None,
    batch: int = 1,
    weights: str | None = None,
    cache: str | None = None,
    link_bandwidth: float = LINK_BANDWIDTH,
    link_latency: float = LINK_LATENCY,
) -> Placed:
    """Put every operator of a ``decode`` step (in the middle of the output), of ``prefill``, of an encoder's
    ``encode``, or of a diffusion Transformer's ``denoise`` (of ``batch`` images, each with its condition and
    without) on that of the devices where it takes least, transfers included, within 90 % of their memory.
    ``phase`` is by default that which a model is judged by: the step that comes again. ``prompt`` is 512
    tokens and ``output`` 128 unless given.

    Raises InputError for fewer than two devices, devices given twice, anything unknown, and what the model
    does not have: a prompt of images, an output or a cache of what does not decode.
    """
    config = config_of(model)
    devices = [device_of(name) for name in on]
    names = [device.name for device in devices]
    if len(devices) < 2 or len(set(names)) < len(names):
        raise InputError("a placement takes two or more unlike devices, like h100-sxm,epyc-9654")
    known = _phases(config)
    phase = known[0] if phase is None else phase
    if phase not in known:
        raise InputError(f"phase must be {' or '.join(known)} for {config.name}, not {phase!r}")
    if not (link_bandwidth > 0 and 0 <= link_latency < math.inf):
        raise InputError("a link needs a bandwidth above 0 and a latency that is finite and not negative")
    _refuse_meaningless(config, prompt, output, cache)
    workload = Workload(PROMPT if prompt is None else prompt, OUTPUT if output is None else output, batch)
    built = declare(config, None if weights is None else storage_format(weights))
    cache_format = built.plain_format if cache is None else storage_format(cache)
    traces = [_trace(built, phase, workload, cache_format, default_lowering(device)) for device in devices]
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
        assumptions=tuple(_assumptions(shown[0], devices, link_bandwidth, link_latency, found.proven)),
    )


def _refuse_meaningless(
    config: ModelConfig, prompt: int | None, output: int | None, cache: str | None
) -> None:
    if config.is_decoder:
        return
    given = {"prompt": prompt if config.is_diffusion else None, "output": output, "cache": cache}
    what = "denoises images as trained" if config.is_diffusion else "is an encoder"
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{config.name} {what}: it has no {name}, so leave it out")


def _phases(config: ModelConfig) -> tuple[str, ...]:
    if config.is_diffusion:
        return (STEP,)
    if config.is_encoder_decoder:
        return "decode", "encode"
    return ("decode", "prefill") if config.is_decoder else ("encode",)


def _trace(model: Model, phase: str, workload: Workload, cache_format: str, lowering: Lowering) -> Trace:
    """The pass that is placed."""
    config, prompt, batch = model.config, workload.prompt, workload.batch
    if phase == STEP:
        return trace_denoising(model, grid_of(config), 2 * batch, lowering=lowering)
    options = {"cache_format": cache_format, "lowering": lowering}
    source, middle = Span(prompt, 0, batch), workload.output // 2
    if config.is_encoder_decoder:
        if phase == "encode":
            return trace_encode(model, [source], **options)
        return trace_step(model, [Span(1, middle, batch)], encoded=[source], **options)
    if phase == "decode":
        return trace_step(model, [Span(1, prompt + middle, batch)], **options)
    return trace_step(model, [source], logits="last" if config.is_decoder else "all", **options)


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
    rows = {index: row for row, index in enumerate(used)}
    token = model.cache_spec(cache_format).bytes_per_token if model.config.is_decoder else 0.0
    layers = model.config.layers
    for column, (trace, prediction) in enumerate(zip(traces, predictions, strict=True)):
        for kernel in prediction.kernels:
            if kernel.op_index in rows:
                seconds[rows[kernel.op_index], column] += float(kernel.seconds) * kernel.repeat
        for row, index in enumerate(used):
            op = trace.ops[index]
            held[row, column] = op.repeat * sum(v.nbytes for v in _touched(op, Role.WEIGHT))
            if _touched(op, Role.CACHE):
                tokens = _cached(model.config, op, workload)
                held[row, column] += token * workload.batch * tokens * op.repeat / layers
    return seconds, held


def _cached(config: ModelConfig, op: OpCost, workload: Workload) -> int:
    """How many tokens of a sequence an operator's cache holds in the end: of an encoder-decoder, the
    decoder's own, or those of the prompt."""
    if not config.is_encoder_decoder:
        return workload.prompt + workload.output
    return workload.output if op.name == "attention" else workload.prompt


def _touched(op: OpCost, role: Role) -> set[Value]:
    """The values of that role that an operator reads or writes."""
    accesses = (a for part in op.parts for a in (*part.reads, *part.writes))
    return {a.value for a in accesses if a.value.role is role}


def _flows(trace: Trace, used: Sequence[int]) -> Iterator[Flow]:
    """What the ``used`` operators hand to each other, by their places among them."""
    rows = {index: row for row, index in enumerate(used)}
    for flow in flows(trace):
        yield replace(flow, source=rows[flow.source], targets=tuple(rows[target] for target in flow.targets))


def _rules(
    trace: Trace, used: Sequence[int], names: Sequence[str], costs: Costs
) -> Iterator[tuple[str, Placement]]:
    """Every device alone, and attention apart from the rest."""
    for device, name in enumerate(names):
        yield f"all on {name}", given(costs, [device] * len(used))
    for device, name in enumerate(names):
        for other, rest in enumerate(names):
            if other != device:
                chosen = [device if trace.ops[i].kind.startswith("attend") else other for i in used]
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
    chosen: Choice, devices: Sequence[Device], bandwidth: float, latency: float, proven: bool
) -> Iterator[str]:
    yield f"devices exchange {bandwidth / 1e9:,.3g} GB/s after {latency * 1e6:,.3g} µs"
    yield "operators run one after another, each on one device, the same in every layer of a kind"
    if not proven:
        yield "memory is short, so the placement is the best of those tried, and not proven to be the best"
    rated = [device.name for device in devices if tier_of(device) is Tier.DATASHEET]
    if rated:
        yield f"every kernel reaches the rates of {', '.join(rated)}: an optimistic estimate there"
    if not chosen.fits:
        yield "the devices hold the model, which in fact does not fit in their memory in any placement"
