"""How many tokens of a draft's proposal its target would accept.

At sampled places of the documents both models continue the true text before the place greedily, each on its
own tokens. What counts is how many of the draft's tokens equal the target's before the first that differs:
with greedy decoding, exactly the tokens that speculation accepts there. The target adds one of its own, so a
step of the target yields the accepted tokens and one more.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ridgeline.loading import Loaded

PROPOSAL = 4  # tokens that a draft proposes at a time
PLACES = 512  # sampled in all documents together
CONTEXT = 512  # tokens before a place that the models read, fewer where the document begins
CACHE_TOKENS = 32_768  # of the requests that run at once


@dataclass(frozen=True)
class Agreement:
    """Of proposals of `proposal` tokens at `places` places: `accepted` tokens in the mean."""

    proposal: int
    places: int
    accepted: float


def agreement(
    target: Loaded,
    draft: Loaded,
    documents: Sequence[Sequence[int]],
    *,
    places: int = PLACES,
    proposal: int = PROPOSAL,
    context: int = CONTEXT,
) -> Agreement:
    """The draft's agreement with the target on documents of token ids, at places drawn with a fixed seed."""
    prompts = prefixes(documents, places, context)
    pairs = zip(
        _greedy(draft, prompts, proposal),
        _greedy(target, prompts, proposal),
        strict=True,
    )
    total = sum(leading_equal(proposed, wanted) for proposed, wanted in pairs)
    return Agreement(proposal, len(prompts), total / len(prompts))


def prefixes(documents: Sequence[Sequence[int]], places: int, context: int) -> list[list[int]]:
    """The `context` tokens before each of `places` distinct places, or all that the document has there.

    Every token of every document but its first is as likely to be a place, so long documents have more.
    """
    candidates = [(i, place) for i, document in enumerate(documents) for place in range(1, len(document))]
    chosen = random.Random(0).sample(candidates, min(places, len(candidates)))
    return [list(documents[i][max(0, place - context) : place]) for i, place in sorted(chosen)]


def leading_equal(proposed: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens are equal before the first that differs."""
    for count, (mine, yours) in enumerate(zip(proposed, wanted)):
        if mine != yours:
            return count
    return min(len(proposed), len(wanted))


def _greedy(loaded: Loaded, prompts: list[list[int]], tokens: int) -> list[tuple[int, ...]]:
    generator = loaded.generator(cache_tokens=CACHE_TOKENS)
    return [result.ids for result in generator.generate(prompts, max_tokens=tokens, stop_ids=())]
