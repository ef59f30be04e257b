"""Which keys a mask lets queries see, counted: pairs, keys that are read, the most that a row sees."""

from __future__ import annotations

from enum import StrEnum

from ridgeline.ops.batch import Span
from ridgeline.ops.numbers import Number, maximum, minimum, round_up
from ridgeline.ops.records import Mask


class Pairs(StrEnum):
    """Which query-key pairs of a causal mask count as work."""

    VISIBLE = "visible"
    SQUARE = "square"


def visible_pairs(span: Span, mask: Mask) -> Number:
    """How many query-key pairs of one sequence the mask lets through.

    Row i (0 <= i < rows) sees keys past + i - left .. past + i + right, clipped to 0 .. keys - 1.
    """
    n, past, keys = span.rows, span.past, span.keys
    left, right = mask.window
    if mask.causal:
        right = 0
    upper = n * keys if right < 0 else _clipped_sum(past + right + 1, n, keys)
    hidden = 0 if left < 0 else _clipped_sum(past - left, n, keys)
    return upper - hidden


def _clipped_sum(first: Number, n: Number, limit: Number) -> Number:
    """sum over i < n of min(max(first + i, 0), limit)."""

    def triangle(m: Number) -> Number:  # 1 + ... + m, 0 for m < 1
        m = maximum(m, 0)
        return m * (m + 1) // 2

    last = first + n - 1
    growing = triangle(last) - triangle(first - 1)  # the sum of max(first + i, 0)
    over = triangle(last - limit) - triangle(first - 1 - limit)
    return growing - over


def keys_read(span: Span, mask: Mask, block: int) -> Number:
    """Keys of one sequence that are read, in whole blocks of the cache."""
    left, right = mask.window
    first = 0 if left < 0 else maximum(span.past - left, 0)
    last = span.keys if mask.causal or right < 0 else minimum(span.keys, span.past + span.rows + right)
    return round_up(last, block) - first // block * block


def most_keys(span: Span, mask: Mask) -> Number:
    """Keys that the row of one sequence sees which sees most."""
    left, right = (mask.window[0], 0) if mask.causal else mask.window
    return span.keys if left < 0 or right < 0 else minimum(span.keys, left + 1 + right)
