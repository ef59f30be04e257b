"""Generated tokens on their way out: as text, cut at stop strings, with the times at which they came."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from ridgeline.engine.result import Logprobs, Result, Timings, Token
from ridgeline.engine.sequence import Group, Sequence
from ridgeline.weights.tokenizer import TextStream, Tokenizer


class StopStrings:
    """Passes text on until one of ``strings`` appears in it; what may yet become one is held back."""

    def __init__(self, strings: Items[str]) -> None:
        self.strings = strings
        self.found = False
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain to come before any stop string."""
        text = self._held + text
        ends = [place for place in (text.find(stop) for stop in self.strings) if place >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)]
        held = max((_overlap(text, stop) for stop in self.strings), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, now that nothing follows it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that ``stop`` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


@dataclass
class Output:
    """What a sequence of ``group`` has given so far; ``place`` is its request's in the call."""

    place: int
    group: Group
    tokenizer: Tokenizer | None
    pieces: list[str] = field(default_factory=list, init=False)
    logprobs: list[Logprobs] = field(default_factory=list, init=False)
    first: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._text = None if self.tokenizer is None else TextStream(self.tokenizer)
        self._stops = StopStrings(self.group.request.stop)

    def add(self, sequence: Sequence, logprobs: Logprobs | None, now: float) -> Token:
        """The event of the newest token of ``sequence``, which came ``now``; a stop string in its text ends
        the sequence."""
        if self.first is None:
            self.first = now
        if logprobs is not None:
            self.logprobs.append(logprobs)
        self.pieces.append(self._new_text(sequence))
        result = None if sequence.finish_reason is None else self._result(sequence, now)
        return Token(self.place, sequence.tokens[-1], self.pieces[-1], result, sequence.sample, logprobs)

    def _new_text(self, sequence: Sequence) -> str:
        if self._text is None:
            return ""
        stopped = sequence.tokens[-1] in sequence.request.stop_ids
        text = "" if stopped else self._stops.push(self._text.push(sequence.tokens[-1]))
        if sequence.finish_reason is not None and not self._stops.found:
            text += self._stops.push(self._text.finish())
        if self._stops.found:
            sequence.finish_reason = "stop"
        elif sequence.finish_reason is not None:
            text += self._stops.finish()
        return text

    def _result(self, sequence: Sequence, now: float) -> Result:
        request = sequence.request
        ids = tuple(sequence.output)
        return Result(
            "".join(self.pieces),
            ids,
            sequence.finish_reason,
            len(request.prompt),
            timings(self.group, self.first, now, len(ids)),
            sequence.sample,
            sequence.reused,
            None if request.logprobs is None else tuple(self.logprobs),
        )


def timings(group: Group, first: float, last: float, tokens: int) -> Timings:
    """Those of an output of so many tokens, the first and the last of which came at these times."""
    tpot = (last - first) / (tokens - 1) if tokens > 1 else None
    return Timings(group.admitted - group.submitted, first - group.submitted, tpot)
