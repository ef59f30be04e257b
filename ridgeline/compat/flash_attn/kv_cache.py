"""The cache of ``flash_attn_with_kvcache``: where its tokens lie, how new ones are rotated and appended."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ridgeline import kernels
from ridgeline.errors import InputError
from ridgeline.kernels import Sequences
from ridgeline.kernels.attention_arguments import (
    check_groups,
    check_heads,
    check_same_dtype,
    check_sizes,
    integers,
)
from ridgeline.kernels.checks import check_tensor, describe


@dataclass(frozen=True)
class Cache:
    """Keys and values [pages, tokens, kv_heads, dim]; a plain cache is one of a page a sequence.

    ``tables``: int32 [sequences, columns], the pages of each sequence, that the caller calls ``tables_name``.
    ``first``: int64 [sequences], where each begins, or None for 0.
    """

    k: torch.Tensor
    v: torch.Tensor
    tables: torch.Tensor
    tables_name: str
    first: torch.Tensor | None

    @classmethod
    def of(
        cls,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        batch_idx: torch.Tensor | None,
        leftpad: torch.Tensor | None,
        block_table: torch.Tensor | None,
    ) -> Cache:
        for name, tensor in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
            check_heads(name, tensor, "batch, seqlen, heads, dim")
        check_same_dtype(q=q, k_cache=k_cache, v_cache=v_cache)
        check_sizes("k_cache", k_cache, (*k_cache.shape[:3], q.shape[3]), "q")
        check_sizes("v_cache", v_cache, tuple(k_cache.shape), "k_cache")
        check_groups(q, k_cache.shape[2], "k_cache")
        if k_cache.shape[1] == 0:
            raise InputError(f"k_cache is {describe(k_cache)}; give room for at least one token")
        batch, tables_name = q.shape[0], "block_table" if block_table is not None else "cache_batch_idx"
        if block_table is not None:
            for name, given in (("cache_batch_idx", batch_idx), ("cache_leftpad", leftpad)):
                if given is not None:
                    raise InputError(f"{name} is given with block_table; give one of the two")
            tables = integers("block_table", block_table, 2, torch.int32)
            check_sizes("block_table", tables, (batch, tables.shape[1]), "q")
        elif batch_idx is not None:
            check_sizes("cache_batch_idx", batch_idx, (batch,), "q")
            tables = integers("cache_batch_idx", batch_idx, 1, torch.int32)[:, None]
        else:
            check_sizes("k_cache", k_cache, (batch, *k_cache.shape[1:]), "q without cache_batch_idx")
            tables = torch.arange(batch, dtype=torch.int32)[:, None]
        if leftpad is not None:
            leftpad = integers("cache_leftpad", leftpad, 1, torch.int64)
            check_sizes("cache_leftpad", leftpad, (batch,), "q")
        return cls(k_cache, v_cache, tables, tables_name, leftpad)

    def past(self, seqlens: int | torch.Tensor | None) -> torch.Tensor:
        """int64 [sequences], the tokens that were there before the call."""
        sequences, capacity = len(self.tables), self._capacity()
        if seqlens is None or isinstance(seqlens, int):
            past = torch.full((sequences,), capacity if seqlens is None else seqlens)
        else:
            past = integers("cache_seqlens", seqlens, 1, torch.int64)
            check_sizes("cache_seqlens", past, (sequences,), "q")
        self._check_room("cache_seqlens", past)
        if self.first is not None and bool(((self.first < 0) | (self.first > past)).any()):
            raise InputError(
                f"cache_leftpad is {self.first.tolist()} and cache_seqlens {past.tolist()}; give numbers "
                "from 0 to that"
            )
        return past

    def check_new(
        self, q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None, seqlens: object
    ) -> None:
        """Whether ``k`` and ``v`` [sequences, new, kv_heads, dim] can be appended."""
        for name, tensor in (("k", k), ("v", v)):
            if tensor is None:
                raise InputError(f"{name} is None; give both k and v, or neither")
            check_heads(name, tensor, "batch, seqlen, heads, dim")
        if seqlens is None:
            raise InputError("cache_seqlens is None; say behind how many tokens k and v go")
        check_same_dtype(q=q, k=k, v=v)
        check_sizes("k", k, (q.shape[0], k.shape[1], *self.k.shape[2:]), "k_cache")
        check_sizes("v", v, tuple(k.shape), "k")

    def append(self, k: torch.Tensor, v: torch.Tensor, past: torch.Tensor) -> None:
        """Writes ``k`` and ``v`` behind the ``past`` tokens of each sequence, once there is room for all."""
        self._check_room("k", past + k.shape[1])
        positions = past[:, None] + torch.arange(k.shape[1])
        page = self.tables.gather(1, positions // self.k.shape[1]).long()
        slot = positions % self.k.shape[1]
        self.k[page, slot] = k
        self.v[page, slot] = v

    def _capacity(self) -> int:
        return self.tables.shape[1] * self.k.shape[1]

    def _check_room(self, name: str, lengths: torch.Tensor) -> None:
        """Whether the pages of sequences of ``lengths``, which ``name`` gives, are there."""
        pages, tokens = self.k.shape[:2]
        if len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= self._capacity():
            raise InputError(
                f"{name} makes sequences of {lengths.tolist()}; there is room for {self._capacity()} each"
            )
        Sequences(torch.zeros_like(lengths), lengths, self.tables).check(self.tables_name, tokens, pages)


def rotated(
    q: torch.Tensor,
    k: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    past: torch.Tensor,
    ordered: bool,
    interleaved: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``q`` and ``k`` [sequences, rows, heads, dim] with their first dims rotated.

    Row i takes angle ``past`` + i; of q only if ``ordered``, else ``past``.
    """
    if k is None:
        raise InputError("rotary_cos is given without k; give the new keys that are to be rotated, and v")
    _check_angles(cos, sin, q.shape[3])
    q_rows, k_rows = (torch.arange(x.shape[1]) for x in (q, k))
    positions = past[:, None] + (q_rows if ordered else torch.zeros_like(q_rows))
    return (
        _rotate(q, cos, sin, positions, interleaved),
        _rotate(k, cos, sin, past[:, None] + k_rows, interleaved),
    )


def _rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    at = positions.flatten()
    if len(at) and int(at.max()) >= len(cos):
        raise InputError(f"rotary_cos has {len(cos)} angles; give one for position {int(at.max())} too")
    both = (torch.cat((angles[at], angles[at]), 1).float() for angles in (cos, sin))
    result = x.flatten(0, 1).clone(memory_format=torch.contiguous_format)
    part = result[..., : 2 * cos.shape[1]]
    halves = part.unflatten(-1, (-1, 2)).mT.flatten(-2) if interleaved else part
    kernels.rotate(halves, *both, out=halves)
    if interleaved:
        part.copy_(halves.unflatten(-1, (2, -1)).mT.flatten(-2))
    return result.view(x.shape)


def _check_angles(cos: torch.Tensor | None, sin: torch.Tensor | None, dim: int) -> None:
    for name, angles in (("rotary_cos", cos), ("rotary_sin", sin)):
        if angles is None:
            raise InputError(f"{name} is None; give both rotary_cos and rotary_sin, or neither")
        check_tensor(name, angles)
        if angles.dim() != 2 or not 0 < 2 * angles.shape[1] <= dim or angles.shape != cos.shape:
            raise InputError(
                f"{name} is {describe(angles)}; give two of [angles, rotary_dim / 2], rotary_dim up to {dim}"
            )
