"""Latent attention of the GPU reading: its cache, and the form that each sequence runs in.

Absorbed, all heads attend to the latents where they are cached. Expanded, keys and values of every head are
made of them first; over a long context piece by piece, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from ridgeline.errors import InputError
from ridgeline.kernels import triton as kernels
from ridgeline.kernels.triton.latent import SPLIT_ROWS
from ridgeline.ops.attend_latent import expand
from ridgeline.ops.batch import CacheSpec, Span
from ridgeline.ops.gpu_batch import NO_ANGLES, GpuSpans, allocated
from ridgeline.ops.gpu_graph import StaticSpans
from ridgeline.ops.latent import Latent, Mla, is_absorbed
from ridgeline.ops.records import Mask, Rope, Score
from ridgeline.ops.torch_batch import TORCH_DTYPE

if TYPE_CHECKING:
    from ridgeline.ops.gpu import Gpu

#: What latents can be kept as.
DTYPES = {name: TORCH_DTYPE[name] for name in ("fp32", "bf16", "fp16")}
#: Elements of keys and values that are expanded at a time, at most: 512 MB in 16 bits.
MOST_EXPANDED = 1 << 28


class GpuLatentCache:
    """A cache of latents in ``blocks`` blocks of any size, allocated at once.

    Raises InputError for a format that the kernels don't read, and if the device's memory does not hold it.
    """

    def __init__(self, spec: CacheSpec, blocks: int, device: torch.device) -> None:
        if spec.format not in DTYPES:
            raise InputError(
                f"a GPU's cache of latents can't be kept as {spec.format}: choose one of {', '.join(DTYPES)}"
            )
        self.spec = spec
        self.blocks = blocks
        shape = (spec.layers, blocks, spec.block_size, spec.head_dim)
        self._data = allocated(shape, DTYPES[spec.format], spec, blocks, device)

    def layer(self, index: int) -> torch.Tensor:
        """What the layer's tokens store: [blocks, tokens, rank + rotated]."""
        return self._data[index]

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy block ``source`` to block ``target`` in every layer, for each of ``pairs`` in turn."""
        for source, target in pairs:
            self._data[:, target] = self._data[:, source]

    def randomise(self) -> None:
        """Fill every slot with N(0, 1), as if tokens had been computed: for timing a long context."""
        self._data.normal_()


@dataclass(frozen=True)
class Absorbed:
    """Sequences of a step that attend to their latents: their numbers of ``rows`` in the step, None for all,
    and what the kernel reads."""

    rows: torch.Tensor | None
    sequences: kernels.Sequences
    has_padding: bool = False


@dataclass(frozen=True)
class Expanded:
    """Sequences of a step whose keys and values are made: their numbers of ``rows`` in the step, None for
    all; where the rows and the keys of each begin; and where the keys lie in the cache, if there is one."""

    spans: tuple[Span, ...]
    rows: torch.Tensor | None
    starts: torch.Tensor
    key_starts: torch.Tensor
    slots: torch.Tensor | None


@dataclass(frozen=True)
class Parts:
    """The sequences of a step by the form in which they run; the same for all layers."""

    absorbed: tuple[Absorbed, ...]
    expanded: tuple[Expanded, ...]

    @classmethod
    def of(cls, spans: GpuSpans, latent: Latent, form: Mla, tokens: int) -> Parts:
        """``tokens`` are those of a block, 0 without a cache, where everything is expanded. A sequence's part
        follows from its own rows and keys, whatever the others do."""
        few: list[int] = []
        many: list[int] = []
        expanded: list[int] = []
        for i, span in enumerate(spans.items):
            absorbed = tokens and is_absorbed(latent, form, span.rows, span.keys)
            kind = expanded if not absorbed else few if span.rows <= SPLIT_ROWS else many
            kind.append(i)

        def rows_of(numbers: list[int]) -> torch.Tensor | None:
            if len(numbers) == len(spans.items):
                return None
            ranges = (range(*spans.starts[i : i + 2]) for i in numbers)
            return _on([row for one in ranges for row in one], torch.int64, spans.device)

        def absorbed_part(numbers: list[int]) -> Absorbed:
            chosen = (spans.items[i] for i in numbers)
            return Absorbed(rows_of(numbers), kernels.Sequences.of(chosen, spans.device, tokens))

        def expanded_part(numbers: list[int]) -> Expanded:
            chosen = tuple(spans.items[i] for i in numbers)
            slots = None
            if tokens:
                places = [s.table[j // tokens] * tokens + j % tokens for s in chosen for j in range(s.keys)]
                slots = _on(places, torch.int64, spans.device)
            starts, key_starts = (
                _on([0, *accumulate(lengths)], torch.int32, spans.device)
                for lengths in ([s.rows for s in chosen], [s.keys for s in chosen])
            )
            return Expanded(chosen, rows_of(numbers), starts, key_starts, slots)

        groups = _in_groups(expanded, spans.items, piece_of(latent))
        return cls(
            tuple(absorbed_part(numbers) for numbers in (few, many) if numbers),
            tuple(map(expanded_part, groups)),
        )


def piece_of(latent: Latent) -> int:
    """Keys that are expanded at a time, at most."""
    return max(1, MOST_EXPANDED // (latent.heads * (latent.content + latent.value)))


def _parts(spans: GpuSpans | StaticSpans, latent: Latent, form: Mla, tokens: int) -> Parts:
    """Made once a step; a recorded step runs absorbed."""
    if isinstance(spans, StaticSpans):
        return Parts((Absorbed(None, spans.sequences(tokens), spans.has_padding),), ())
    key = (tokens, latent.heads, latent.rank, latent.content, latent.rotated, latent.value)
    if key not in spans.latents:
        spans.latents[key] = Parts.of(spans, latent, form, tokens)
    return spans.latents[key]


def _on(numbers: list[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers, dtype=dtype).to(device)


def _in_groups(numbers: list[int], spans: Sequence[Span], most: int) -> Iterator[list[int]]:
    """The sequences in groups of at most so many keys; one that has more is alone."""
    group: list[int] = []
    for i in numbers:
        if group and sum(spans[j].keys for j in group) + spans[i].keys > most:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def attend_latent(
    ops: Gpu,
    q: torch.Tensor,
    kv: torch.Tensor,
    latent: Latent,
    *,
    spans: GpuSpans | StaticSpans,
    mask: Mask,
    score: Score,
    rope: Rope | None,
    cache: torch.Tensor | None,
) -> torch.Tensor:
    """The heads' outputs, [rows, heads * value]. ``cache`` is a layer's of :class:`GpuLatentCache`.

    Raises InputError for a mask or a score that no model with latents has.
    """
    if not mask.causal or mask.window != (-1, -1) or score.softcap or score.bias is not None:
        raise InputError(
            "latent attention on a GPU is causal, without a window, softcap or bias: use the cpu"
        )
    q = q.view(len(q), latent.heads, latent.key)
    held = None if cache is None else kernels.LatentCache(cache, latent.rank)
    angles = NO_ANGLES if rope is None else spans.angles(rope)
    turned, stored = kernels.turn_append(
        q,
        kv,
        ops._norm_weight(latent.norm),
        latent.norm.eps,
        latent.rank,
        **angles._asdict(),
        interleaved=rope is not None and rope.interleaved,
        cache=held,
        slots=None if held is None else spans.sequences(held.tokens).slots,
    )
    parts = _parts(spans, latent, ops.mla, 0 if held is None else held.tokens)
    outputs = []
    for part in parts.absorbed:
        content, rotated = _of(q, part)[..., : latent.content], _of(turned, part)
        outputs.append(_absorbed(ops, content, rotated, held, latent, part, score.scale))
    for part in parts.expanded:
        queries = torch.cat((_of(q, part)[..., : latent.content], _of(turned, part).to(q.dtype)), -1)
        outputs.append(_expanded(ops, queries, held, stored, latent, part, score.scale))
    every = (*parts.absorbed, *parts.expanded)
    if len(every) == 1:
        return outputs[0].flatten(1)
    out = torch.empty(len(q), latent.heads, latent.value, dtype=q.dtype, device=q.device)
    for part, rows in zip(every, outputs, strict=True):
        out.index_copy_(0, part.rows, rows)
    return out.flatten(1)


def _of(x: torch.Tensor, part: Absorbed | Expanded) -> torch.Tensor:
    return x if part.rows is None else x.index_select(0, part.rows)


def _absorbed(
    ops: Gpu,
    content: torch.Tensor,
    turned: torch.Tensor,
    cache: kernels.LatentCache,
    latent: Latent,
    part: Absorbed,
    scale: float,
) -> torch.Tensor:
    up = ops.plain(latent.up).view(latent.heads, -1, latent.rank)
    to_keys, to_values = up.split((latent.content, latent.value), 1)
    long = torch.bmm(content.transpose(0, 1), to_keys).transpose(0, 1)
    long = long.to(cache.stored.dtype).contiguous()
    out = torch.zeros_like(long) if part.has_padding else None
    summed = kernels.attend_latents(long, turned, cache, part.sequences, scale, out).to(content.dtype)
    return torch.bmm(summed.transpose(0, 1), to_values.transpose(1, 2)).transpose(0, 1)


def _expanded(
    ops: Gpu,
    q: torch.Tensor,
    cache: kernels.LatentCache | None,
    stored: torch.Tensor,
    latent: Latent,
    part: Expanded,
    scale: float,
) -> torch.Tensor:
    def made(first: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        if cache is None:
            return expand(_of(stored, part)[first:end], latent, ops)
        return expand(cache.read(part.slots[first:end]).to(q.dtype), latent, ops)

    options = {"scale": scale, "max_rows": max(span.rows for span in part.spans), "schedule": ops.schedule}
    longest, total = max(span.keys for span in part.spans), sum(span.keys for span in part.spans)
    # Pieces follow from where a chunk begins: invariant, all keys are made at once, whatever they take.
    if len(part.spans) > 1 or total <= piece_of(latent) or ops.invariant:
        starts = part.starts, part.key_starts
        return kernels.attention_varlen(q, *made(0, total), *starts, causal=True, max_keys=longest, **options)
    [span] = part.spans
    # Keys before the chunk, which all its rows see, in pieces; then the chunk's own, under the mask.
    cuts = [*range(0, span.past, piece_of(latent)), span.past, span.keys]
    outputs, logs = [], []
    for first, end in pairwise(cuts):
        key_starts = _on([0, end - first], torch.int32, q.device)
        out = torch.empty(len(q), latent.heads, latent.value, dtype=torch.float32, device=q.device)
        given = {"causal": end == span.keys, "max_keys": end - first, "return_lse": True, "out": out}
        _, log = kernels.attention_varlen(q, *made(first, end), part.starts, key_starts, **given, **options)
        outputs.append(out)
        logs.append(log.T)
    merged, _ = kernels.merge_states(torch.stack(outputs), torch.stack(logs).contiguous())
    return merged.to(q.dtype)
