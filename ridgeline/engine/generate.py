"""Generating text: several requests in one packed batch of prefill chunks and decode rows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from operator import index

import torch

from ridgeline.engine.blocks import BlockPool
from ridgeline.engine.request import GREEDY, Output, Request, Result, Sampling, Token, refuse_encoder
from ridgeline.engine.sampler import choose_tokens
from ridgeline.errors import InputError
from ridgeline.models.model import Model
from ridgeline.ops.protocol import Span
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_batch import TorchCache
from ridgeline.weights.tokenizer import TextStream, Tokenizer

Prompt = str | Sequence[int]


class Generator:
    """Generates with ``model`` on the executing reading ``ops``.

    A step computes at most ``token_budget`` tokens, of all its requests together. The cache holds
    ``cache_tokens`` tokens at once, by default as many as the requests of a call may need; requests
    beyond wait their turn. A request that names no ``max_tokens`` generates at most
    ``default_max_tokens``, and ends at the end of the model's window in any case.

    Raises InputError if the model is an encoder or one of the numbers is below 1.
    """

    def __init__(
        self,
        model: Model,
        ops: Reference,
        tokenizer: Tokenizer | None = None,
        *,
        block_size: int = 16,
        token_budget: int = 512,
        cache_tokens: int | None = None,
        default_max_tokens: int | None = None,
    ) -> None:
        refuse_encoder(model.config)
        self.model = model
        self.ops = ops
        self.tokenizer = tokenizer
        self.block_size = _at_least_one("block_size", block_size)
        self.token_budget = _at_least_one("token_budget", token_budget)
        self.cache_tokens = None if cache_tokens is None else _at_least_one("cache_tokens", cache_tokens)
        self.default_max_tokens = (
            None if default_max_tokens is None else _at_least_one("default_max_tokens", default_max_tokens)
        )

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop_ids: Collection[int] | None = None,
    ) -> list[Result]:
        """The results of the prompts in their order; arguments and errors as for :meth:`stream`."""
        tokens = self.stream(prompts, max_tokens=max_tokens, sampling=sampling, stop_ids=stop_ids)
        return collect(tokens)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop_ids: Collection[int] | None = None,
    ) -> Iterator[Token]:
        """The tokens of the prompt or prompts as they are generated.

        Arguments and errors as for :meth:`request`; the errors come at once, before any token is asked for.
        """
        prompts = _as_prompts(prompts)
        names = ["the prompt"] if len(prompts) == 1 else [f"prompts[{i}]" for i in range(len(prompts))]
        requests = [
            self.request(prompt, max_tokens=max_tokens, sampling=sampling, stop_ids=stop_ids, name=name)
            for prompt, name in zip(prompts, names, strict=True)
        ]
        return iter(self.start(requests))

    def request(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop_ids: Collection[int] | None = None,
        name: str = "the prompt",
    ) -> Request:
        """A checked request. ``prompt`` is text, which the tokenizer encodes, or token ids.

        ``stop_ids`` end the output, by default the tokenizer's; an empty prompt becomes its first token.

        Raises InputError, with ``name`` for the prompt, if the prompt is empty without such a token, holds an
        id outside the vocabulary, is text without a tokenizer, or does not fit the window with its output.
        """
        ids = self._prompt_ids(prompt, name)
        if stop_ids is None:
            stop_ids = () if self.tokenizer is None else self.tokenizer.eos_ids
        stop = frozenset(_token_ids(stop_ids, "stop_ids"))
        return Request(ids, self._max_tokens(len(ids), max_tokens, name), sampling, stop)

    def start(self, requests: Sequence[Request]) -> Run:
        """A run of requests that may differ in all their options.

        Raises InputError if one of them alone does not fit the cache, or if the cache does not fit in memory.
        """
        needed = [-(-request.cached_at_most // self.block_size) for request in requests]
        blocks = sum(needed)
        if self.cache_tokens is not None:
            blocks = min(blocks, self.cache_tokens // self.block_size)
            if max(needed) > blocks:
                raise InputError(
                    f"a prompt with its output takes {max(needed)} cache blocks of {self.block_size} tokens,"
                    f" and cache_tokens={self.cache_tokens} makes {blocks}: lower max_tokens or raise it"
                )
        cache = self._cache(blocks)
        return Run(self, requests, BlockPool(blocks, self.block_size), cache)

    def _cache(self, blocks: int) -> TorchCache:
        spec = self.model.cache_spec(self.model.plain_format, self.block_size)
        try:
            return self.ops.alloc_cache(spec, blocks)
        except RuntimeError:  # what PyTorch's CPU allocator raises
            raise InputError(
                f"memory does not hold a cache of {blocks * self.block_size} tokens: lower max_tokens,"
                " or cache_tokens if there are several prompts"
            ) from None

    def _prompt_ids(self, prompt: Prompt, name: str) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise InputError(f"{name} is text, and the model has no tokenizer: give token ids")
            prompt = self.tokenizer.encode(prompt)
        ids = _token_ids(prompt, name)
        if not ids:
            if self.tokenizer is None or self.tokenizer.bos_id is None:
                some = "token ids" if self.tokenizer is None else "some text"
                raise InputError(f"{name} is empty, and the model has no token to begin with: give {some}")
            ids = (self.tokenizer.bos_id,)
        vocab = self.model.config.vocab
        for token in ids:
            if not 0 <= token < vocab:
                raise InputError(f"{name} holds the token id {token}, expected 0 to {vocab - 1}")
        return ids

    def _max_tokens(self, prompt_tokens: int, max_tokens: int | None, name: str) -> int:
        window = self.model.config.window
        room = window - prompt_tokens
        if room < 1:
            raise InputError(
                f"{name} has {prompt_tokens} tokens and the model's window is {window}, its output included:"
                f" shorten it to at most {window - 1}"
            )
        if max_tokens is None:
            return room if self.default_max_tokens is None else min(room, self.default_max_tokens)
        if _at_least_one("max_tokens", max_tokens) > room:
            raise InputError(
                f"max_tokens is {max_tokens}, but {name} has {prompt_tokens} tokens, which leaves {room} of"
                f" the model's window of {window}: lower max_tokens or shorten the prompt"
            )
        return max_tokens


def collect(tokens: Iterable[Token]) -> list[Result]:
    """The results of a stream that is consumed to its end, in the order of the prompts."""
    results = {token.request: token.result for token in tokens if token.result is not None}
    return [results[request] for request in sorted(results)]


@dataclass(frozen=True)
class Chunk:
    """What a step computes of one request: its next ``rows`` tokens."""

    request: Request
    rows: int


def schedule(running: Iterable[Request], token_budget: int) -> list[Chunk]:
    """The next step of at most ``token_budget`` tokens, first come, first served.

    A decoding request is simply one with a single token pending. The requests that wait for budget are
    always the last ones, so as long as there are no more requests than budget none that decodes waits.
    """
    chunks = []
    for request in running:
        rows = min(request.pending, token_budget)
        if rows:
            chunks.append(Chunk(request, rows))
            token_budget -= rows
    return chunks


class Run:
    """The requests of one call, from waiting through running to finished; iterate for their tokens."""

    def __init__(
        self, generator: Generator, requests: Sequence[Request], pool: BlockPool, cache: TorchCache
    ) -> None:
        self.generator = generator
        self.pool = pool
        self.cache = cache
        self.waiting = deque(requests)
        self.running: list[Request] = []
        self.outputs = {
            request: Output(i, None if generator.tokenizer is None else TextStream(generator.tokenizer))
            for i, request in enumerate(requests)
        }

    def __iter__(self) -> Iterator[Token]:
        while self.waiting or self.running:
            yield from self.step()
        self.pool.check()

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """Admit, compute one packed batch, and return the tokens that it gave."""
        self._admit()
        chunks = schedule(self.running, self.generator.token_budget)
        return self._commit(chunks, self._forward(chunks))

    def _admit(self) -> None:
        """Start waiting requests in their order while there are blocks for all that they may need: none
        has to be preempted, and the blocks of a request lie together."""
        while self.waiting and len(self.running) < self.generator.token_budget:
            request = self.waiting[0]
            if self.pool.blocks_for(request.cached_at_most) > self.pool.available:
                return
            self.pool.allocate(request, request.cached_at_most)
            self.outputs[request].admitted = time.perf_counter()
            self.running.append(self.waiting.popleft())

    def _forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Logits after each chunk, [chunks, vocab]."""
        ids: list[int] = []
        spans = []
        for chunk in chunks:
            request, past = chunk.request, chunk.request.computed
            ids += request.tokens[past : past + chunk.rows]
            spans.append(Span(chunk.rows, past, table=self.pool.table(request), admitted=request.longest))
        ops = self.generator.ops
        return self.generator.model.forward(ops, ops.batch(ids, spans, logits="last", cache=self.cache))

    def _commit(self, chunks: Sequence[Chunk], logits: torch.Tensor) -> list[Token]:
        """Note what was computed, choose a token for each request that has caught up, let those go that
        are finished."""
        for chunk in chunks:
            chunk.request.computed += chunk.rows
        rows = [row for row, chunk in enumerate(chunks) if not chunk.request.pending]
        requests = [chunks[row].request for row in rows]
        chosen = choose_tokens(logits[rows], requests)
        now = time.perf_counter()
        tokens = []
        for request, token in zip(requests, chosen, strict=True):
            request.accept(token)
            tokens.append(self.outputs[request].add(request, now))
            if request.finish_reason is not None:
                self.running.remove(request)
                self.pool.free(request)
        return tokens


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A list of prompts, where a single one is text or a list that begins with a token id."""
    if not isinstance(prompts, Sequence):
        raise InputError(f"the prompt is {repr(prompts)[:60]}, expected text, token ids, or a list of such")
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], Integral)):
        return [prompts]
    if not prompts:
        raise InputError("no prompt was given: give at least one")
    return prompts


def _token_ids(value: Collection[int], name: str) -> tuple[int, ...]:
    try:
        return tuple(index(token) for token in value)
    except TypeError:
        raise InputError(f"{name} is {repr(value)[:60]}, expected token ids") from None


def _at_least_one(option: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{option} is {value!r}, expected a whole number of at least 1")
    return value
