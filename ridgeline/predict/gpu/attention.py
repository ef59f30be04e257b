"""Attention as a kind of kernel that can be calibrated: a point is one step's attention in one layer, a chunk
of a prompt behind cached tokens beside sequences that decode."""

from __future__ import annotations

from dataclasses import astuple, fields

import numpy as np
from numpy import ndarray

from ridgeline.hardware.device import Device
from ridgeline.ops.trace import SequenceWork
from ridgeline.predict.gpu.flash import Attention, attend
from ridgeline.predict.gpu.kinds import Kind, Points

#: How far a constant may stray from the generic one before that costs as much as missing a point by as much:
#: points that say nothing of a constant leave it where it was.
STRAY = 5.0
#: Errors beyond this share count by their size and no longer by their square, so that one odd point does not
#: bend the constants.
ODD = 0.1
ROUNDS = 30


def seconds(device: Device, constants: Attention, points: Points) -> ndarray:
    """Seconds of every point, [points]."""
    return attend(device, constants, sequences(points), "bf16").seconds


def sequences(points: Points) -> tuple[SequenceWork, SequenceWork]:
    """The chunk and the decoding sequences of every point, as arrays over the points."""
    chunk, past, count, cached, heads, kv_heads, head_dim = (points[c].astype(float) for c in KIND.numbers)
    pair = 4 * heads * head_dim  # operations of a query and a key
    shape = (heads, kv_heads, head_dim)
    pairs = chunk * past + chunk * (chunk + 1) / 2
    return (
        SequenceWork(np.maximum(chunk, 1), np.minimum(chunk, 1), pair * pairs, 0, past + chunk, *shape),
        SequenceWork(1, count, pair * (cached + 1), 0, cached + 1, *shape),
    )


def fit(device: Device, points: Points) -> Attention:
    """The constants with the least relative errors at ``points``, by Gauss and Newton's method in logarithms,
    damped after Levenberg and Marquardt."""
    generic = np.log(astuple(Attention()))
    names = [f.name for f in fields(Attention)]

    def constants(logs: ndarray) -> Attention:
        return Attention(**dict(zip(names, map(float, np.exp(logs)), strict=True)))

    def misses(logs: ndarray) -> ndarray:
        off = np.log(seconds(device, constants(logs), points) / points.seconds)
        return np.concatenate([off, (logs - generic) / STRAY])

    def cost(found: ndarray) -> float:
        size = np.abs(found)
        return float(np.where(size < ODD, size**2 / 2, ODD * (size - ODD / 2)).sum())

    at, damping = generic, 1e-2
    now = misses(at)
    for _ in range(ROUNDS):
        slopes = np.stack([(misses(at + step) - now) / 1e-3 for step in 1e-3 * np.eye(len(at))], axis=1)
        weights = np.minimum(1, ODD / np.maximum(np.abs(now), 1e-12))
        weights[len(points) :] = 1
        normal, pull = slopes.T @ (weights[:, None] * slopes), slopes.T @ (weights * now)
        tried = at - np.linalg.solve(normal + damping * np.diag(np.diag(normal)), pull)
        there = misses(tried)
        if cost(there) < cost(now):
            at, now, damping = tried, there, damping / 3
        else:
            damping *= 4
    return constants(at)


KIND = Kind(
    name="attention",
    numbers=("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "heads", "kv_heads", "head_dim"),
    constants=Attention,
    seconds=seconds,
    fit=fit,
    share=20,
    zero=frozenset({"prefill_chunk", "kv_prefill", "n_decode", "kv_decode"}),
    defaults={"heads": 32, "kv_heads": 8, "head_dim": 128},
)
