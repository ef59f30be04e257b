"""A key/value cache in pages on a GPU, and attention that appends to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.triton.append_kernel import FP8, INT8, rotate_append
from ridgeline.kernels.triton.arguments import (
    MOST_HEAD_DIM,
    Policy,
    check_groups,
    check_heads,
    check_no_gradient,
    check_sizes,
    describe,
)
from ridgeline.kernels.triton.attention_launch import Layout, Scales, run
from ridgeline.kernels.triton.rows import check_angles
from ridgeline.kernels.triton.runtime import OPTIONS, as_fp8, triton
from ridgeline.ops.batch import BLOCK_TOKENS, Span

#: What a cache can hold its elements as; FP8 (e4m3) as bytes, since not every GPU has numbers of it.
KV_FORMATS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
    "fp8": torch.uint8,
}
#: Those whose elements have a float32 scale a token and head, as the kernels number them.
_KINDS = {torch.int8: INT8.value, torch.uint8: FP8.value}


@dataclass(frozen=True, eq=False)
class KVCache:
    """Keys and values of one layer: ``[blocks, tokens, kv_heads, dim]`` each, contiguous; of int8 and FP8
    ones the scales, too, float32 ``[blocks, kv_heads, tokens]``. What no :func:`attend` has written is never
    seen."""

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None = None
    value_scales: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name, x in (("keys", self.keys), ("values", self.values)):
            if x.dim() != 4 or not x.is_contiguous() or not 1 <= x.shape[3] <= MOST_HEAD_DIM:
                raise InputError(f"{name} is {describe(x)}; give contiguous [blocks, tokens, kv_heads, dim]")
        if not self.has_scales:
            return
        blocks, tokens, heads, _ = self.keys.shape
        for name, x in (("key_scales", self.key_scales), ("value_scales", self.value_scales)):
            if x is None or x.shape != (blocks, heads, tokens) or x.dtype != torch.float32:
                given = "None" if x is None else describe(x)
                raise InputError(f"{name} is {given}; give float32 {[blocks, heads, tokens]}")

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
        stored = torch.empty((2, blocks, tokens, kv_heads, dim), dtype=KV_FORMATS[format], device=device)
        if stored.dtype not in _KINDS:
            return cls(*stored)
        return cls(*stored, *torch.empty(2, blocks, kv_heads, tokens, device=device))

    @property
    def has_scales(self) -> bool:
        return self.keys.dtype in _KINDS

    @property
    def multiplied(self) -> torch.dtype:
        """What queries are rounded to, and elements of one byte are widened to, which holds them exactly."""
        return torch.bfloat16 if self.has_scales else self.keys.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its elements and scales."""
        held = (self.keys, self.values, self.key_scales, self.value_scales)
        return sum(x.nbytes for x in held if x is not None)

    @property
    def blocks(self) -> int:
        return self.keys.shape[0]

    @property
    def tokens(self) -> int:
        """Those of a block."""
        return self.keys.shape[1]

    def read(self, table: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first ``tokens`` keys and values of the blocks that ``table`` lists, ``[tokens, kv_heads,
        dim]``, as attention sees them: float32 where they have scales."""
        found = []
        for x, scales in ((self.keys, self.key_scales), (self.values, self.value_scales)):
            x = x[table.long()]
            if scales is not None:
                x = as_fp8(x, True).float() * scales[table.long()].transpose(1, 2)[..., None]
            found.append(x.flatten(0, 1)[:tokens])
        return tuple(found)

    def _stored(self) -> tuple[torch.Tensor, torch.Tensor, Scales]:
        """Keys, values and scales as the kernels read them."""
        scales = Scales(k=self.key_scales, v=self.value_scales)
        return as_fp8(self.keys), as_fp8(self.values), scales


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

    The rotated q is rounded to the cache's dtype, in which keys and values are stored and multiplied; for an
    int8 or FP8 cache to bfloat16. Those have a scale for each token's key and value of a head, max|x| / 127
    or max|x| / 448, and round x / scale to nearest, ties to even; a vector that holds a NaN or an infinity is
    NaN throughout. Attention reads keys and values as they are stored, new ones too.

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
    if cos is None:
        turned = q.to(cache.multiplied)
    else:
        turned = torch.empty(q.shape, dtype=cache.multiplied, device=q.device)
    if rows:
        to_turn = (q, turned) if cos is not None else (q[:, :0], turned[:, :0])
        _rotate_append(*to_turn, k, v, cos, sin, positions, sequences.slots, cache)
    policy = Policy.of(q, causal, window, sinks, scale, softcap, alibi_slopes, sink_logits, distance_bias)
    if out is None:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return _run(turned, cache, sequences, policy, schedule, return_lse, out)


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
        _rotate_append(nobody, nobody, k, v, None, None, None, sequences.slots, cache)


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
    return _run(q.to(cache.multiplied), cache, sequences, policy, schedule, False, out)


def _run(
    q: torch.Tensor,
    cache: KVCache,
    sequences: Sequences,
    policy: Policy,
    schedule: str,
    return_lse: bool,
    out: torch.Tensor,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    keys, values, scales = cache._stored()
    return run(q, keys, values, sequences.layout(), policy, schedule, return_lse, out, scales)


def _check_rows(sequences: Sequences, rows: int, name: str) -> None:
    if len(sequences.slots) != rows:
        raise InputError(f"sequences has {len(sequences.slots)} rows and {name} {rows}; give the same")


def _rotate_append(
    q: torch.Tensor,
    turned: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    positions: torch.Tensor | None,
    slots: torch.Tensor,
    cache: KVCache,
) -> None:
    rotated = cos is not None
    heads, dim = q.shape[1:]
    keys, values = cache.keys, cache.values
    scales = keys if cache.key_scales is None else cache.key_scales
    rotate_append[(q.shape[0], heads + k.shape[1])](
        q, k, v, cos if rotated else q, sin if rotated else q, slots if positions is None else positions,
        slots, turned, keys, values, scales, values if cache.value_scales is None else cache.value_scales,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], cos.stride(0) if rotated else 0,
        *turned.stride()[:2], *keys.stride()[1:3], *values.stride()[1:3], *scales.stride()[:2], heads,
        dim, triton.next_power_of_2(dim), rotated, positions is not None,
        _KINDS.get(keys.dtype, 0), cache.tokens, **OPTIONS,
    )  # fmt: skip
