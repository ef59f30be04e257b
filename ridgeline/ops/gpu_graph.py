"""Decode steps of the GPU reading as CUDA graphs: one for each number of sequences, rounded up to a bucket.

A graph replays the same kernels on the same addresses, so a step's numbers go into fixed tensors: ids,
positions, lengths, block tables, slots. Rows beyond the step's are padding: no keys, and no place in the
cache. Grids follow from the longest context that the cache or the model's window allows, not from today's
lengths. All graphs share one pool of memory, the largest is recorded first, and the others fit into its pool.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ridgeline.kernels import triton as kernels
from ridgeline.ops.batch import Batch, Span, Wanted
from ridgeline.ops.gpu_batch import Angles, GpuCache
from ridgeline.ops.records import Rope
from ridgeline.ops.torch_batch import TorchSpans

if TYPE_CHECKING:
    from ridgeline.models.model import Model
    from ridgeline.ops.gpu import Gpu

#: Sequences of a graph; a step of more runs operator by operator.
BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)


class StaticSpans:
    """The spans of a decode step whose numbers change while its tensors stay. One row a sequence."""

    def __init__(self, size: int, columns: int, cache: GpuCache, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        tokens = cache.spec.block_size
        self.tokens, self.columns, self.device = tokens, columns, device
        self.longest = columns * tokens
        self.positions = zeros(size, dtype=torch.int64)
        starts = torch.arange(size + 1, dtype=torch.int32, device=device)
        self.held = kernels.Sequences(
            starts, zeros(size), zeros(size, columns), zeros(size, dtype=torch.int64) - 1, 1, self.longest
        )
        self._angles: dict[Rope, Angles] = {}

    def fill(self, spans: Sequence[Span]) -> None:
        """The numbers of a step of at most as many sequences."""
        size = len(self.positions)
        pad = [0] * (size - len(spans))
        tables = [[*s.table[: self.columns], *[0] * (self.columns - len(s.table))] for s in spans]
        slots = [s.table[s.past // self.tokens] * self.tokens + s.past % self.tokens for s in spans]
        copy(self.positions, [*(s.past + s.skipped for s in spans), *pad])
        copy(self.held.lengths, [*(s.keys for s in spans), *pad])
        copy(self.held.tables, [*tables, *([0] * self.columns for _ in pad)])
        copy(self.held.slots, [*slots, *(-1 for _ in pad)])

    def sequences(self, tokens: int) -> kernels.Sequences:
        return self.held

    def angles(self, rope: Rope) -> Angles:
        """Those of every position that can be, from which each row takes its own."""
        if rope not in self._angles:
            every = TorchSpans((Span(self.longest),), self.device).rotation(rope, torch.float32)
            self._angles[rope] = Angles(*(x[:, 0].contiguous() for x in every), self.positions)
        return self._angles[rope]


class DecodeStep:
    """A decode step of up to ``size`` sequences on fixed tensors, recorded where there is a GPU."""

    def __init__(self, ops: Gpu, model: Model, cache: GpuCache, size: int, columns: int) -> None:
        self.ops, self.model, self.size = ops, model, size
        self.spans = StaticSpans(size, columns, cache, ops.device)
        self.ids = torch.zeros(size, dtype=torch.int64, device=ops.device)
        self.batch = Batch(self.ids, self.spans.positions, self.spans, cache=cache)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: torch.Tensor | None = None

    def compute(self) -> torch.Tensor:
        return self.model.forward(self.ops, self.batch)

    def record(self, pool: tuple[int, int] | None) -> None:
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

    def run(self, ids: Sequence[int], spans: Sequence[Span]) -> torch.Tensor:
        """The logits of each sequence, [sequences, vocab]."""
        copy(self.ids, [*ids, *[0] * (self.size - len(ids))])
        self.spans.fill(spans)
        if self._graph is None:
            return self.compute()[: len(spans)]
        self._graph.replay()
        return self._logits[: len(spans)].clone()  # the next replay writes over it


class DecodeGraphs:
    """The recorded steps of a reading, by model, cache and bucket."""

    def __init__(self, ops: Gpu) -> None:
        self.ops = ops
        self.enabled = ops.device.type == "cuda"
        self._steps: dict[tuple, DecodeStep] = {}
        self._pool: tuple[int, int] | None = None
        self._lock = threading.RLock()  # graphs share memory: a result is taken out before the next replay

    def can_run(self, model: Model, spans: Sequence[Span], logits: Wanted) -> bool:
        """Whether a step is one row of each sequence, all of whose logits are wanted, of a model whose pass
        depends on nothing that the host has to see."""
        alone = 0 < len(spans) <= BUCKETS[-1] and all(span.rows == 1 for span in spans)
        wanted = logits in ("last", "all") or list(logits) == list(range(len(spans)))
        return self.enabled and alone and wanted and is_recordable(model)

    def run(self, model: Model, ids: Sequence[int], spans: Sequence[Span], cache: GpuCache) -> torch.Tensor:
        with self._lock:
            return self._step(model, cache, bucket(len(spans))).run(ids, spans)

    def prepare(self, model: Model, cache: GpuCache, sequences: int) -> None:
        if self.enabled and is_recordable(model):
            with self._lock:
                for size in reversed([b for b in BUCKETS if b <= bucket(min(sequences, BUCKETS[-1]))]):
                    self._step(model, cache, size)

    def _step(self, model: Model, cache: GpuCache, size: int) -> DecodeStep:
        key = (id(model), id(cache), size)
        if key not in self._steps:
            window = -(-model.config.window // cache.spec.block_size)
            step = DecodeStep(self.ops, model, cache, size, min(window, cache.blocks))
            if self.ops.device.type == "cuda":
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                step.record(self._pool)
            self._steps[key] = step  # it keeps model and cache, so that their ids stay their own
        return self._steps[key]


def bucket(sequences: int) -> int:
    """The graph that serves so many sequences."""
    return next(size for size in BUCKETS if size >= sequences)


def is_recordable(model: Model) -> bool:
    """Angles must follow from positions alone, and no expert be chosen by the host."""
    config = model.config
    ropes = getattr(config, "ropes", (getattr(config, "rope", None),))
    by_request = any(rope is not None and rope.by_request for rope in ropes)
    plain = config.is_decoder and not config.is_encoder_decoder
    return plain and not by_request and not getattr(config, "experts", 0)


def copy(target: torch.Tensor, values: list) -> None:
    """Numbers of the host into a fixed tensor; from pinned memory, so that the host need not wait."""
    source = torch.tensor(values, dtype=target.dtype)
    if target.device.type == "cuda":
        source = source.pin_memory()
    target.copy_(source.view(target.shape), non_blocking=True)
