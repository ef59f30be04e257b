"""T5's relative position bias: which bucket a distance falls into, and the bias of a whole sequence."""

from __future__ import annotations

import math

import torch

from ridgeline.ops.records import RelativeBias


def buckets(distances: torch.Tensor, count: int, max_distance: int, bidirectional: bool) -> torch.Tensor:
    """The row of the table for each distance, key's position less query's (Raffel et al. 2020,
    arXiv 1910.10683, section 2.1, and the authors' code).

    Half of the buckets that a side has are for one distance each; the others share the logarithms of what
    is farther, the last from ``max_distance`` on. Keys after the query have the second half of all buckets,
    or, if not ``bidirectional``, count as distance 0.
    """
    if bidirectional:
        count //= 2
        side, far = (distances > 0).long() * count, distances.abs()
    else:
        side, far = 0, (-distances).clamp(min=0)
    exact = count // 2
    # In float32 and in this order, as models were trained: a boundary may hang on the last bit.
    steps = torch.log(far.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (count - exact)
    shared = (exact + steps.long()).clamp(max=count - 1)
    return side + torch.where(far < exact, far, shared)


def bias_by_distance(bias: RelativeBias) -> torch.Tensor:
    """The bias of each distance up to that from which all have the same: float32
    [heads, 2 max_distance + 1], from -max_distance on."""
    table = bias.table.data.float()
    distances = torch.arange(-bias.max_distance, bias.max_distance + 1, device=table.device)
    rows = buckets(distances, len(table), bias.max_distance, bias.bidirectional)
    return table[rows].T.contiguous()


def bias_of(bias: RelativeBias, rows: int, keys: int, dtype: torch.dtype) -> torch.Tensor:
    """The bias of the last ``rows`` queries of ``keys`` positions: [heads, rows, keys]."""
    table = bias.table.data.to(dtype)
    first = keys - rows
    distances = torch.arange(-first - rows + 1, keys - first, device=table.device)  # of all pairs
    by_distance = table[buckets(distances, len(table), bias.max_distance, bias.bidirectional)]
    query = torch.arange(rows, device=table.device)[:, None]
    key = torch.arange(keys, device=table.device)[None, :]
    return by_distance[key - query + rows - 1].permute(2, 0, 1)
