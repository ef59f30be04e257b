"""``ridgeline.Engine``: a model that serves many callers at once, from any thread or task."""

from __future__ import annotations

import asyncio
import queue
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ridgeline.analysis.step_cost import cost_here
from ridgeline.engine.build import build_core, default_blocks
from ridgeline.engine.checks import at_least_one
from ridgeline.engine.core import Event
from ridgeline.engine.generate import collect
from ridgeline.engine.plan import Limits
from ridgeline.engine.prompts import Prompt
from ridgeline.engine.request import Request
from ridgeline.engine.result import Failure, Result, Token
from ridgeline.engine.speculation.report import SpeculationReport
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.engine.status import Status
from ridgeline.engine.steps import StepReport
from ridgeline.engine.worker import Worker
from ridgeline.loading import Loaded, load
from ridgeline.ops.batch import BLOCK_TOKENS


class Engine:
    """Serves ``model``, loaded or what :func:`ridgeline.load` takes, with a cache that outlives its requests.

    A step computes at most ``token_budget`` tokens, of at most ``sequences`` sequences at once. The cache
    holds ``cache_tokens`` tokens in blocks of ``block_size``: by default half of the memory that the weights
    leave, at most as many as those sequences can need. It keeps them in ``cache_format``, by default that of
    the weights which are never quantised: ``int8`` everywhere, ``fp8`` on a GPU. Prompts are looked up in it
    if ``prefix_cache``. A ``speculator``, the engine's own, drafts the tokens that steps then verify.

    The engine computes in a thread of its own, from its creation until :meth:`close`, which a ``with`` block
    calls at its end, and the interpreter at its own. There may be several engines.

    Raises InputError if the model is an encoder, a number is below 1, or memory does not hold the cache,
    or it cannot be kept in that format.
    """

    def __init__(
        self,
        model: Loaded | str | Path,
        *,
        block_size: int = BLOCK_TOKENS,
        token_budget: int = 512,
        sequences: int = 64,
        prefix_cache: bool = True,
        cache_tokens: int | None = None,
        speculator: Speculator | None = None,
        cache_format: str | None = None,
    ) -> None:
        loaded = model if isinstance(model, Loaded) else load(model)
        self._requests = loaded.requests()
        limits = Limits(token_budget, sequences, prefix_cache)
        at_least_one("block_size", block_size)
        if cache_tokens is None:
            blocks = default_blocks(loaded.model, loaded.ops, limits.seats, block_size, cache_format)
        else:
            blocks = max(1, at_least_one("cache_tokens", cache_tokens) // block_size)
        given = loaded.model, loaded.ops, loaded.tokenizer, limits, blocks, block_size, speculator
        core = build_core(*given, cache_format=cache_format)
        self._speculator = speculator
        self._scheduler = core.scheduler
        self._steps = core.steps
        self._cost = cost_here(loaded, cache_format)
        self._worker = Worker(core)
        self._finalizer = weakref.finalize(self, _close, self._worker, speculator)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests."""
        return self._worker.is_alive

    @property
    def steps(self) -> tuple[StepReport, ...]:
        """Reports of the last steps, the oldest first; what they predict is for the threads that were in use
        when the engine was made."""
        return tuple(StepReport.of(record, self._cost) for record in self._steps.records)

    @property
    def last_step(self) -> StepReport | None:
        """The report of the newest step, None before there is one."""
        last = self._steps.last
        return None if last is None else StepReport.of(last, self._cost)

    @property
    def speculation(self) -> SpeculationReport | None:
        """What speculation did so far and what it gained; None without a speculator."""
        return None if self._speculator is None else self._speculator.report

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        progress: Callable[[str, float], None] | None = None,
        **options: Any,
    ) -> list[Result]:
        """The results of the prompts in their order, all samples of the first before those of the second.

        ``options`` and errors are those of :meth:`~ridgeline.engine.prompts.Requests.make`. ``progress`` is
        told what is done and which share of it, as by the bar of ``ridgeline.report.tables.progress``.

        Raises EngineClosed if the engine is closed meanwhile, and whatever made a prompt fail.
        """
        requests = self._checked(prompts, options)
        outputs = sum(request.samples for request in requests)
        results: list[Token] = []
        for token in self._tokens(requests):
            if token.result is not None:
                results.append(token)
                if progress is not None:
                    done = len(results)
                    progress(f"generated {done} of {outputs}", done / outputs)
        return collect(results)

    def tokens(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> Iterator[Token]:
        """The tokens of the prompt or prompts as they are generated, for a plain ``for``; those that are not
        taken are aborted. Otherwise like :meth:`generate`; errors of the input come at once."""
        return self._tokens(self._checked(prompts, options))

    def stream(self, prompt: Prompt, **options: Any) -> TokenStream:
        """The tokens of one prompt, for ``async for`` in the running event loop.

        ``options`` and errors are those of :meth:`~ridgeline.engine.prompts.Requests.make`; the errors come
        at once. The request is aborted if the loop over its tokens is left early, or its task is cancelled.
        """
        return self.start([self.prepare(prompt, **options)])

    def prepare(self, prompt: Prompt, **options: Any) -> Request:
        """A checked request for :meth:`start`; ``options`` and errors are those of
        :meth:`~ridgeline.engine.prompts.Requests.make`. Encoding a long text takes a while: it may be done in
        any thread."""
        return self._fitting(self._requests.make(prompt, **options))

    def start(self, requests: Sequence[Request]) -> TokenStream:
        """The tokens of several prepared requests in one stream, which otherwise is like :meth:`stream`."""
        # Copies: a request is known by its identity, and may be started again, or on another engine.
        return TokenStream(self._worker, [self._fitting(replace(request)) for request in requests])

    @property
    def cache_tokens(self) -> int:
        """How many tokens the cache holds."""
        return self._scheduler.pool.blocks * self._scheduler.pool.block_size

    def status(self) -> Status:
        """What the engine is doing, from any thread. It may be in the midst of a step, so figures may differ
        by that step."""
        scheduler, pool, totals = self._scheduler, self._scheduler.pool, self._worker.totals
        return Status(
            alive=self.is_alive,
            running=sum(group.seats for group in list(scheduler.running)),
            waiting=len(scheduler.waiting),
            sequences=scheduler.limits.seats,
            blocks_used=pool.blocks - pool.available,
            blocks=pool.blocks,
            block_size=pool.block_size,
            preemptions=scheduler.preemptions,
            steps=totals.steps,
            step_seconds=totals.step_seconds,
            prompt_tokens=scheduler.prompt_tokens,
            output_tokens=totals.output_tokens,
            answered=totals.answered,
        )

    def drain(self) -> None:
        """Take no more requests, and return when those that there are have been answered."""
        self._worker.drain()

    def close(self) -> None:
        """Take no more requests and forget those that there are: their callers get EngineClosed. Returns when
        the engine's thread has ended; may be called again."""
        self._finalizer()

    def _checked(self, prompts: Prompt | Sequence[Prompt], options: dict[str, Any]) -> list[Request]:
        return [self._fitting(request) for request in self._requests.make_all(prompts, **options)]

    def _fitting(self, request: Request) -> Request:
        self._scheduler.refuse_endless(request)
        return request

    def _tokens(self, requests: Sequence[Request]) -> Iterator[Token]:
        """All tokens of the requests; whatever is not finished when they are left is aborted."""
        inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        missing = sum(request.samples for request in requests)
        try:
            for place, request in enumerate(requests):
                self._worker.submit(request, place, inbox.put)
            while missing:
                event = inbox.get()
                if isinstance(event, Failure):
                    raise event.error
                missing -= event.result is not None
                yield event
        finally:
            if missing:
                _abort(self._worker, requests)


class TokenStream:
    """The tokens of requests as they are generated, each with its request's place, for ``async for``."""

    def __init__(self, worker: Worker, requests: Sequence[Request]) -> None:
        self._missing = sum(request.samples for request in requests)
        self._inbox = inbox = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._finalizer = weakref.finalize(self, _abort, worker, requests)
        for place, request in enumerate(requests):
            # The worker must not keep the stream alive, so that one nobody reads any more is aborted.
            worker.submit(request, place, lambda event: loop.call_soon_threadsafe(inbox.put_nowait, event))

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> Token:
        if not self._missing:
            raise StopAsyncIteration
        try:
            event = await self._inbox.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if isinstance(event, Failure):
            await self.aclose()
            raise event.error
        self._missing -= event.result is not None
        if not self._missing:
            self._finalizer.detach()
        return event

    async def aclose(self) -> None:
        """Abort the requests that are not finished."""
        self._missing = 0
        self._finalizer()


def _close(worker: Worker, speculator: Speculator | None) -> None:
    worker.close()
    if speculator is not None:
        speculator.close()


def _abort(worker: Worker, requests: Sequence[Request]) -> None:
    for request in requests:
        worker.abort(request)
