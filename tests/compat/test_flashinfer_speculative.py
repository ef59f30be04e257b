"""Speculative sampling along a chain: the target's distribution, whatever the draft."""

from __future__ import annotations

import pytest
import torch

from ridgeline.compat.flashinfer import chain_speculative_sampling, sampling_from_probs
from ridgeline.errors import InputError
from tests.compat.chi_square import DRAWS, follows
from tests.compat.tensors import draw, int32

VOCAB, DRAFTED = 5, 2
DRAFT = draw(0, DRAFTED, VOCAB).softmax(-1)
TARGET = draw(1, DRAFTED + 1, VOCAB).softmax(-1)


def chains(draft: torch.Tensor, target: torch.Tensor, seed: int = 1):
    """Tokens, accepted and emitted counts of 100,000 chains whose drafts are drawn from ``draft``."""
    drafted = [
        sampling_from_probs(row[None], torch.zeros(DRAWS, dtype=torch.int32), seed=100 + i)
        for i, row in enumerate(draft)
    ]
    return chain_speculative_sampling(
        draft.expand(DRAWS, *draft.shape),
        torch.stack(drafted, 1),
        target.expand(DRAWS, *target.shape),
        seed=seed,
    )


def test_every_token_has_the_targets_distribution():
    tokens, _, emitted = chains(DRAFT, TARGET)
    assert follows(tokens[:, 0], TARGET[0])
    for at in (1, 2):
        assert follows(tokens[emitted >= at, at], TARGET[at])


def test_the_distribution_test_can_fail():
    """Negative control: tokens of a target whose first two are swapped."""
    swapped = TARGET.clone()
    swapped[0, :2] = TARGET[0, :2].flip(0)
    assert not follows(chains(DRAFT, swapped)[0][:, 0], TARGET[0])


def test_the_share_of_accepted_tokens_is_what_the_two_have_in_common():
    """sum(min(draft, target)) (Leviathan et al. 2023, theorem 3.5), also of tokens after a rejected one."""
    _, accepted, emitted = chains(DRAFT, TARGET)
    shares = torch.minimum(DRAFT, TARGET[:DRAFTED]).sum(-1)
    assert accepted.double().mean().item() == pytest.approx(float(shares.sum()), abs=0.01)
    assert emitted.double().mean().item() == pytest.approx(float(shares.cumprod(0).sum()), abs=0.01)


def test_a_chain_ends_behind_its_first_rejected_token():
    tokens, accepted, emitted = chains(DRAFT, TARGET)
    place = torch.arange(DRAFTED + 1)
    assert torch.equal(tokens >= 0, place <= emitted[:, None])
    assert (accepted >= emitted).all()
    assert tokens.dtype == accepted.dtype == emitted.dtype == torch.int32


def test_a_draft_that_is_the_target_is_accepted_whole():
    _, accepted, emitted = chains(TARGET[:DRAFTED], TARGET)
    assert (accepted == DRAFTED).all()
    assert (emitted == DRAFTED).all()


def test_certain_cases_have_certain_tokens():
    """What the target never gives is rejected for what the draft lacks; what the draft never gives passes."""
    draft = torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]])
    target = torch.tensor([[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    tokens, accepted, emitted = chain_speculative_sampling(draft, int32(1, 0).view(2, 1), target, seed=0)
    assert tokens.tolist() == [[2, -1], [0, 1]]
    assert accepted.tolist() == emitted.tolist() == [0, 1]


def test_counts_are_added_to_those_that_are_given():
    draft, target = DRAFT[None], TARGET[None]
    given = int32(10), int32(20)
    tokens, accepted, emitted = chain_speculative_sampling(draft, int32(0, 1)[None], target, *given, seed=3)
    alone = chain_speculative_sampling(draft, int32(0, 1)[None], target, seed=3)
    assert accepted is given[0]
    assert emitted is given[1]
    assert torch.equal(tokens, alone[0])
    assert (int(accepted), int(emitted)) == (10 + int(alone[1]), 20 + int(alone[2]))


def test_a_chain_without_drafted_tokens_is_a_draw_from_the_target():
    target = TARGET[:1].expand(DRAWS, 1, VOCAB)
    nothing = torch.empty(DRAWS, 0, VOCAB), torch.empty(DRAWS, 0, dtype=torch.int32)
    tokens, accepted, _ = chain_speculative_sampling(*nothing, target, seed=2)
    assert follows(tokens[:, 0], TARGET[0])
    assert not accepted.any()


@pytest.mark.parametrize(
    ("named", "arguments"),
    [
        ("draft_probs", {"draft_probs": DRAFT}),
        ("draft_probs", {"draft_probs": -DRAFT[None]}),
        ("target_probs", {"target_probs": TARGET[None, :2]}),
        ("target_probs", {"target_probs": TARGET[None].double()}),
        ("draft_token_ids", {"draft_token_ids": int32(0, 5)[None]}),
        ("draft_token_ids", {"draft_token_ids": int32(0, -1)[None]}),
        ("draft_token_ids", {"draft_token_ids": int32(0)[None]}),
        ("seed", {"seed": "one"}),
    ],
)
def test_what_does_not_fit_is_refused_by_name(named, arguments):
    call = {"draft_probs": DRAFT[None], "draft_token_ids": int32(0, 1)[None], "target_probs": TARGET[None]}
    with pytest.raises(InputError, match=rf"^{named} "):
        chain_speculative_sampling(**{**call, "seed": 1, **arguments})
