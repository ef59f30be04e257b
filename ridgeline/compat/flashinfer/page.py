"""Paged caches in FlashInfer's form: pages listed sequence after sequence, with where each one's begin.

``kv_indptr`` int32 ``[batch + 1]`` says which of the ``kv_indices`` are a sequence's pages, and
``kv_last_page_len`` int32 ``[batch]`` how many tokens its last page has, 1 to page_size; 0 if it has no
pages. A cache is a pair of tensors, ``[pages, page_size, kv_heads, dim]`` (``NHD``) or ``[pages, kv_heads,
page_size, dim]`` (``HND``), or one, ``[pages, 2, ...]``, of keys at 0 and values at 1.
"""

from __future__ import annotations

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.attention_arguments import check_heads, check_same_dtype, check_sizes, integers
from ridgeline.kernels.checks import describe

PagedCache = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def append_paged_kv_cache(
    append_key: torch.Tensor,
    append_value: torch.Tensor,
    batch_indices: torch.Tensor,
    positions: torch.Tensor,
    paged_kv_cache: PagedCache,
    kv_indices: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_last_page_len: torch.Tensor,
    kv_layout: str = "NHD",
) -> None:
    """Writes new keys and values into their pages, in place.

    - ``append_key``, ``append_value``: ``[new, kv_heads, dim]``, of the cache's dtype, float32 or bfloat16.
    - ``batch_indices``, ``positions``: int32 ``[new]``, the sequence of each and its place in it, as
      :func:`get_batch_indices_positions` gives them.
    - ``paged_kv_cache``, ``kv_indices``, ``kv_indptr``, ``kv_last_page_len``, ``kv_layout``: see the module's
      text. Lengths already count the new tokens.

    Raises InputError that names the argument for a wrong dtype, shape or device, and for positions and pages
    that are not there; nothing has been written then.
    """
    k_cache, v_cache = unpack(paged_kv_cache, kv_layout)
    pages, page_size, *head = k_cache.shape
    for name, tensor in (("append_key", append_key), ("append_value", append_value)):
        check_heads(name, tensor, "new, kv_heads, dim")
    check_same_dtype(paged_kv_cache=k_cache, append_key=append_key, append_value=append_value)
    check_sizes("append_key", append_key, (len(append_key), *head), "paged_kv_cache")
    check_sizes("append_value", append_value, (len(append_key), *v_cache.shape[2:]), "paged_kv_cache")
    tables, lengths = block_tables(kv_indptr, kv_indices, kv_last_page_len, page_size, pages)
    sequence = integers("batch_indices", batch_indices, 1, torch.int64)
    position = integers("positions", positions, 1, torch.int64)
    for name, tensor in (("batch_indices", sequence), ("positions", position)):
        check_sizes(name, tensor, (len(append_key),), "append_key")
    if not len(append_key):
        return
    if not 0 <= int(sequence.min()) <= int(sequence.max()) < len(lengths):
        raise InputError(f"batch_indices name a sequence outside of the batch; give 0 to {len(lengths) - 1}")
    if int(position.min()) < 0 or bool((position >= lengths[sequence]).any()):
        raise InputError(f"positions reach outside of their sequences, of {lengths.tolist()} tokens")
    page, slot = tables[sequence, position // page_size].long(), position % page_size
    k_cache[page, slot] = append_key
    v_cache[page, slot] = append_value


def get_batch_indices_positions(
    append_indptr: torch.Tensor, seq_lens: torch.Tensor, nnz: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch_indices, positions), int32 ``[nnz]`` each, of new tokens that end their sequences.

    - ``append_indptr``: int32 ``[batch + 1]``, where the new tokens of each sequence begin, the last one nnz.
    - ``seq_lens``: int32 ``[batch]``, the sequences' lengths with the new tokens.

    Raises InputError where the two and ``nnz`` do not fit.
    """
    starts = integers("append_indptr", append_indptr, 1, torch.int64)
    lengths = integers("seq_lens", seq_lens, 1, torch.int64)
    new = starts.diff()
    if not len(starts) or starts[0] or starts[-1] != nnz or bool((new < 0).any()):
        raise InputError(f"append_indptr is {starts.tolist()}; give numbers that grow from 0 to nnz, {nnz}")
    check_sizes("seq_lens", lengths, (len(new),), "append_indptr")
    if bool((lengths < new).any()):
        raise InputError(f"seq_lens is {lengths.tolist()}; {new.tolist()} new tokens make them longer")
    sequence = torch.repeat_interleave(torch.arange(len(new)), new)
    position = torch.arange(nnz) + (lengths - starts[1:])[sequence]
    return sequence.int(), position.int()


def get_seq_lens(kv_indptr: torch.Tensor, kv_last_page_len: torch.Tensor, page_size: int) -> torch.Tensor:
    """The lengths of the sequences, ``[batch]``, from the module's page lists."""
    return (kv_indptr.diff() - 1).clamp(min=0) * page_size + kv_last_page_len


def unpack(paged_kv_cache: PagedCache, kv_layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of keys and values, [pages, page_size, kv_heads, dim] each."""
    if (
        isinstance(paged_kv_cache, torch.Tensor)
        and paged_kv_cache.dim() == 5
        and paged_kv_cache.shape[1] == 2
    ):
        caches = paged_kv_cache.unbind(1)
    elif isinstance(paged_kv_cache, tuple | list) and len(paged_kv_cache) == 2:
        caches = paged_kv_cache
    else:
        given = paged_kv_cache
        given = describe(given) if isinstance(given, torch.Tensor) else f"a {type(given).__name__}"
        raise InputError(f"paged_kv_cache is {given}; give (keys, values), or one tensor [pages, 2, ...]")
    for cache in caches:
        check_heads("paged_kv_cache", cache, "pages, tokens, heads, dim")
    k, v = (nhd(cache, kv_layout) for cache in caches)
    if v.shape[:3] != k.shape[:3] or k.shape[1] == 0:
        raise InputError(
            f"paged_kv_cache has keys {describe(k)} and values {describe(v)}; give as many of both, in pages "
            "of at least one token"
        )
    return k, v


def check_layout(kv_layout: str) -> None:
    if kv_layout not in ("NHD", "HND"):
        raise InputError(f"kv_layout is {kv_layout!r}; choose one of: NHD, HND")


def nhd(x: torch.Tensor, kv_layout: str) -> torch.Tensor:
    """A view of [.., heads, tokens, dim] (``HND``) or [.., tokens, heads, dim] as the latter."""
    check_layout(kv_layout)
    return x.transpose(-3, -2) if kv_layout == "HND" else x


def block_tables(
    indptr: torch.Tensor,
    indices: torch.Tensor,
    last_page_len: torch.Tensor,
    page_size: int,
    pages: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """int32 [batch, columns], the pages of each sequence, and their lengths, int64 [batch].

    ``pages`` is how many there are, None if that is not known yet.
    """
    starts = integers("kv_indptr", indptr, 1, torch.int64)
    indices = integers("kv_indices", indices, 1, torch.int32)
    last = integers("kv_last_page_len", last_page_len, 1, torch.int64)
    counts = starts.diff()
    if not len(starts) or starts[0] or bool((counts < 0).any()) or starts[-1] > len(indices):
        raise InputError(f"kv_indptr is {starts.tolist()}; give numbers that grow from 0 to {len(indices)}")
    check_sizes("kv_last_page_len", last, (len(counts),), "kv_indptr")
    if bool((last > page_size).any() | (last < (counts > 0)).any() | (last * (counts == 0)).any()):
        raise InputError(f"kv_last_page_len is {last.tolist()}; give 1 to {page_size}, 0 without pages")
    indices = indices[: starts[-1]]
    if pages is not None and bool(((indices < 0) | (indices >= pages)).any()):
        raise InputError(f"kv_indices name pages that are not there; give 0 to {pages - 1}")
    columns = torch.arange(max(counts.tolist(), default=0))
    held = columns < counts[:, None]
    tables = torch.zeros(held.shape, dtype=torch.int32)
    tables[held] = indices
    return tables, get_seq_lens(starts, last, page_size)
