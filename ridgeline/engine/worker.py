"""The thread in which an engine computes, and the mail that it gets."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count

from ridgeline.engine.core import Core, Event
from ridgeline.engine.request import Request
from ridgeline.engine.result import Failure, Token

#: Takes what comes of a request, in the engine's thread; it must not block.
Sink = Callable[[Event], None]


class EngineClosed(RuntimeError):
    """The engine was closed before the request was answered, or takes no more."""


@dataclass
class _Order:
    """A request that somebody waits for; ``missing`` of its outputs are still to come."""

    request: Request
    place: int
    sink: Sink
    submitted: float
    missing: int


@dataclass(frozen=True)
class _Abort:
    request: Request


@dataclass(frozen=True)
class _Close:
    """Forget whatever there is, and end."""


@dataclass
class Totals:
    """What was done since the beginning; steps include scheduling and sampling."""

    steps: int = 0
    step_seconds: float = 0.0
    output_tokens: int = 0
    answered: int = 0

    def count(self, token: Token, request: Request) -> None:
        """Count a token; the one that ends a beam search brings all of its result."""
        self.output_tokens += 1 if request.beams is None else len(token.result.ids)


class Worker:
    """Steps ``core`` in a thread while it has work. The methods may be called from any thread; what they ask
    for happens between two steps."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._mail: queue.SimpleQueue[_Order | _Abort | _Close] = queue.SimpleQueue()
        self._orders: dict[int, _Order] = {}
        self._numbers = count()
        self._changed = threading.Condition()
        self._accepts = True
        self._open = 0
        self.totals = Totals()
        self._thread = threading.Thread(target=self._serve, name="ridgeline-engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are taken and computed."""
        return self._accepts and self._thread.is_alive()

    def submit(self, request: Request, place: int, sink: Sink) -> None:
        """Compute a request: ``sink`` gets its tokens, which carry ``place``, or what made it fail.

        Raises EngineClosed.
        """
        order = _Order(request, place, sink, self._core.scheduler.clock.now(), request.samples)
        with self._changed:
            if not self._accepts:
                raise EngineClosed("the engine is closed: make a new one")
            self._open += 1
            self._mail.put(order)

    def abort(self, request: Request) -> None:
        """Forget a request; one that is finished or was never there is no error."""
        self._mail.put(_Abort(request))

    def drain(self) -> None:
        """Take no more requests, and return when those that there are have been answered."""
        with self._changed:
            self._accepts = False
            self._changed.wait_for(lambda: not self._open)

    def close(self) -> None:
        """Take no more requests, let those that there are fail with EngineClosed, and end the thread."""
        with self._changed:
            self._accepts = False
        self._mail.put(_Close())
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- in the thread -------------------------------------------------------------------------------

    def _serve(self) -> None:
        reason: Exception = EngineClosed("the engine was closed before the request was answered")
        try:
            while self._read_mail():
                for event in self._step():
                    self._deliver(event)
        except Exception as error:  # a fault of the engine itself: nobody must wait for it for ever
            reason = error
        finally:
            self._end(reason)

    def _read_mail(self) -> bool:
        """Do what was asked for; wait for it if there is nothing to compute. False if it is time to end."""
        while True:
            try:
                mail = self._mail.get(block=not self._core.has_work)
            except queue.Empty:
                return True
            if isinstance(mail, _Close):
                return False
            if isinstance(mail, _Abort):
                self._forget(mail.request)
                continue
            number = next(self._numbers)
            self._orders[number] = mail
            self._core.submit(mail.request, number, mail.submitted)

    def _step(self) -> list[Event]:
        begun = time.perf_counter()
        events = self._core.step()
        self.totals.steps += 1
        self.totals.step_seconds += time.perf_counter() - begun
        return events

    def _deliver(self, event: Event) -> None:
        order = self._orders.get(event.request)
        if order is None:  # its caller has gone in the middle of this step
            return
        if isinstance(event, Failure):
            order.missing = 0
        else:
            self.totals.count(event, order.request)
            order.missing -= event.result is not None
            self.totals.answered += not order.missing
        try:
            order.sink(replace(event, request=order.place))
        except Exception:  # the caller's event loop is closed
            self._forget(order.request)
            return
        if not order.missing:
            self._close_order(event.request)

    def _forget(self, request: Request) -> None:
        self._core.abort(request)
        for number in [n for n, order in self._orders.items() if order.request is request]:
            self._close_order(number)

    def _close_order(self, number: int) -> None:
        with self._changed:
            del self._orders[number]
            self._open -= 1
            self._changed.notify_all()

    def _end(self, reason: Exception) -> None:
        with self._changed:
            self._accepts = False
        while not self._mail.empty():
            mail = self._mail.get()
            if isinstance(mail, _Order):
                self._orders[next(self._numbers)] = mail
        for number in list(self._orders):
            self._deliver(Failure(number, reason))
        with suppress(Exception):  # after a fault of its own it may not be able to
            self._core.close()
