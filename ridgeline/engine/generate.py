"""Generating for a list of prompts in the caller's thread, with a cache of the call's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ridgeline.engine.build import build_core
from ridgeline.engine.checks import at_least_one
from ridgeline.engine.core import Core
from ridgeline.engine.plan import Limits
from ridgeline.engine.prompts import Prompt, Requests
from ridgeline.engine.request import Request
from ridgeline.engine.result import Failure, Result, Token
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.models.model import Model
from ridgeline.ops.batch import BLOCK_TOKENS
from ridgeline.ops.reference import Reference


class Generator:
    """Generates with ``model`` on the executing reading ``ops``, what ``requests`` makes of the prompts.

    A step computes at most ``token_budget`` tokens, of at most ``sequences`` sequences. The cache holds
    ``cache_tokens`` tokens at once, by default as many as the requests of a call may need; requests
    beyond wait their turn; ``cache_format`` is as :class:`~ridgeline.engine.engine.Engine` has it. A
    ``speculator`` drafts the tokens that steps then verify.

    Raises InputError if one of the numbers is below 1.
    """

    def __init__(
        self,
        model: Model,
        ops: Reference,
        requests: Requests,
        *,
        block_size: int = BLOCK_TOKENS,
        token_budget: int = 512,
        sequences: int = 256,
        prefix_cache: bool = True,
        cache_tokens: int | None = None,
        speculator: Speculator | None = None,
        cache_format: str | None = None,
    ) -> None:
        self.model = model
        self.ops = ops
        self.requests = requests
        self.block_size = at_least_one("block_size", block_size)
        self.limits = Limits(token_budget, sequences, prefix_cache)
        self.speculator = speculator
        self.cache_format = cache_format
        self.cache_tokens = None if cache_tokens is None else at_least_one("cache_tokens", cache_tokens)

    def generate(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[Result]:
        """The results of the prompts in their order, all samples of the first before those of the second;
        options and errors as for :meth:`stream`."""
        return collect(self.stream(prompts, **options))

    def stream(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> Iterator[Token]:
        """The tokens of the prompt or prompts as they are generated.

        Options and errors are those of :meth:`~ridgeline.engine.prompts.Requests.make`; the errors come at
        once, before any token is asked for.
        """
        return run(self.start(self.requests.make_all(prompts, **options)))

    def start(self, requests: Sequence[Request]) -> Core:
        """A core with a cache and these requests, which may differ in all their options.

        Raises InputError if one of them alone does not fit the cache, or if the cache does not fit in memory.
        """
        blocks = sum(request.blocks_at_most(self.block_size) * request.samples for request in requests)
        if self.cache_tokens is not None:
            blocks = min(blocks, max(1, self.cache_tokens // self.block_size))
        tokenizer = self.requests.tokenizer
        core = build_core(
            self.model,
            self.ops,
            tokenizer,
            self.limits,
            blocks,
            self.block_size,
            self.speculator,
            sum(request.width for request in requests),
            self.cache_format,
        )
        for place, request in enumerate(requests):
            core.submit(request, place)
        return core


def run(core: Core) -> Iterator[Token]:
    """All tokens of the requests that a core has, as they come; what is left when nobody takes them any more
    is aborted."""
    try:
        while core.has_work:
            for event in core.step():
                if isinstance(event, Failure):
                    raise event.error
                yield event
    finally:
        core.close()
    core.scheduler.check()


def collect(tokens: Iterable[Token]) -> list[Result]:
    """The results of a stream that is consumed to its end, in the order of the prompts and their samples."""
    results = {(token.request, token.sample): token.result for token in tokens if token.result is not None}
    return [results[key] for key in sorted(results)]
