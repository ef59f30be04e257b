"""What executing readings on PyTorch share: packed batches, and a cache in blocks."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch

from ridgeline.errors import InputError
from ridgeline.ops.batch import Batch, CacheSpec, Memory, Span, Wanted, cross_spans, wanted_rows
from ridgeline.ops.records import Mask, Rope
from ridgeline.ops.rope import inverse_frequencies

TORCH_DTYPE = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
FORMAT_NAME = {dtype: name for name, dtype in TORCH_DTYPE.items()}

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "tanh": torch.tanh,
}


@dataclass
class TorchSpans:
    """The spans of a packed batch, with index tensors made once a step and used by all layers.

    Where attention has no cache, ``key_starts`` are the rows of k and v that sequences begin with: those of
    ``starts``, unless keys are another sequence's rows.
    """

    items: tuple[Span, ...]
    device: torch.device
    starts: tuple[int, ...] = ()
    key_starts: tuple[int, ...] = ()
    _sequences: torch.Tensor | None = None
    _lengths: tuple[torch.Tensor, torch.Tensor] | None = None
    _slots: dict[int, torch.Tensor] = field(default_factory=dict)
    _rotations: dict[tuple[Rope, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        self.starts = (0, *accumulate(span.rows for span in self.items))
        self.key_starts = (0, *accumulate(span.keys for span in self.items))
        ranges = [span.positions for span in self.items]
        pieces = [torch.arange(r.start, r.stop, device=self.device) for r in ranges]
        self.positions = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.long, device=self.device)

    def __iter__(self) -> Iterator[Span]:
        return iter(self.items)

    def pieces(self) -> Iterator[tuple[Span, int, int]]:
        """Each span with its first row and the row after its last."""
        return zip(self.items, self.starts, self.starts[1:], strict=False)

    def spread(self, x: torch.Tensor) -> torch.Tensor:
        """Each row's sequence's row of x: [sequences, ...] -> [rows, ...]."""
        return x[self.sequences]

    @property
    def sequences(self) -> torch.Tensor:
        """Of each row the number of its sequence, int64 [rows]."""
        if self._sequences is None:
            numbers = torch.arange(len(self.items), device=self.device)
            self._sequences = numbers.repeat_interleave(self.lengths[0])
        return self._sequences

    @property
    def lengths(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and past of each sequence, int64 [sequences]."""
        if self._lengths is None:
            rows, past = ([getattr(s, name) for s in self.items] for name in ("rows", "past"))
            self._lengths = tuple(
                torch.tensor(x, dtype=torch.int64, device=self.device) for x in (rows, past)
            )
        return self._lengths

    def slots(self, block_size: int) -> torch.Tensor:
        """Where the new rows go in a cache of that block size: [rows]."""
        if block_size not in self._slots:
            parts = []
            for span in self.items:
                positions = torch.arange(span.past, span.keys, device=self.device)
                table = torch.tensor(span.table, device=self.device)
                parts.append(table[positions // block_size] * block_size + positions % block_size)
            self._slots[block_size] = torch.cat(parts)
        return self._slots[block_size]

    def rotation(self, rope: Rope, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for every row, [rows, 1, dim], both halves alike."""
        key = (rope, dtype)
        if key not in self._rotations:
            groups = self.pieces() if rope.by_request else [(Span(0), 0, len(self.positions))]
            angles, factor = [], 1.0
            precise = torch.float64 if dtype == torch.float64 else torch.float32
            for span, start, stop in groups:
                frequency, factor = inverse_frequencies(rope, span.admitted, precise)
                angles.append(self.positions[start:stop, None].to(precise) * frequency.to(self.device))
            angle = torch.cat(angles).repeat(1, 2)[:, None, :]
            self._rotations[key] = ((angle.cos() * factor).to(dtype), (angle.sin() * factor).to(dtype))
        return self._rotations[key]


def halves(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """The elements of x that are rotated together, one in each half of the last dimension."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) if rope.interleaved else x


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x of [rows, heads, dim] turned by its row's angles: x cos + (-x2, x1) sin; with fewer angles than
    elements, the first of them."""
    dim = cos.shape[-1]
    if dim < x.shape[-1]:
        return torch.cat((rotate(x[..., :dim], cos, sin), x[..., dim:]), dim=-1)
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((-second, first), dim=-1), sin)


def make_batch(
    ids: torch.Tensor | Sequence[int],
    spans: Sequence[Span],
    *,
    logits: Wanted = "last",
    cache: TorchCache | None = None,
    segments: torch.Tensor | Sequence[int] | None = None,
    memory: Memory | None = None,
    device: torch.device | str = "cpu",
) -> Batch:
    """A packed step: ``ids`` of all spans one after another, and which rows want logits. Token types
    default to 0. ``memory`` has the spans that an encoder read."""
    device = torch.device(device)
    laid_out = TorchSpans(tuple(spans), device)
    ids = torch.as_tensor(ids, dtype=torch.long, device=device)
    wanted = None
    if logits != "all":
        wanted = torch.tensor(wanted_rows(logits, laid_out.starts), dtype=torch.long, device=device)
    segments = torch.zeros_like(ids) if segments is None else torch.as_tensor(segments, device=device)
    first = torch.tensor(laid_out.starts[:-1], device=device)
    if memory is not None:
        memory = replace(memory, spans=TorchSpans(cross_spans(laid_out, memory.spans), device))
    return Batch(ids, laid_out.positions, laid_out, wanted, first, segments, cache, memory)


class TorchLayerCache:
    """What one layer stores: [kv_heads, slots, dim] each of keys and values, or of latents alone;
    slot = block * size + place."""

    def __init__(self, stored: tuple[torch.Tensor, ...], block_size: int) -> None:
        self.stored = stored
        self.block_size = block_size

    def append(self, spans: TorchSpans, *new: torch.Tensor) -> None:
        """Store the new rows' vectors, [rows, kv_heads, dim] for each tensor that is kept."""
        slots = spans.slots(self.block_size)
        for stored, rows in zip(self.stored, new, strict=True):
            stored.index_copy_(1, slots, rows.transpose(0, 1).to(stored.dtype))

    def read(self, span: Span) -> tuple[torch.Tensor, ...]:
        """What is stored of a sequence up to its newest token, [kv_heads, keys, dim] each; a view
        where its blocks lie one after another."""
        blocks = -(-span.keys // self.block_size)
        table = span.table[:blocks]
        if all(b == table[0] + i for i, b in enumerate(table)):
            first = table[0] * self.block_size if table else 0
            return tuple(x[:, first : first + span.keys] for x in self.stored)
        index = torch.tensor(table, device=self.stored[0].device)

        def gather(x: torch.Tensor) -> torch.Tensor:
            kv_heads, _, dim = x.shape
            in_blocks = x.view(kv_heads, -1, self.block_size, dim)
            return in_blocks.index_select(1, index).view(kv_heads, -1, dim)[:, : span.keys]

        return tuple(map(gather, self.stored))


class TorchCache:
    """A cache of keys and values, or of latents, in ``blocks`` blocks, allocated at once and not filled:
    memory is taken as tokens come, and a slot is written before it is read.

    Raises InputError for a quantised format.
    """

    def __init__(self, spec: CacheSpec, blocks: int, device: torch.device | str = "cpu") -> None:
        if spec.format not in TORCH_DTYPE:
            known = ", ".join(TORCH_DTYPE)
            raise InputError(f"this cache can't be kept as {spec.format}: choose one of {known}")
        self.spec = spec
        self.blocks = blocks
        shape = (spec.layers, spec.kv_heads, blocks * spec.block_size)
        storage = [
            torch.empty((*shape, size), dtype=TORCH_DTYPE[spec.format], device=device) for size in spec.sizes
        ]
        self._layers = [
            TorchLayerCache(tuple(kept[i] for kept in storage), spec.block_size) for i in range(spec.layers)
        ]

    @property
    def addresses(self) -> array:
        """Those of the layers' latents."""
        return array("Q", (layer.stored[0].data_ptr() for layer in self._layers))

    def layer(self, index: int) -> TorchLayerCache:
        return self._layers[index]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy block ``source`` to block ``target`` in every layer, for each of ``pairs`` in turn."""
        size = self.spec.block_size
        for layer in self._layers:
            for stored in layer.stored:
                blocks = stored.view(len(stored), -1, size, stored.shape[-1])
                for source, target in pairs:
                    blocks[:, target] = blocks[:, source]

    def randomise(self) -> None:
        """Fill every slot with N(0, 1), as if tokens had been computed: for timing a long context."""
        for layer in self._layers:
            for stored in layer.stored:
                stored.normal_()


def visible(mask: Mask, rows: int, keys: int, device: torch.device) -> torch.Tensor:
    """Which keys each row sees, aligned bottom-right: bool [rows, keys]."""
    query = torch.arange(rows, device=device)[:, None] + (keys - rows)
    key = torch.arange(keys, device=device)[None, :]
    left, right = mask.window
    if mask.causal:
        right = 0
    seen = torch.ones(rows, keys, dtype=torch.bool, device=device)
    if right >= 0:
        seen &= key <= query + right
    if left >= 0:
        seen &= key >= query - left
    return seen
