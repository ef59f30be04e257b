"""The block pool: no block is lost, none is written by one sequence and read by another."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from ridgeline.engine.blocks import BlockPool, Copy, OutOfBlocks, block_hash


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_a_sequence_gets_whole_blocks(tokens, blocks):
    pool = BlockPool(10, 16)
    pool.allocate("a", tokens)
    assert len(pool.table("a")) == blocks


def test_a_sequence_that_does_not_fit_takes_nothing():
    pool = BlockPool(4, 16)
    pool.allocate("a", 33)
    with pytest.raises(OutOfBlocks, match="2 blocks are needed, 1 are available"):
        pool.allocate("b", 17)
    with pytest.raises(OutOfBlocks):
        pool.grow("a", 65)
    assert (pool.available, len(pool.table("a")), "b" in pool) == (1, 3, False)
    pool.check()


def test_freed_blocks_can_be_allocated_again():
    pool = BlockPool(2, 16)
    pool.allocate("a", 32)
    table = pool.table("a")
    pool.free("a")
    pool.allocate("b", 32)
    assert pool.table("b") == table


def test_a_table_is_a_run_of_neighbours_while_the_pool_is_not_fragmented():
    pool = BlockPool(8, 16)
    pool.allocate("a", 40)
    pool.allocate("b", 40)
    assert (pool.table("a"), pool.table("b")) == ((0, 1, 2), (3, 4, 5))
    pool.free("a")
    pool.allocate("c", 30)
    assert pool.table("c") == (0, 1)


def test_a_sequence_has_one_table():
    pool = BlockPool(8, 16)
    pool.allocate("a", 16)
    pool.allocate("b", 16)
    with pytest.raises(ValueError, match="already has a table"):
        pool.allocate("a", 16)
    with pytest.raises(ValueError, match="already has a table"):
        pool.fork("a", "b")


def test_a_table_grows_by_whole_blocks():
    pool = BlockPool(8, 4)
    pool.allocate("a", 3)
    pool.grow("a", 4)
    assert pool.table("a") == (0,)
    pool.grow("a", 9)
    assert pool.table("a") == (0, 1, 2)


# -- sharing ---------------------------------------------------------------------------------------


def test_a_fork_shares_every_block_until_it_writes():
    pool = BlockPool(8, 4)
    pool.allocate("a", 6)
    pool.fork("a", "b")
    assert (pool.table("b"), pool.available) == ((0, 1), 6)
    assert pool.writable("b", 1) == Copy(1, 2)
    assert (pool.table("a"), pool.table("b")) == ((0, 1), (0, 2))
    assert pool.writable("a", 1) is None  # now its own


def test_a_copy_needs_a_block():
    pool = BlockPool(1, 4)
    pool.allocate("a", 2)
    pool.fork("a", "b")
    with pytest.raises(OutOfBlocks):
        pool.writable("b", 0)
    pool.free("a")
    assert pool.writable("b", 0) is None


def test_truncating_takes_back_whole_blocks():
    pool = BlockPool(8, 4)
    pool.allocate("a", 12)
    pool.truncate("a", 5)
    assert (pool.table("a"), pool.available) == ((0, 1), 6)
    pool.truncate("a", 0)
    assert (pool.table("a"), pool.available) == ((), 8)


# -- prefixes --------------------------------------------------------------------------------------


def chain(tokens, block_size, root=b""):
    hashes = []
    for end in range(block_size, len(tokens) + 1, block_size):
        hashes.append(block_hash(hashes[-1] if hashes else root, tokens[end - block_size : end]))
    return hashes


def test_a_hash_stands_for_the_whole_prefix():
    same_block = chain((1, 2, 3, 4), 2)[1], chain((9, 2, 3, 4), 2)[1]
    assert same_block[0] != same_block[1]
    assert chain((1, 2), 2) != chain((1, 2), 2, root=b"dynamic 4096")
    assert chain((1, 2, 3, 4, 5), 2) == chain((1, 2, 3, 4), 2)


def test_a_published_prefix_is_shared_while_it_is_held_and_after():
    pool, hashes = BlockPool(8, 2), chain((1, 2, 3, 4, 5), 2)
    pool.allocate("a", 5)
    assert pool.allocate("b", 5, hashes) == 0
    pool.free("b")
    for i, hash in enumerate(hashes):
        pool.publish("a", i, hash)
    assert pool.allocate("b", 5, hashes) == 2
    assert pool.table("b")[:2] == pool.table("a")[:2]
    pool.free("a")
    pool.free("b")
    assert pool.available == 8
    assert pool.allocate("c", 5, hashes) == 2
    pool.check()


def test_a_duplicate_prefix_stays_its_sequences_own():
    """Two prompts computed in one step publish the same hash; neither table may lose its block."""
    pool, [hash] = BlockPool(4, 2), chain((1, 2), 2)
    pool.allocate("a", 2)
    pool.allocate("b", 2)
    pool.publish("a", 0, hash)
    pool.publish("b", 0, hash)
    pool.free("a")
    assert pool.table("b") == (1,)
    assert pool.allocate("c", 2, [hash]) == 1
    assert pool.table("c") == (0,)
    pool.check()


def test_the_prefix_used_longest_ago_is_evicted_first_and_its_end_before_its_beginning():
    pool = BlockPool(4, 2)
    old, new = chain((1, 2, 3, 4), 2), chain((5, 6, 7, 8), 2)
    for name, hashes in (("old", old), ("new", new)):
        pool.allocate(name, 4)
        for i, hash in enumerate(hashes):
            pool.publish(name, i, hash)
        pool.free(name)
    pool.allocate("a", 2)
    assert pool.allocate("b", 4, old) == 1  # its end went first, then the other prefix's for this one
    pool.free("b")
    pool.free("a")
    assert pool.allocate("c", 4, new) == 1
    pool.check()


def test_reused_blocks_do_not_count_as_available_for_the_rest():
    pool, hashes = BlockPool(2, 2), chain((1, 2, 3, 4), 2)
    pool.allocate("a", 4)
    for i, hash in enumerate(hashes):
        pool.publish("a", i, hash)
    pool.free("a")
    with pytest.raises(OutOfBlocks, match="1 blocks are needed, 0 are available"):
        pool.allocate("b", 5, hashes)
    assert pool.available == 2
    pool.check()


def test_writing_into_a_published_block_forgets_or_spares_the_prefix():
    pool, [hash] = BlockPool(4, 2), chain((1, 2), 2)
    pool.allocate("a", 2)
    pool.publish("a", 0, hash)
    pool.fork("a", "b")
    assert pool.writable("b", 0) == Copy(0, 1)
    assert pool.allocate("c", 2, [hash]) == 1  # a's block is as it was
    pool.free("c")
    assert pool.writable("a", 0) is None
    assert pool.allocate("c", 2, [hash]) == 0  # a's block has changed
    pool.check()


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda pool: pool._tables["a"].append(0), "miscounted"),
        (lambda pool: pool._tables["a"].pop(), "not conserved"),
        (lambda pool: pool._free.append(0), "not conserved"),
        (lambda pool: pool._holders.__setitem__(1, 2), "miscounted"),
        (lambda pool: pool._published.clear(), "do not match"),
        (lambda pool: pool.publish("a", 0, b"x") or pool._hashes.clear(), "do not match"),
    ],
)
def test_the_check_notices_what_is_wrong(tamper, message):
    pool = BlockPool(4, 16)
    pool.allocate("a", 32)
    pool.publish("a", 1, b"1")
    pool.check()
    tamper(pool)
    with pytest.raises(RuntimeError, match=message):
        pool.check()


# -- any order of all of it ------------------------------------------------------------------------


@dataclass(eq=False)
class Model:
    """A sequence as the naive twin keeps it: its tokens, and what a reader would find in its blocks."""

    tokens: list[int] = field(default_factory=list)


SIZE, BLOCKS = 2, 9


class Pool(RuleBasedStateMachine):
    """Random sequences over three token values, so that prefixes meet. The twin is the cache itself: what was
    written into each slot; a sequence must always read its own tokens back."""

    sequences = Bundle("sequences")

    def __init__(self):
        super().__init__()
        self.pool = BlockPool(BLOCKS, SIZE)
        self.slots = [[None] * SIZE for _ in range(BLOCKS)]
        self.live = []

    def write(self, sequence, first):
        """The cache after a step that computes the tokens from ``first`` on; full blocks are published."""
        table = self.pool.table(sequence)
        for place in range(first, len(sequence.tokens)):
            self.slots[table[place // SIZE]][place % SIZE] = sequence.tokens[place]
        for i, hash in enumerate(chain(sequence.tokens, SIZE)):
            self.pool.publish(sequence, i, hash)

    @rule(target=sequences, tokens=st.lists(st.integers(0, 2), min_size=1, max_size=7))
    def admit(self, tokens):
        sequence = Model(tokens)
        prefix = chain(tokens, SIZE)[: (len(tokens) - 1) // SIZE]
        try:
            reused = self.pool.allocate(sequence, len(tokens), prefix)
        except OutOfBlocks:
            return sequence
        self.live.append(sequence)
        self.write(sequence, reused * SIZE)
        return sequence

    @rule(sequence=sequences, tokens=st.lists(st.integers(0, 2), min_size=1, max_size=4))
    def append(self, sequence, tokens):
        if sequence not in self.pool:
            return
        past = len(sequence.tokens)
        try:
            self.pool.grow(sequence, past + len(tokens))
            copy = self.pool.writable(sequence, past // SIZE)
        except OutOfBlocks:
            self.pool.truncate(sequence, past)
            return
        if copy is not None:
            self.slots[copy.target] = list(self.slots[copy.source])
        sequence.tokens = sequence.tokens + tokens
        self.write(sequence, past)

    @rule(target=sequences, sequence=sequences)
    def fork(self, sequence):
        child = Model(list(sequence.tokens))
        if sequence in self.pool:
            self.pool.fork(sequence, child)
            self.live.append(child)
        return child

    @rule(sequence=sequences, kept=st.integers(0, 6))
    def truncate(self, sequence, kept):
        if sequence in self.pool:
            sequence.tokens = sequence.tokens[:kept]
            self.pool.truncate(sequence, kept)

    @rule(sequence=consumes(sequences))
    def free(self, sequence):
        if sequence in self.pool:
            self.pool.free(sequence)
            self.live.remove(sequence)

    @precondition(lambda self: self.live)
    @rule()
    def preempt_the_latest(self):
        self.pool.free(self.live.pop())

    @invariant()
    def blocks_are_conserved(self):
        self.pool.check()

    @invariant()
    def every_sequence_reads_its_own_tokens(self):
        for sequence in self.live:
            table = self.pool.table(sequence)
            assert len(table) == self.pool.blocks_for(len(sequence.tokens))
            read = [token for block in table for token in self.slots[block]][: len(sequence.tokens)]
            assert read == sequence.tokens


Pool.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = Pool.TestCase
