"""The dataflows run tile by tile on arrays, with every load, store and byte on the chip counted.

Each nest is written as its paper has it and really computes attention, so that a test can hold its
output to the definition and its counts to the formulas.
"""

import numpy as np

STATE = 4


class Chip:
    """Main memory and on-chip memory: counts what passes between them, and the most that lives at once.

    What moves is stored in ``element`` bytes, what is accumulated in float32.
    """

    def __init__(self, element=2, buffers=1):
        self.element, self.buffers = element, buffers
        self.reads = self.writes = 0
        self.live = self.peak = 0
        self.held = {}

    def _hold(self, name, nbytes):
        self.drop(name)
        self.held[name] = nbytes
        self.live += nbytes
        self.peak = max(self.peak, self.live)

    def load(self, name, array, size=None):
        self.reads += array.size * (size or self.element)
        self._hold(name, array.size * (size or self.element) * self.buffers)
        return array.copy()

    def make(self, name, array, size=STATE):
        self._hold(name, array.size * size)
        return array

    def store(self, array, size=None):
        self.writes += array.size * (size or self.element)
        return array.copy()

    def drop(self, *names):
        for name in names:
            self.live -= self.held.pop(name, 0)


def definition(q, k, v, visible):
    scores = np.where(visible, q @ k.T, -np.inf)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ v


def slices(length, tile):
    return [slice(i, min(i + tile, length)) for i in range(0, length, tile)]


def naive(chip, q, k, v, visible, rows, keys, on_chip):
    n, s = visible.shape
    scores, weights, out = np.empty((n, s)), np.empty((n, s)), np.empty((n, v.shape[1]))
    for i in slices(n, rows):
        qi = chip.load("q", q[i])
        for j in slices(s, keys):
            kj = chip.load("k", k[j])
            tile = chip.make("s", qi @ kj.T)
            scores[i, j] = chip.store(np.where(visible[i, j], tile, -np.inf))
    peak, chip.peak = chip.peak, 0
    chip.drop("q", "k", "s")
    fits = s * chip.element <= on_chip
    for i in range(n):
        row = chip.load("row", scores[i])
        top, total = row.max(), np.exp(row - row.max()).sum()
        if not fits:
            row = chip.load("row", scores[i])
        weights[i] = chip.store(np.exp(row - top) / total)
    chip.drop("row")
    chip.peak = peak  # a softmax streams its row
    for i in slices(n, rows):
        acc = chip.make("o", np.zeros((i.stop - i.start, v.shape[1])))
        for j in slices(s, keys):
            pij, vj = chip.load("p", weights[i, j]), chip.load("v", v[j])
            acc += pij @ vj
        chip.drop("p", "v")
        out[i] = chip.store(acc)
    return out


def flat(chip, q, k, v, visible, rows):
    """K and V of the problem stay; a chunk of whole rows of scores is on the chip at a time."""
    out = np.empty((len(q), v.shape[1]))
    kk, vv = chip.load("k", k), chip.load("v", v)
    for i in slices(len(q), rows):
        qi = chip.load("q", q[i])
        o = chip.make("o", np.zeros((i.stop - i.start, v.shape[1])), chip.element * chip.buffers)
        s = chip.make("s", np.where(visible[i], qi @ kk.T, -np.inf), chip.element)
        s = np.exp(s - s.max(1, keepdims=True))
        o += s / s.sum(1, keepdims=True) @ vv
        out[i] = chip.store(o)
    return out


def online(tile, m, ell, acc, vj):
    """One step of the online softmax."""
    new = np.maximum(m, tile.max(1))
    safe = np.where(np.isinf(new), 0, new)
    p = np.exp(tile - safe[:, None])
    scale = np.exp(m - safe)
    return new, ell * scale + p.sum(1), acc * scale[:, None] + p @ vj


def flash_v1(chip, q, k, v, visible, rows, keys):
    n, d = q.shape
    out, m, ell = np.zeros((n, d)), np.full(n, -np.inf), np.zeros(n)
    chip.store(out), chip.store(m, STATE), chip.store(ell, STATE)
    for j in slices(len(k), keys):
        kj, vj = chip.load("k", k[j]), chip.load("v", v[j])
        for i in slices(n, rows):
            if not visible[i, j].any():
                continue
            qi, oi = chip.load("q", q[i]), chip.load("o", out[i])
            mi, li = chip.load("m", m[i], STATE), chip.load("l", ell[i], STATE)
            tile = chip.make("s", np.where(visible[i, j], qi @ kj.T, -np.inf))
            mi, new, acc = online(tile, mi, li, oi * li[:, None], vj)
            out[i] = chip.store(acc / np.where(new == 0, 1, new)[:, None])
            m[i], ell[i] = chip.store(mi, STATE), chip.store(new, STATE)
        chip.drop("q", "o", "m", "l", "s")
    return out


def flash_v2(chip, q, k, v, visible, rows, keys):
    out = np.empty((len(q), v.shape[1]))
    for i in slices(len(q), rows):
        out[i] = chip.store(normalised(*_row_tile(chip, q, k, v, visible, i, slices(len(k), keys))))
    return out


def split_kv(chip, q, k, v, visible, rows, keys, splits):
    n, d = q.shape
    tiles = slices(len(k), keys)
    each = -(-len(tiles) // splits)
    groups = [tiles[a : a + each] for a in range(0, len(tiles), each)]
    if len(groups) == 1:
        return flash_v2(chip, q, k, v, visible, rows, keys)
    partial, lse = np.zeros((len(groups), n, d)), np.full((len(groups), n), -np.inf)
    for g, group in enumerate(groups):
        for i in slices(n, rows):
            if any(visible[i, j].any() for j in group):
                m, ell, acc = _row_tile(chip, q, k, v, visible, i, group)
                partial[g, i] = normalised(m, ell, acc)
                with np.errstate(divide="ignore"):
                    lse[g, i] = m + np.log(ell)
            chip.store(partial[g, i], STATE), chip.store(lse[g, i], STATE)
    chip.reads += partial.size * STATE + lse.size * STATE
    weights = np.exp(lse - lse.max(0))
    return chip.store((weights[:, :, None] * partial).sum(0) / weights.sum(0)[:, None])


def _row_tile(chip, q, k, v, visible, i, tiles):
    height = i.stop - i.start
    qi = chip.load("q", q[i])
    m = chip.make("m", np.full(height, -np.inf))
    ell = chip.make("l", np.zeros(height))
    acc = chip.make("o", np.zeros((height, v.shape[1])))
    for j in tiles:
        if not visible[i, j].any():
            continue
        kj, vj = chip.load("k", k[j]), chip.load("v", v[j])
        tile = chip.make("s", np.where(visible[i, j], qi @ kj.T, -np.inf))
        m, ell, acc = online(tile, m, ell, acc, vj)
    chip.drop("q", "k", "v", "s", "m", "l", "o")
    return m, ell, acc


def normalised(m, ell, acc):
    return acc / np.where(ell == 0, 1, ell)[:, None]
