"""Attention of packed rows, also where a sequence has ALiBi slopes or a first key of its own.

The kernels take one set of slopes a call, so those sequences go one by one. A row's bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch

from ridgeline.errors import InputError
from ridgeline.kernels import Sequences, attention, attention_paged, attention_varlen
from ridgeline.kernels.attention_arguments import check_sizes, integers


def attend_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rows: torch.Tensor,
    keys: torch.Tensor,
    slopes: torch.Tensor | None,
    **options: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output [total, heads, dim], LSE [heads, total]) of sequences of ``rows`` queries and ``keys`` keys.

    ``slopes``: None, [heads] or [sequences, heads]; ``options`` are those of
    :func:`ridgeline.kernels.attention`.
    """
    if not one_row_each(slopes, len(rows), q.shape[1]):
        starts = (cumulative(lengths) for lengths in (rows, keys))
        return attention_varlen(q, k, v, *starts, alibi_slopes=slopes, return_lse=True, **options)
    parts = (
        _split("cu_seqlens_q", q, rows),
        _split("cu_seqlens_k", k, keys),
        _split("cu_seqlens_k", v, keys),
    )
    return one_by_one(*parts, slopes, **options)


def attend_paged(
    q: torch.Tensor,
    k_pages: torch.Tensor,
    v_pages: torch.Tensor,
    rows: torch.Tensor,
    keys: torch.Tensor,
    tables: torch.Tensor,
    slopes: torch.Tensor | None,
    first: torch.Tensor | None = None,
    **options: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`attend_varlen`, of keys in pages [pages, tokens, kv_heads, dim] that int32 ``tables`` list.

    Sequence i sees its keys from ``first[i]`` to ``keys[i]`` - 1, all of those before if None.
    """
    if first is None and not one_row_each(slopes, len(rows), q.shape[1]):
        return attention_paged(
            q,
            k_pages,
            v_pages,
            cumulative(rows),
            keys,
            tables,
            alibi_slopes=slopes,
            return_lse=True,
            **options,
        )
    pages, tokens = k_pages.shape[:2]
    check_sizes("v_pages", v_pages, (*k_pages.shape[:3], v_pages.shape[3]), "k_pages")
    Sequences(rows, keys - rows, tables).check("block_tables", tokens, pages)
    ends = list(zip(tables, torch.zeros_like(keys) if first is None else first, keys))
    k, v = ([_cached(cache, *sequence) for sequence in ends] for cache in (k_pages, v_pages))
    slopes = slopes if one_row_each(slopes, len(rows), q.shape[1]) else [slopes] * len(rows)
    return one_by_one(_split("q", q, rows), k, v, slopes, **options)


def one_by_one(
    q: Iterable[torch.Tensor],
    k: Iterable[torch.Tensor],
    v: Iterable[torch.Tensor],
    slopes: Iterable[torch.Tensor | None],
    **options: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of sequences [rows, heads, dim], of at least one, each with slopes of its own; packed."""
    attend = partial(attention, return_lse=True, **options)
    results = [attend(a[None], b[None], c[None], alibi_slopes=s) for a, b, c, s in zip(q, k, v, slopes)]
    outs, lses = zip(*results)
    return torch.cat(outs, 1)[0], torch.cat(lses, 2)[0]


def one_row_each(slopes: torch.Tensor | None, sequences: int, heads: int) -> bool:
    """Whether ``slopes`` are [sequences, heads], not those of all sequences alike."""
    if slopes is None or slopes.dim() != 2:
        return False
    check_sizes("alibi_slopes", slopes, (sequences, heads), "q")
    return sequences > 0


def lengths(name: str, starts: torch.Tensor, longest_name: str, longest: int) -> torch.Tensor:
    """int64 [sequences] from where each begins, and the last one ends; none longer than ``longest``."""
    starts = integers(name, starts, 1, torch.int64)
    found = starts.diff()
    if not len(starts) or starts[0] or bool((found < 0).any()):
        raise InputError(f"{name} is {starts.tolist()}; give numbers that grow from 0")
    if len(found) and int(found.max()) > longest:
        raise InputError(f"{longest_name} is {longest}; {name} has a sequence of {int(found.max())}")
    return found


def cumulative(lengths: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def _split(name: str, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Sequences of packed ``x`` [total, heads, dim]."""
    sizes = lengths.tolist()
    if sum(sizes) != len(x):
        raise InputError(f"{name} has sequences of {sizes}; {len(x)} rows are there")
    return x.split(sizes)


def _cached(cache: torch.Tensor, table: torch.Tensor, begin: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Tokens ``begin`` to ``end`` - 1 of the pages that ``table`` lists, not copied where it lists one."""
    used = table[: -(-int(end) // cache.shape[1])].long()
    pages = cache[used[0] : used[0] + 1] if len(used) == 1 else cache[used]
    return pages.flatten(0, 1)[begin:end]
