"""What a replica of a model takes when several devices share it: time, communication and memory.

One replica's passes are counted once for all numbers of sequences and all pipelines; layouts and searches
look their timing up here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy

from ridgeline.analysis.generation import SAMPLES, mean_step, positions
from ridgeline.analysis.step import default_lowering, trace_encode, trace_step
from ridgeline.errors import InputError
from ridgeline.hardware.cluster import Cluster
from ridgeline.models import Model
from ridgeline.models.sharding import Sharding
from ridgeline.ops.batch import Span
from ridgeline.ops.count_context import Context, ContextKind
from ridgeline.ops.trace import Trace
from ridgeline.predict.collectives import Links, constants_of, seconds
from ridgeline.predict.communication import predict_shard
from ridgeline.predict.layout import Layout
from ridgeline.predict.pipeline import Cost, PassCosts, take_apart
from ridgeline.predict.prediction import Prediction

#: Of a device's memory, the share that weights, cache and activations may take; the rest is the driver's, the
#: communication library's and the allocator's.
MEMORY_SHARE = 0.9
#: Prompt tokens of a step at most: longer batches of prompts take several.
STEP_TOKENS = 8192


@dataclass(frozen=True)
class Task:
    """What every layout is judged by: requests of ``prompt`` tokens with ``output`` new ones, the model's
    weights as declared, and the format of the cache."""

    model: Model
    cluster: Cluster
    prompt: int
    output: int
    cache_format: str

    @cached_property
    def sharding(self) -> Sharding:
        return Sharding(self.model)


@dataclass(frozen=True)
class Timing:
    """Requests that start together, on one replica; every field an array over their numbers.

    ``prefill`` is until all have their first token, ``tpot`` between two tokens of one. ``bubble`` is the
    share of the stages' time in prefill that they wait, ``communication`` the shares of both phases that
    are exchanged. ``weights``, ``cache`` and ``activations`` are bytes on the fullest device.
    """

    prefill: numpy.ndarray
    tpot: numpy.ndarray
    bubble: numpy.ndarray
    prefill_communication: numpy.ndarray
    decode_communication: numpy.ndarray
    weights: float
    cache: numpy.ndarray
    activations: numpy.ndarray

    @property
    def memory(self) -> numpy.ndarray:
        return self.weights + self.cache + self.activations


@dataclass(frozen=True)
class Pass:
    """A pass on one rank: its costs by layer, its peak of activations in bytes, and its kernels."""

    costs: PassCosts
    activations: Any
    trace: Trace
    prediction: Prediction


@dataclass
class Replica:
    """A replica of ``tensor`` x ``context`` ranks a stage, whose passes are counted once for any pipeline.

    ``decode_sizes`` and ``prefill_sizes`` are numbers of sequences in a step, ascending.
    """

    task: Task
    tensor: int
    context: int
    context_kind: ContextKind
    decode_sizes: numpy.ndarray
    prefill_sizes: numpy.ndarray
    expert: int = 1
    model: Model = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.task.sharding.shard(self.tensor, self.layout.expert_replicas)
        if self.context > self.task.prompt:
            raise InputError(f"{self.context} ranks can't share a prompt of {self.task.prompt} tokens")

    @property
    def layout(self) -> Layout:
        """Of one stage, and of the replicas that share experts."""
        data = max(self.expert // self.tensor, 1)
        return Layout(self.tensor, 1, data, self.context, self.context_kind, self.expert)

    def read(self, sequences: Any) -> Pass:
        """The pass of one rank that reads so many prompts: prefill, or an encoder-decoder's encoding."""
        span = Span(self.task.prompt, 0, sequences)
        if self.model.config.is_encoder_decoder:
            return self._pass(trace_encode(self.model, [span], **self._options))
        return self._step(span, prefill=True)

    def step(self, sequences: Any, given: Any) -> Pass:
        """The step of so many sequences behind ``given`` tokens of their output."""
        if self.model.config.is_encoder_decoder:
            return self._step(Span(1, given, sequences), [Span(self.task.prompt, 0, sequences)])
        return self._step(Span(1, self.task.prompt + given - 1, sequences))

    def _step(self, span: Span, encoded: Sequence[Span] = (), *, prefill: bool = False) -> Pass:
        context = None
        if self.context > 1:
            context = Context(self.context, self.context_kind, divides_rows=prefill)
        return self._pass(trace_step(self.model, [span], encoded=encoded, context=context, **self._options))

    def _pass(self, trace: Trace) -> Pass:
        found = predict_shard(trace, self.task.cluster, self.layout)
        return Pass(take_apart(trace, found), trace.memory().activations, trace, found)

    @property
    def _options(self) -> dict[str, Any]:
        lowering = default_lowering(self.task.cluster.device)
        return {"cache_format": self.task.cache_format, "lowering": lowering}

    @cached_property
    def _first(self) -> tuple[PassCosts, Any]:
        """All until the first token: its costs, and the peak of activations."""
        reading = self.read(self.prefill_sizes)
        if not self.model.config.is_encoder_decoder:
            return reading.costs, reading.activations
        step = self.step(self.prefill_sizes, 0)
        (encode,), (decode,) = reading.costs.stages(1), step.costs.stages(1)
        both = replace(encode + decode, weights=self.model.weight_bytes(), layers=0)
        costs = replace(
            step.costs, before=both, runs=((step.costs.layers, Cost(layers=1)),), after=Cost(), tied=0.0
        )
        return costs, numpy.maximum(reading.activations, step.activations)

    @cached_property
    def _decode(self) -> tuple[PassCosts, Any]:
        """A step's mean over the output, and the peak of its activations."""
        steps = max(self.task.output - 1, 1)
        given = positions(1, numpy.full(len(self.decode_sizes), steps))
        found = self.step(numpy.repeat(self.decode_sizes, SAMPLES), given.ravel())

        def spread(values: Any) -> Any:
            return numpy.broadcast_to(values, given.size).reshape(given.shape)

        def mean(values: Any) -> Any:
            return mean_step(lambda _: spread(values), 1, numpy.full(len(given), steps))

        costs = found.costs.with_times(mean)
        return costs, spread(found.activations).max(axis=1)

    def timing(self, pipeline: int, batch: numpy.ndarray) -> Timing:
        """``batch`` requests at once through so many stages; the sizes of their steps must be known."""
        costs, activations = self._first
        total, slowest, exchanged = self._through(costs, pipeline)
        steps = -(-batch[:, None] // self.prefill_sizes)
        taken = total + (steps - 1) * slowest
        taken = numpy.where(self.prefill_sizes <= batch[:, None], taken, numpy.inf)
        best = taken.argmin(axis=1)
        rows = numpy.arange(len(batch))
        prefill = taken[rows, best]
        stages = costs.stages(pipeline)
        busy = sum(stage.seconds for stage in stages)[best] * steps[rows, best] / pipeline

        decode_costs, decode_activations = self._decode
        micro = numpy.minimum(pipeline, batch)
        index = numpy.searchsorted(self.decode_sizes, -(-batch // micro))
        step_total, step_slowest, step_exchanged = self._through(decode_costs, pipeline)
        tpot = numpy.maximum(step_total[index], micro * step_slowest[index])
        return Timing(
            prefill=prefill,
            tpot=tpot,
            bubble=1 - busy / prefill,
            prefill_communication=(exchanged / total)[best],
            decode_communication=(step_exchanged / step_total)[index],
            **self._memory(stages, batch, activations[best], decode_activations[index]),
        )

    def _memory(self, stages, batch, prefill_activations, decode_activations) -> Mapping[str, Any]:
        fullest = max(stages, key=lambda stage: (stage.weights, stage.layers))
        spec = self.model.cache_spec(self.task.cache_format)
        a_layer = spec.bytes_per_token / spec.layers
        layers = max(stage.layers for stage in stages)
        tokens = batch * (self.task.prompt + self.task.output) / self.context
        return {
            "weights": fullest.weights,
            "cache": a_layer * layers * tokens,
            "activations": numpy.maximum(prefill_activations, decode_activations),
        }

    def _through(self, costs: PassCosts, pipeline: int) -> tuple[Any, Any, Any]:
        """Seconds of one micro-batch through all stages, of its slowest stage, and of what is exchanged."""
        stages: list[Cost] = costs.stages(pipeline)
        inside, across = (self._send(costs.entry_bytes, per_node) for per_node in (2, 1))
        ranks = self.tensor * self.context
        nodes = -(-pipeline * ranks // self.task.cluster.per_node)
        crossings = min(nodes, pipeline) - 1
        sends = crossings * across + (pipeline - 1 - crossings) * inside
        hop = (across if crossings else inside) if pipeline > 1 else 0
        total = sum(stage.seconds for stage in stages) + sends
        slowest = numpy.maximum.reduce([stage.seconds for stage in stages]) + hop
        exchanged = sum(stage.communication for stage in stages) + sends
        return total, slowest, exchanged

    def _send(self, nbytes: Any, per_node: int) -> Any:
        cluster = self.task.cluster
        links = Links(cluster.link_bandwidth, cluster.network_bandwidth)
        together = min(self.tensor * self.context, cluster.per_node)
        return seconds(constants_of(cluster.device), links, "send_recv", nbytes, 2, per_node, together)


def prefill_sizes(prompt: int, context: int, batch: int) -> numpy.ndarray:
    """Numbers of prompts in a step: powers of two within STEP_TOKENS tokens a rank, one at least; all at
    once, if they are within."""
    most = max(STEP_TOKENS * context // prompt, 1)
    sizes = {2**n for n in range(min(most, batch).bit_length())}
    return numpy.array(sorted(sizes | {min(batch, most)}))


def decode_sizes(pipelines: Iterable[int], batches: numpy.ndarray) -> numpy.ndarray:
    """The sizes of the micro-batches of so many requests through so many stages."""
    found = {int(-(-b // min(p, b))) for p in pipelines for b in batches}
    return numpy.array(sorted(found))
