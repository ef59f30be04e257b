"""A key/value cache in pages on a GPU, and attention that appends to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.triton import row_kernels
from ridgeline.kernels.triton.arguments import (
    MOST_HEAD_DIM,
    Policy,
    check_groups,
    check_heads,
    check_no_gradient,
    check_sizes,
    describe,
)
from ridgeline.kernels.triton.attention import Layout, run
from ridgeline.kernels.triton.rows import check_angles
from ridgeline.kernels.triton.runtime import OPTIONS, triton
from ridgeline.ops.batch import BLOCK_TOKENS, Span

#: What a cache can hold its elements as.
KV_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, eq=False)
class KVCache:
    """Keys and values of one layer: ``[blocks, tokens, kv_heads, dim]`` each, contiguous. What no
    :func:`attend` has written is never seen."""

    keys: torch.Tensor
    values: torch.Tensor

    def __post_init__(self) -> None:
        for name, x in (("keys", self.keys), ("values", self.values)):
            if x.dim() != 4 or not x.is_contiguous() or not 1 <= x.shape[3] <= MOST_HEAD_DIM:
                raise InputError(f"{name} is {describe(x)}; give contiguous [blocks, tokens, kv_heads, dim]")

    @classmethod
    def empty(
        cls,
        blocks: int,
        kv_heads: int,
        dim: int,
        format: str = "bf16",
        *,
        device: torch.device | str,
        tokens: int = BLOCK_TOKENS,
    ) -> KVCache:
        if format not in KV_FORMATS:
            raise InputError(f"format is {format!r}; choose one of: {', '.join(KV_FORMATS)}")
        shape = (2, blocks, tokens, kv_heads, dim)
        return cls(*torch.empty(shape, dtype=KV_FORMATS[format], device=device))

    @property
    def blocks(self) -> int:
        return self.keys.shape[0]

    @property
    def tokens(self) -> int:
        """Those of a block."""
        return self.keys.shape[1]

    def read(self, table: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first ``tokens`` keys and values of the blocks that ``table`` lists, ``[tokens, kv_heads,
        dim]``."""
        keys, values = (x[table.long()].flatten(0, 1)[:tokens] for x in (self.keys, self.values))
        return keys, values


@dataclass(frozen=True, eq=False)
class Sequences:
    """The sequences of a packed step, on the GPU; made once, it serves all layers.

    - ``cu_rows``: int32 ``[sequences + 1]``, where each sequence's new rows begin.
    - ``lengths``: int32 ``[sequences]``, its keys, the new ones included.
    - ``tables``: int32 ``[sequences, columns]``, its cache blocks.
    - ``slots``: int64 ``[rows]``, block * tokens + place of each new row; -1 is padding, which is not stored.
    - ``max_rows``, ``max_keys``: bounds of one sequence's, which the grids of kernels follow.
    """

    cu_rows: torch.Tensor
    lengths: torch.Tensor
    tables: torch.Tensor
    slots: torch.Tensor
    max_rows: int
    max_keys: int

    @classmethod
    def of(cls, spans: Iterable[Span], device: torch.device | str, tokens: int = BLOCK_TOKENS) -> Sequences:
        """The sequences of a batch's spans, for blocks of so many ``tokens``."""
        spans = tuple(spans)
        columns = max((len(s.table) for s in spans), default=0)
        starts = [0, *accumulate(s.rows for s in spans)]
        tables = [[*s.table, *[0] * (columns - len(s.table))] for s in spans]
        # Where a sequence reads another's keys, of which there may be fewer than it has rows, none are
        # stored.
        slots = [
            s.table[j // tokens] * tokens + j % tokens if s.past >= 0 else -1
            for s in spans
            for j in range(s.past, s.keys)
        ]

        def on(values: list, dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype).to(device)

        return cls(
            on(starts, torch.int32),
            on([s.keys for s in spans], torch.int32),
            on(tables, torch.int32).view(len(spans), columns),
            on(slots, torch.int64),
            max((s.rows for s in spans), default=0),
            max((s.keys for s in spans), default=0),
        )

    def layout(self) -> Layout:
        return Layout(
            len(self.lengths),
            self.max_rows,
            self.max_keys,
            self.cu_rows,
            lengths=self.lengths,
            tables=self.tables,
        )


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: KVCache,
    sequences: Sequences,
    *,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    causal: bool = True,
    window: tuple[int, int] = (-1, -1),
    sinks: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
    schedule: str = "auto",
    return_lse: bool = False,
    out: torch.Tensor | None = None,
    distance_bias: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Rotates q and k, appends k and v to the cache, and attends to all that is cached, as
    :func:`ridgeline.kernels.attend`: ``[rows, heads, dim]``. One kernel rotates and appends, one attends.

    The rotated q is rounded to the cache's dtype, in which keys and values are stored and multiplied.
    Raises InputError that names the argument for a wrong dtype, shape, stride or device.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_heads(name, tensor, "rows, heads, dim")
        check_no_gradient(name, tensor, "use torch.no_grad()")
    rows, heads, dim = q.shape
    kv_heads = cache.keys.shape[2]
    check_sizes("q", q, (rows, heads, cache.keys.shape[3]), "the cache")
    for name, tensor in (("k", k), ("v", v)):
        check_sizes(name, tensor, (rows, kv_heads, dim), "the cache")
    check_groups(q, kv_heads, "cache")
    _check_rows(sequences, rows, "q")
    if (cos is None) != (sin is None):
        raise InputError("one of cos and sin is given without the other; give both or neither")
    if cos is not None:
        if dim % 2:
            raise InputError(f"q has heads of {dim} elements; a rotation takes an even number")
        positions = check_angles(cos, sin, positions, rows, dim, q.device)
    turned = (
        q.to(cache.keys.dtype)
        if cos is None
        else torch.empty(q.shape, dtype=cache.keys.dtype, device=q.device)
    )
    if rows:
        _rotate_append(q, k, v, cos, sin, positions, sequences.slots, turned, cache)
    policy = Policy.of(q, causal, window, sinks, scale, softcap, alibi_slopes, sink_logits, distance_bias)
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return run(turned, cache.keys, cache.values, sequences.layout(), policy, schedule, return_lse, out)


def store(k: torch.Tensor, v: torch.Tensor, cache: KVCache, sequences: Sequences) -> None:
    """Stores keys and values, ``[rows, kv_heads, dim]``, after each sequence's past: :func:`attend` without
    its attention. Arguments and errors are :func:`attend`'s."""
    for name, tensor in (("k", k), ("v", v)):
        check_heads(name, tensor, "rows, kv_heads, dim")
        check_no_gradient(name, tensor, "use torch.no_grad()")
        check_sizes(name, tensor, (k.shape[0], *cache.keys.shape[2:]), "the cache")
    _check_rows(sequences, k.shape[0], "k")
    if len(k):
        nobody = k[:, :0]
        _rotate_append(nobody, k, v, None, None, None, sequences.slots, nobody, cache)


def attend_stored(
    q: torch.Tensor,
    cache: KVCache,
    sequences: Sequences,
    *,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    scale: float | None = None,
    softcap: float = 0.0,
    distance_bias: torch.Tensor | None = None,
    schedule: str = "auto",
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """:func:`attend` to what :func:`store` has stored, and to nothing new: ``[rows, heads, dim]``."""
    check_heads("q", q, "rows, heads, dim")
    check_no_gradient("q", q, "use torch.no_grad()")
    check_sizes("q", q, (*q.shape[:2], cache.keys.shape[3]), "the cache")
    check_groups(q, cache.keys.shape[2], "cache")
    _check_rows(sequences, q.shape[0], "q")
    policy = Policy.of(q, causal, window, 0, scale, softcap, None, None, distance_bias)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    stored = cache.keys, cache.values
    return run(q.to(cache.keys.dtype), *stored, sequences.layout(), policy, schedule, False, out)


def _check_rows(sequences: Sequences, rows: int, name: str) -> None:
    if len(sequences.slots) != rows:
        raise InputError(f"sequences has {len(sequences.slots)} rows and {name} {rows}; give the same")


def _rotate_append(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    positions: torch.Tensor | None,
    slots: torch.Tensor,
    turned: torch.Tensor,
    cache: KVCache,
) -> None:
    rotated = cos is not None
    heads, dim = q.shape[1:]
    keys, values = cache.keys, cache.values
    row_kernels.rotate_append[(q.shape[0], heads + k.shape[1])](
        q, k, v, cos if rotated else q, sin if rotated else q, slots if positions is None else positions,
        slots, turned, keys, values,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], cos.stride(0) if rotated else 0,
        *turned.stride()[:2], *keys.stride()[1:3], *values.stride()[1:3], heads,
        dim, triton.next_power_of_2(dim), rotated, positions is not None, **OPTIONS,
    )  # fmt: skip
