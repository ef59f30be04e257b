"""Generating with an encoder-decoder: each request is encoded once, then decoded a token at a time.

Requests run one after another, in the caller's thread and beside no scheduler: their caches are not the
blocks that an engine shares among sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

import torch

from ridgeline.engine.generate import collect
from ridgeline.engine.output import Output
from ridgeline.engine.prompts import Prompt, Requests
from ridgeline.engine.request import Request
from ridgeline.engine.result import Result, Token
from ridgeline.engine.sampler import choose_tokens, logprobs_of
from ridgeline.engine.sequence import Group
from ridgeline.engine.sequence import Sequence as Growing
from ridgeline.errors import InputError
from ridgeline.models.model import EncoderDecoder
from ridgeline.ops.batch import BLOCK_TOKENS, Memory, Span
from ridgeline.ops.reference import Reference


class EncoderDecoderGenerator:
    """Generates with ``model`` on the executing reading ``ops``, what ``requests`` makes of the prompts.

    The decoder begins with the token ``start``, the config's unless it is given. Raises InputError for one
    that the vocabulary lacks.
    """

    speculator = None

    def __init__(
        self, model: EncoderDecoder, ops: Reference, requests: Requests, start: int | None = None
    ) -> None:
        self.model = model
        self.ops = ops
        self.requests = requests
        self.start = model.config.start if start is None else start
        if not 0 <= self.start < model.config.vocab:
            raise InputError(
                f"{model.config.name}: decoder_start_token_id is {self.start}, expected 0 to "
                f"{model.config.vocab - 1}"
            )

    def generate(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[Result]:
        """The results of the prompts in their order, all samples of the first before those of the second;
        options and errors as for :meth:`stream`."""
        return collect(self.stream(prompts, **options))

    def stream(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> Iterator[Token]:
        """The tokens of the prompt or prompts as they are generated, one request after another.

        Options and errors are those of :meth:`~ridgeline.engine.prompts.Requests.make`, and beam search is
        refused; the errors come at once, before any token is asked for.
        """
        requests = self.requests.make_all(prompts, **options)
        if any(request.beams is not None for request in requests):
            raise InputError("beam search is not supported with an encoder-decoder: leave beams out")
        return self._tokens(requests)

    def _tokens(self, requests: Sequence[Request]) -> Iterator[Token]:
        for place, request in enumerate(requests):
            submitted = perf_counter()
            memory = self._encode(request)
            for sample in range(request.samples):
                yield from self._decode(place, request, sample, memory, submitted)

    @torch.inference_mode()
    def _encode(self, request: Request) -> Memory:
        ids = list(request.prompt)
        blocks = -(-len(ids) // BLOCK_TOKENS)
        cache = self.ops.alloc_cache(self.model.memory_spec(self.model.plain_format), blocks)
        memory = self.ops.encode(self.model, ids, [Span(len(ids), table=tuple(range(blocks)))], cache)
        return Memory(memory.spans, cache=cache)  # the states have served

    def _decode(
        self, place: int, request: Request, sample: int, memory: Memory, submitted: float
    ) -> Iterator[Token]:
        sequence = Growing(request, sample)
        group = Group(request, (0.0, place, sample), [sequence], submitted=submitted, admitted=submitted)
        output = Output(place, group, self.requests.tokenizer)
        table = tuple(range(-(-request.max_tokens // BLOCK_TOKENS)))
        cache = self.ops.alloc_cache(self.model.cache_spec(self.model.plain_format), len(table))
        newest = self.start
        while sequence.finish_reason is None:
            span = Span(1, len(sequence.output), table=table)
            with torch.inference_mode():
                logits = self.ops.run(self.model, [newest], [span], cache=cache, memory=memory)
            [newest] = choose_tokens(logits, [sequence])
            sequence.accept(newest)
            top = request.logprobs
            logprobs = None if top is None else logprobs_of(logits[0], newest, top)
            yield output.add(sequence, logprobs, perf_counter())
