"""The block pool: no block is lost, none has two owners."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.engine.blocks import BlockPool, OutOfBlocks


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_a_sequence_gets_whole_blocks(tokens, blocks):
    assert len(BlockPool(10, 16).allocate("a", tokens)) == blocks


def test_a_sequence_that_does_not_fit_takes_nothing():
    pool = BlockPool(4, 16)
    pool.allocate("a", 33)
    with pytest.raises(OutOfBlocks, match="17 tokens need 2 blocks, 1 are free"):
        pool.allocate("b", 17)
    assert pool.available == 1
    pool.check()


def test_freed_blocks_can_be_allocated_again():
    pool = BlockPool(2, 16)
    first = pool.allocate("a", 32)
    pool.free("a")
    assert pool.allocate("b", 32) == first


def test_a_table_is_a_run_of_neighbours_while_the_pool_is_not_fragmented():
    pool = BlockPool(8, 16)
    assert pool.allocate("a", 40) == (0, 1, 2)
    assert pool.allocate("b", 40) == (3, 4, 5)
    pool.free("a")
    assert pool.allocate("c", 30) == (0, 1)


def test_a_sequence_has_one_table():
    pool = BlockPool(8, 16)
    pool.allocate("a", 16)
    with pytest.raises(ValueError, match="already has a table"):
        pool.allocate("a", 16)


@given(st.integers(0, 20), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 90)), max_size=40))
def test_blocks_are_conserved_whatever_is_allocated_and_freed(blocks, steps):
    pool, held = BlockPool(blocks, 8), {}
    for sequence, tokens in steps:
        if sequence in held:
            pool.free(sequence)
            del held[sequence]
        else:
            try:
                held[sequence] = pool.allocate(sequence, tokens)
            except OutOfBlocks:
                assert pool.blocks_for(tokens) > pool.available
        pool.check()
        owned = [block for table in held.values() for block in table]
        assert len(set(owned)) == len(owned) == blocks - pool.available
        assert all(pool.table(sequence) == table for sequence, table in held.items())


def test_the_check_notices_a_block_with_two_owners_and_a_lost_one():
    for tampered in ((0, 0), (0,)):
        pool = BlockPool(4, 16)
        pool.allocate("a", 32)
        pool._tables["a"] = tampered
        with pytest.raises(RuntimeError, match="not conserved"):
            pool.check()
