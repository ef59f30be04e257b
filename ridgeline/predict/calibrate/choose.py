"""Choosing the few points that a calibration is fitted to, spread over all that were measured."""

from __future__ import annotations

import numpy as np

from ridgeline.predict.gpu.kinds import Points, kind


def choose(points: Points, most: int) -> np.ndarray:
    """Indices of at most ``most`` points, in the order of choice: each next one is the farthest from those
    that are chosen. Distances are between ranks, so that dense regions get more points, and, for half their
    weight, between logarithms, so that small sizes get some. The same points in another order give the same
    choice."""
    places = np.stack([place for name in kind(points.kind).columns for place in _places(points[name])], 1)
    order = np.lexsort([points.seconds, *places.T])  # equal points by their time
    places = places[order]
    first = int(np.argmin(((places - 0.5) ** 2).sum(1)))
    chosen = [first]
    nearest = ((places - places[first]) ** 2).sum(1)
    nearest[first] = -1.0
    while len(chosen) < min(most, len(places)):
        farthest = int(np.argmax(nearest))
        chosen.append(farthest)
        nearest = np.minimum(nearest, ((places - places[farthest]) ** 2).sum(1))
        nearest[farthest] = -1.0
    return order[chosen]


def _places(values: np.ndarray) -> list[np.ndarray]:
    """Where each number lies between the least (0) and the greatest (1), by rank and by size; each word lies
    apart from all others."""
    if values.dtype.kind not in "fiu":
        return [0.5 * (values == word) for word in np.unique(values)]
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - counts / 2)[inverse] / len(values)
    size = np.log1p(values.astype(float))
    span = size.max() - size.min()
    return [rank, 0.5 * (size - size.min()) / span if span else np.zeros(len(values))]
