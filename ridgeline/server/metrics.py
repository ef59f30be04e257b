"""What Prometheus is told: https://prometheus.io/docs/practices/naming/ says how such names are made."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

from ridgeline.engine.engine import Engine
from ridgeline.engine.result import Result
from ridgeline.engine.speculation.report import SpeculationReport
from ridgeline.engine.status import Status

#: Bounds of latencies, in seconds.
_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_NEXT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The figures of one server, whose ``engine`` is asked when they are read; None for an encoder."""

    def __init__(self, engine: Engine | None) -> None:
        self._registry = registry = CollectorRegistry()
        if engine is not None:
            registry.register(_EngineCollector(engine))
        self.requests = Counter(
            "ridgeline_http_requests",
            "Requests to the API, by status.",
            ("path", "status"),
            registry=registry,
        )
        self._prompt = Counter(
            "ridgeline_prompt_tokens", "Tokens of the prompts that were answered.", registry=registry
        )
        self._cached = Counter(
            "ridgeline_prompt_tokens_cached",
            "Those of them that were in the prefix cache.",
            registry=registry,
        )
        self._ttft = Histogram(
            "ridgeline_time_to_first_token_seconds",
            "From a request's arrival to its first token, waiting included.",
            buckets=_FIRST,
            registry=registry,
        )
        self._tpot = Histogram(
            "ridgeline_time_per_output_token_seconds",
            "(last - first) / (n - 1) of the n tokens of an output.",
            buckets=_NEXT,
            registry=registry,
        )

    def answered(self, result: Result) -> None:
        """Count a finished output; a prompt counts once, with the first of its samples."""
        if result.sample == 0:
            self.prompt_answered(result.prompt_tokens, result.cached_tokens)
        self._ttft.observe(result.timings.ttft)
        if result.timings.tpot is not None:
            self._tpot.observe(result.timings.tpot)

    def prompt_answered(self, tokens: int, cached: int = 0) -> None:
        """Count the tokens of a prompt, and those of them that the cache had."""
        self._prompt.inc(tokens)
        self._cached.inc(cached)

    def text(self) -> bytes:
        """All figures in Prometheus's text format."""
        return generate_latest(self._registry)


class _EngineCollector:
    """An engine's status as metrics, taken when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        status = self._engine.status()
        yield from _gauges(status)
        if self._engine.speculation is not None:
            yield from _speculation(self._engine.speculation)
        for name, help, total in (
            ("ridgeline_preemptions", "Sequences that lost their blocks.", status.preemptions),
            ("ridgeline_output_tokens", "Tokens generated.", status.output_tokens),
            (
                "ridgeline_prompt_tokens_computed",
                "Prompt tokens computed, those of preempted requests again.",
                status.prompt_tokens,
            ),
        ):
            yield CounterMetricFamily(name, help, value=total)
        yield SummaryMetricFamily(
            "ridgeline_step_seconds",
            "Steps of the engine, scheduling and sampling included.",
            count_value=status.steps,
            sum_value=status.step_seconds,
        )


def _speculation(report: SpeculationReport) -> Iterator[Metric]:
    for name, help, total in (
        ("trials", "Proposals, each for one sequence in one step.", report.trials),
        ("proposed_tokens", "Tokens proposed.", report.proposed),
        ("judged_tokens", "Those of them that came after accepted ones alone.", report.judged),
        ("accepted_tokens", "Those of them that were accepted.", report.accepted),
        ("draft_seconds", "What steps waited for proposals.", report.draft_seconds),
    ):
        yield CounterMetricFamily(f"ridgeline_speculation_{name}", help, value=total)
    for name, help, value in (
        ("acceptance_ratio", "Accepted of the judged tokens.", report.acceptance),
        (
            "tokens_per_trial",
            "Mean accepted length, the target's own token included.",
            report.tokens_per_trial,
        ),
        ("gain_ratio", "Speed over that of plain steps, measured.", report.measured_gain),
        ("predicted_gain_ratio", "The same from acceptance and costs.", report.predicted_gain),
    ):
        if value is not None:
            yield GaugeMetricFamily(f"ridgeline_speculation_{name}", help, value=value)


def _gauges(status: Status) -> Iterator[Metric]:
    for name, help, value in (
        ("ridgeline_running_sequences", "Sequences in the batch.", status.running),
        ("ridgeline_waiting_requests", "Requests and samples that wait for a place.", status.waiting),
        ("ridgeline_cache_blocks", "Blocks of the key/value cache.", status.blocks),
        ("ridgeline_cache_blocks_used", "Blocks that running sequences hold.", status.blocks_used),
    ):
        yield GaugeMetricFamily(name, help, value=value)
