"""What serving is judged by: latencies of requests, and throughput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ridgeline.engine.arrivals import Arrival


@dataclass(frozen=True)
class Served:
    """One answered request: when it came and when each of its output tokens did, in seconds on one clock,
    and how many tokens its prompt had."""

    arrival: float
    prompt: int
    times: tuple[float, ...]

    @property
    def ttft(self) -> float:
        """Time to first token: from arrival, so waiting counts."""
        return self.times[0] - self.arrival

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first: (last - first) / (n - 1), None for a single token."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1) if len(self.times) > 1 else None

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies: the times between neighbouring tokens."""
        return [later - earlier for earlier, later in pairwise(self.times)]

    @property
    def total(self) -> float:
        """End-to-end latency: from arrival to the last token."""
        return self.times[-1] - self.arrival


@dataclass(frozen=True)
class Distribution:
    """Mean and percentiles of a latency in seconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Serving:
    """How a set of requests was served; latencies are None where no request has one.

    ``seconds`` run from the first arrival to the last token. TTFT, TPOT and end-to-end latency are taken
    over requests, ITL over all gaps of all requests. ``output_tokens_per_second`` leaves prompts out,
    ``tokens_per_second`` has them in.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    ttft: Distribution
    tpot: Distribution | None
    itl: Distribution | None
    end_to_end: Distribution

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds

    @property
    def tokens_per_second(self) -> float:
        return (self.prompt_tokens + self.output_tokens) / self.seconds


def summarise(served: Sequence[Served]) -> Serving:
    """The figures of at least one answered request."""
    first = min(request.arrival for request in served)
    last = max(request.times[-1] for request in served)
    return Serving(
        requests=len(served),
        prompt_tokens=sum(request.prompt for request in served),
        output_tokens=sum(len(request.times) for request in served),
        seconds=last - first,
        ttft=distribution([request.ttft for request in served]),
        tpot=distribution([request.tpot for request in served if request.tpot is not None]),
        itl=distribution([gap for request in served for gap in request.gaps]),
        end_to_end=distribution([request.total for request in served]),
    )


def summarise_recorded(arrivals: Sequence[Arrival]) -> Serving | None:
    """The figures of a run that was recorded, None unless it was of every request. Tokens between the first
    and the last are taken to have come at even distances, so latencies between tokens are means."""
    if any(a.first_token is None or a.last_token is None for a in arrivals):
        return None
    return summarise([Served(a.seconds, a.prompt, _times(a)) for a in arrivals])


def _times(recorded: Arrival) -> tuple[float, ...]:
    first, last, n = recorded.first_token, recorded.last_token, recorded.output
    return tuple(first + (last - first) * i / max(n - 1, 1) for i in range(n))


def distribution(values: Sequence[float]) -> Distribution | None:
    """Mean and percentiles, the latter on the straight line between neighbours; None of nothing."""
    if not values:
        return None
    ranked = sorted(values)

    def percentile(share: float) -> float:
        place = share * (len(ranked) - 1)
        below = int(place)
        above = min(below + 1, len(ranked) - 1)
        return ranked[below] + (place - below) * (ranked[above] - ranked[below])

    return Distribution(sum(ranked) / len(ranked), percentile(0.5), percentile(0.9), percentile(0.99))
