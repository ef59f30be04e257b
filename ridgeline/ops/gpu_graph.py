"""Steps of the GPU reading as CUDA graphs: one for each number of sequences, and of rows of each, rounded up.

A graph replays the same kernels on the same addresses, so a step's numbers go into fixed tensors
(:mod:`ridgeline.ops.gpu_numbers`). Grids follow from the longest context that the cache or the model's
window allows, not from today's lengths. The graphs of a cache share one pool of memory; the largest is
recorded first, and the others fit into its pool. They go with the cache: when it is released, or nobody holds
it any more.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ridgeline.errors import OutOfMemory
from ridgeline.kernels import triton as kernels
from ridgeline.ops.batch import Batch, Span, Wanted
from ridgeline.ops.gpu_batch import Angles, free_bytes, gigabytes
from ridgeline.ops.gpu_numbers import StepNumbers
from ridgeline.ops.records import Rope
from ridgeline.ops.torch_batch import TorchSpans

if TYPE_CHECKING:
    from ridgeline.models.model import Model
    from ridgeline.ops.gpu import Gpu
    from ridgeline.ops.gpu_batch import GpuCache
    from ridgeline.ops.gpu_latent import GpuLatentCache

#: Sequences of a graph; a step of more runs operator by operator.
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
#: Rows of each, where proposals are verified; and of how many sequences at most, since more seldom pay.
ROWS = (1, 3, 5, 9)
MOST_VERIFIED = 8


#: cos and sin of every position, float32 [positions, dim].
Turns = dict[Rope, tuple[torch.Tensor, torch.Tensor]]


class StaticSpans:
    """The spans of a step whose numbers change while its tensors stay. ``turns`` are the angles of every
    position that can be, which all steps over a cache share."""

    def __init__(self, numbers: StepNumbers, device: torch.device, turns: Turns) -> None:
        self.numbers, self.device, self._turns = numbers, device, turns
        #: Whether there are rows that belong to no sequence, which attention leaves out.
        self.has_padding = numbers.rows > 1

    def sequences(self, tokens: int) -> kernels.Sequences:
        return self.numbers.sequences

    def angles(self, rope: Rope) -> Angles:
        """Those of every position that can be, from which each row takes its own."""
        if rope not in self._turns:
            longest = Span(self.numbers.sequences.max_keys)
            every = TorchSpans((longest,), self.device).rotation(rope, torch.float32)
            self._turns[rope] = tuple(x[:, 0].contiguous() for x in every)
        return Angles(*self._turns[rope], self.numbers.positions)


class DecodeStep:
    """A step of up to ``size`` sequences of up to ``rows`` rows on fixed tensors, recorded where there is a
    GPU. The cache is not kept."""

    def __init__(
        self,
        ops: Gpu,
        model: Model,
        cache: GpuCache | GpuLatentCache,
        size: int,
        columns: int,
        rows: int = 1,
        turns: Turns | None = None,
    ) -> None:
        self.ops, self.model = ops, model
        self.numbers = StepNumbers(size, rows, columns, cache.spec.block_size, ops.device)
        self.spans = StaticSpans(self.numbers, ops.device, {} if turns is None else turns)
        self._cache = weakref.ref(cache)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: torch.Tensor | None = None

    def compute(self) -> torch.Tensor:
        """The logits of all rows, padding included, as one operator after another gives them."""
        numbers = self.numbers
        return self.model.forward(
            self.ops, Batch(numbers.ids, numbers.positions, self.spans, cache=self._cache())
        )

    def record(self, pool: tuple[int, int]) -> None:
        """Record the graph, after passes that compile and warm up on a stream of their own."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(2):
                self.compute()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self._logits = self.compute()
        self._graph = graph

    def run(self, ids: torch.Tensor | Sequence[int], spans: Sequence[Span]) -> torch.Tensor:
        """The logits of every row, [rows, vocab]."""
        self.numbers.fill(ids, spans)
        if self._graph is None:
            return self.compute()[: len(ids)]
        self._graph.replay()
        return self._logits[: len(ids)].clone()  # the next replay writes over it


@dataclass
class _Steps:
    """The recorded steps of a model over a cache, by sequences and rows, in one pool of memory. The model is
    kept, so that its id stays its own; the cache is not."""

    model: Model
    pool: tuple[int, int] | None = None
    steps: dict[tuple[int, int], DecodeStep] = field(default_factory=dict)
    turns: Turns = field(default_factory=dict)


class DecodeGraphs:
    """The recorded steps of a reading, by model and cache."""

    def __init__(self, ops: Gpu) -> None:
        self.ops = ops
        self.enabled = ops.device.type == "cuda"
        self._held: dict[tuple[int, int], _Steps] = {}
        self._lock = threading.RLock()  # graphs share memory: a result is taken out before the next replay

    def can_run(
        self, model: Model, spans: Sequence[Span], logits: Wanted, cache: GpuCache | GpuLatentCache
    ) -> bool:
        """Whether a step is a few rows of each sequence, all of whose logits are wanted, of a model whose
        pass depends on nothing that the host has to see. Steps of several rows must have been prepared."""
        rows = max((span.rows for span in spans), default=0)
        if not self.enabled or not rows or rows > ROWS[-1] or len(spans) > BUCKETS[-1]:
            return False
        count = sum(span.rows for span in spans)
        wanted = logits == "all" or (rows == 1 and logits == "last")
        wanted = wanted or (not isinstance(logits, str) and list(logits) == list(range(count)))
        if not wanted or not self._records(model, cache):
            return False
        held = self._held.get((id(model), id(cache)))
        return rows == 1 or (held is not None and shape(len(spans), rows) in held.steps)

    def _records(self, model: Model, cache: GpuCache | GpuLatentCache) -> bool:
        """A recorded step attends to latents in their absorbed form, which is not that of other steps."""
        return is_recordable(model) and not (self.ops.invariant and cache.spec.is_latent)

    def run(
        self, model: Model, ids: Sequence[int], spans: Sequence[Span], cache: GpuCache | GpuLatentCache
    ) -> torch.Tensor:
        with self._lock:
            size, rows = shape(len(spans), max(span.rows for span in spans))
            return self._step(model, cache, size, rows).run(ids, spans)

    def prepare(self, model: Model, cache: GpuCache | GpuLatentCache, sequences: int, rows: int = 1) -> None:
        """Record steps of up to so many sequences, and of up to so many ``rows`` of a few of them; the
        largest first. Raises OutOfMemory, with the sizes, and leaves nothing recorded."""
        if not self.enabled or not self._records(model, cache):
            return
        sizes = [b for b in BUCKETS if b <= bucket(min(sequences, BUCKETS[-1]))]
        shapes = [(size, 1) for size in sizes]
        most = shape(1, min(rows, ROWS[-1]))[1]
        shapes += [(size, r) for r in ROWS[1:] if r <= most for size in sizes if size <= MOST_VERIFIED]
        with self._lock:
            try:
                for size, r in sorted(shapes, key=lambda s: s[0] * s[1], reverse=True):
                    self._step(model, cache, size, r)
            except torch.OutOfMemoryError:
                self.release(cache)
                free = gigabytes(free_bytes(self.ops.device))
                raise OutOfMemory(
                    f"the GPU has {free} free beside weights and cache, and steps of {sizes[-1]} sequences "
                    "take more: lower cache_tokens or sequences"
                ) from None

    def release(self, cache: GpuCache | GpuLatentCache) -> None:
        """Forget the steps that were recorded over ``cache``, and their memory."""
        self._forget(id(cache))

    def _forget(self, cache: int) -> None:
        with self._lock:
            found = [key for key in list(self._held) if key[1] == cache]
            for key in found:
                self._held.pop(key, None)
        if found and self.ops.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def _step(self, model: Model, cache: GpuCache | GpuLatentCache, size: int, rows: int) -> DecodeStep:
        key = (id(model), id(cache))
        if key not in self._held:
            self._held[key] = _Steps(model)
            weakref.finalize(cache, _forget, weakref.ref(self), id(cache)).atexit = False
        held = self._held[key]
        if (size, rows) not in held.steps:
            window = -(-model.config.window // cache.spec.block_size)
            columns = min(window, cache.blocks)
            step = DecodeStep(self.ops, model, cache, size, columns, rows, held.turns)
            if self.ops.device.type == "cuda":
                held.pool = held.pool or torch.cuda.graph_pool_handle()
                step.record(held.pool)
            held.steps[size, rows] = step
        return held.steps[size, rows]


def _forget(graphs: weakref.ref[DecodeGraphs], cache: int) -> None:
    found = graphs()
    if found is not None:
        found._forget(cache)


def bucket(sequences: int) -> int:
    """The sequences of the graph that serves so many."""
    return next(size for size in BUCKETS if size >= sequences)


def shape(sequences: int, rows: int) -> tuple[int, int]:
    """The sequences and rows of the graph that serves so many."""
    return bucket(sequences), next(r for r in ROWS if r >= rows)


def is_recordable(model: Model) -> bool:
    """Angles must follow from positions alone."""
    config = model.config
    ropes = getattr(config, "ropes", (getattr(config, "rope", None),))
    by_request = any(rope is not None and rope.by_request for rope in ropes)
    return config.is_decoder and not config.is_encoder_decoder and not by_request
