"""Q4_0 as the quality benchmark computes it, against its definition written out weight by weight."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.quality import Q4_0_GROUP, q4_0

WEIGHTS = st.lists(st.floats(-4, 4, width=16), min_size=Q4_0_GROUP, max_size=Q4_0_GROUP)


def naive(weights):
    largest = max(weights, key=abs)
    scale = numpy.float32(largest) / numpy.float32(-8)
    if scale == 0:
        return numpy.zeros(len(weights), numpy.float32)
    inverse = numpy.float32(1) / scale
    read = []
    for w in weights:
        q = min(15, int(numpy.float32(w) * inverse + numpy.float32(8.5)))
        read.append((q - 8) * numpy.float32(numpy.float16(scale)))
    return numpy.array(read, numpy.float32)


@given(WEIGHTS, WEIGHTS)
def test_it_is_the_definition_group_by_group(first, second):
    row = numpy.array([first + second], numpy.float32)
    assert numpy.array_equal(q4_0(row)[0], numpy.concatenate([naive(first), naive(second)]))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_weight_is_kept_and_its_opposite_clipped_to_seven_eighths(sign):
    row = numpy.zeros(Q4_0_GROUP, numpy.float32)
    row[3], row[5] = 8 * sign, -7.9 * sign
    found = q4_0(row)
    assert (found[3], found[5]) == (8 * sign, -7 * sign)
    assert not found[[0, 1, 2, 4]].any()
