import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.hardware.probes.ring import ALIGNMENT, Ring

SIZE = 64 * ALIGNMENT


@given(st.lists(st.integers(1, SIZE // 8), min_size=1, max_size=40))
def test_a_piece_comes_round_again_only_after_most_of_the_ring(sizes):
    ring, since = Ring(SIZE), {}
    taken = 0
    for size in sizes:
        piece = ring.take((size,), torch.uint8)
        start = piece.data_ptr() - ring.memory.data_ptr()
        for page in range(start // ALIGNMENT, -(-(start + size) // ALIGNMENT)):
            if page in since:
                assert taken - since[page] >= SIZE * 3 // 4
            since[page] = taken
        taken += -(-size // ALIGNMENT) * ALIGNMENT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_its_values_are_ordinary_numbers_in_every_dtype(dtype):
    values = Ring(SIZE).take((SIZE // dtype.itemsize,), dtype).float()
    assert values.isfinite().all()
    assert (values.abs() < torch.finfo(dtype).tiny).float().mean() < 1e-3
    assert values.std() > 0


def test_what_is_kept_is_always_the_same():
    ring = Ring(SIZE)
    assert ring.keep((8, 8), torch.float32).data_ptr() == ring.keep((4,), torch.float32).data_ptr()


def test_a_piece_larger_than_the_ring_is_refused():
    with pytest.raises(ValueError, match="no piece"):
        Ring(SIZE).take((SIZE,), torch.float32)
