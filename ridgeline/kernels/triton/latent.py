"""Latent attention on a GPU: a paged cache of one vector a token, and attention to the latents in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.triton import latent_kernel as kernels
from ridgeline.kernels.triton.arguments import (
    check_floats,
    check_no_gradient,
    check_sizes,
    describe,
    result,
)
from ridgeline.kernels.triton.cache import Sequences
from ridgeline.kernels.triton.configs import tiles
from ridgeline.kernels.triton.rows import check_angles
from ridgeline.kernels.triton.runtime import OPTIONS, is_interpreted, padded, triton

#: A latent has at most so many elements.
MOST_RANK = 512
#: Keys of a split: more than other attention's, because a row's partial result is as long as a latent for
#: each of many heads.
SPLIT = 64 if is_interpreted() else 1024
#: The heads of a row are the rows of a tile; more than so many have tiles of their own.
FEW_HEADS = 32
#: Keys are taken in splits where no sequence has more rows than that.
SPLIT_ROWS = 8


@dataclass(frozen=True, eq=False)
class LatentCache:
    """What one layer stores of every token: ``[blocks, tokens, rank + rotated]``, contiguous."""

    stored: torch.Tensor
    rank: int

    def __post_init__(self) -> None:
        x = self.stored
        if x.dim() != 3 or not x.is_contiguous() or not 1 <= self.rank <= min(MOST_RANK, x.shape[2]):
            raise InputError(
                f"stored is {describe(x)} and rank {self.rank}; give contiguous [blocks, tokens, rank + "
                f"rotated] with a rank of at most {MOST_RANK}"
            )

    @property
    def tokens(self) -> int:
        """Those of a block."""
        return self.stored.shape[1]

    @property
    def rotated(self) -> int:
        return self.stored.shape[2] - self.rank

    def read(self, slots: torch.Tensor) -> torch.Tensor:
        """What lies in those slots (block * tokens + place), ``[slots, rank + rotated]``."""
        return self.stored.flatten(0, 1).index_select(0, slots)


def turn_append(
    q: torch.Tensor,
    kv: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    rank: int,
    *,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    interleaved: bool = False,
    cache: LatentCache | None = None,
    slots: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns the last elements of every query head, and stores the rows' latents, after an RMS norm with
    ``weight`` [rank] and ``eps``, and the turned parts of their keys: one kernel.

    - ``q``: [rows, heads, content + rotated]; ``kv``: [rows, rank + rotated], the latent first.
    - ``cos``, ``sin``: float32 [angles, rotated], and ``positions`` [rows], as
      :func:`ridgeline.kernels.rotate` takes them; without them nothing is turned. With ``interleaved``
      neighbours are turned together, and their results lie half of ``rotated`` apart.
    - ``cache`` and ``slots`` int64 [rows], -1 for a row that is not stored; without them rows are stored in a
      new tensor.

    Returns the turned parts of the queries, [rows, heads, rotated], and what was stored to.

    Raises InputError that names the argument for a wrong dtype, shape, stride or device.
    """
    for name, tensor in (("q", q), ("kv", kv)):
        check_floats(name, tensor)
        check_no_gradient(name, tensor, "use torch.no_grad()")
    rows, rotated = kv.shape[0], kv.shape[1] - rank
    if q.dim() != 3 or kv.dim() != 2 or q.shape[0] != rows or not 0 < rotated <= q.shape[2] or rotated % 2:
        raise InputError(
            f"q is {describe(q)} and kv {describe(kv)}; give [rows, heads, content + rotated] and [rows, "
            f"{rank} + rotated], with an even number of rotated elements"
        )
    check_floats("weight", weight, q.device)
    check_sizes("weight", weight, (rank,), "the rank")
    if (cache is None) != (slots is None):
        raise InputError("one of cache and slots is given without the other; give both or neither")
    if cache is not None:
        check_sizes("kv", kv, (rows, cache.stored.shape[2]), "the cache")
        check_sizes("slots", slots, (rows,), "kv")
    if (cos is None) != (sin is None):
        raise InputError("one of cos and sin is given without the other; give both or neither")
    turns = cos is not None
    if turns:
        positions = check_angles(cos, sin, positions, rows, rotated, q.device)
    heads = q.shape[1]
    dtype = q.dtype if cache is None else cache.stored.dtype
    turned = torch.empty(rows, heads, rotated, dtype=dtype, device=q.device)
    stored = (
        torch.empty(rows, rank + rotated, dtype=dtype, device=q.device) if cache is None else cache.stored
    )
    if rows:
        kernels.turn_append[(rows, heads + 1)](
            q, kv, weight, cos if turns else q, sin if turns else q, kv if positions is None else positions,
            kv if slots is None else slots, turned, stored, float(eps),
            *q.stride()[:2], kv.stride(0), cos.stride(0) if turns else 0, *turned.stride()[:2],
            stored.stride(-2), heads,
            q.shape[2] - rotated, rank, rotated, interleaved, turns, positions is not None,
            slots is not None, triton.next_power_of_2(rank), triton.next_power_of_2(rotated // 2), **OPTIONS,
        )  # fmt: skip
    return turned, stored


def attend_latents(
    q: torch.Tensor,
    turned: torch.Tensor,
    cache: LatentCache,
    sequences: Sequences,
    scale: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(scale (q · latent + turned · rotated)) latent, causal and bottom-right aligned, over all that
    is cached of each sequence: ``[rows, heads, rank]`` of q's dtype.

    ``q`` [rows, heads, rank] and ``turned`` [rows, heads, rotated] have the cache's dtype. Where a sequence
    can have more keys than a split, and none has more than :data:`SPLIT_ROWS` rows, keys are taken in splits;
    a row's bits depend on nothing else of the batch, nor on ``sequences.max_keys``.

    Raises InputError that names the argument for a wrong dtype, shape, stride or device.
    """
    rows, heads = q.shape[:2]
    for name, tensor, size in (("q", q, cache.rank), ("turned", turned, cache.rotated)):
        check_floats(name, tensor, cache.stored.device)
        check_no_gradient(name, tensor, "use torch.no_grad()")
        check_sizes(name, tensor, (rows, heads, size), "the cache")
        if tensor.dtype != cache.stored.dtype:
            raise InputError(f"{name} is {tensor.dtype} and the cache {cache.stored.dtype}; give one dtype")
    if len(sequences.slots) != rows:
        raise InputError(f"sequences has {len(sequences.slots)} rows and q {rows}; give the same")
    out = result(out, tuple(q.shape), q.dtype, q.device)
    if not out.numel():
        return out
    tile = tiles(
        "latent_few" if heads <= FEW_HEADS else "latent_many", cache.rank, q.element_size(), q.device
    )
    split = sequences.max_rows <= SPLIT_ROWS and sequences.max_keys > SPLIT
    splits = -(-sequences.max_keys // SPLIT) if split else 1
    partial, lse = out, out
    if split:
        partial = torch.empty(splits, *q.shape, dtype=torch.float32, device=q.device)
        lse = torch.empty(splits, rows, heads, dtype=torch.float32, device=q.device)
    cells, batch = -(-sequences.max_rows * heads // tile.m), len(sequences.lengths)
    kernels.attend[(cells * splits, batch)](
        q, turned, cache.stored, partial, lse, sequences.cu_rows, sequences.lengths, sequences.tables,
        *q.stride()[:2], *turned.stride()[:2], *cache.stored.stride()[:2],
        partial.stride(0) if split else 0, *partial.stride()[-3:-1], lse.stride(0) if split else 0,
        lse.stride(-2), sequences.tables.stride(0), splits, float(scale),
        heads, cache.rank, cache.rotated, cache.tokens, SPLIT if split else 0,
        tile.m, tile.n, padded(cache.rank), padded(cache.rotated), **tile.options(),
    )  # fmt: skip
    if split:
        kernels.merge[(sequences.max_rows, heads, batch)](
            partial, lse, out, sequences.cu_rows, sequences.lengths,
            *partial.stride()[:3], *lse.stride()[:2], *out.stride()[:2],
            cache.rank, SPLIT, padded(cache.rank), **OPTIONS,
        )  # fmt: skip
    return out
