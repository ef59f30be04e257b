"""A timeline as a file for Perfetto (ui.perfetto.dev) and chrome://tracing.

The format is the Trace Event Format, as a JSON object: complete events (``X``) that nest by time on a track
(``pid``, ``tid``), counters (``C``) and the names of tracks (``M``); ``ts`` and ``dur`` are microseconds.
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from ridgeline import __version__
from ridgeline.analysis.timeline import Load, OperatorRun, ProfiledStep, RequestTimeline, Timeline
from ridgeline.engine.steps import StepReport

Event = dict[str, Any]

#: Processes and threads of the file, which are its groups and tracks.
ENGINE, REQUESTS = 1, 2
STEPS = 1


def write_chrome_trace(timeline: Timeline, stream: TextIO) -> None:
    """The whole file."""
    about = {"model": timeline.model, "weights": timeline.weight_format, "ridgeline": __version__}
    file = {"traceEvents": trace_events(timeline), "displayTimeUnit": "ms", "otherData": about}
    json.dump(file, stream, allow_nan=False)
    stream.write("\n")


def trace_events(timeline: Timeline) -> list[Event]:
    """All events, times counted from the first request's arrival."""
    axis = _Axis(min(request.phases[0].begin for request in timeline.requests))
    return [
        *_names(timeline),
        *(event for i, request in enumerate(timeline.requests) for event in _request(request, i + 1, axis)),
        *(event for i, step in enumerate(timeline.steps) for event in _step(step, i, axis)),
        *(event for i in range(len(timeline.profiled)) for event in _profiled(i, timeline, axis)),
        *(event for load in timeline.loads for event in _counters(load, timeline.blocks, axis)),
    ]


@dataclass(frozen=True)
class _Axis:
    """Places events in time, ``start`` being 0."""

    start: float

    def microseconds(self, moment: float) -> float:
        """To whole nanoseconds, which is what the format holds: ends that meet here meet there."""
        return round(1e6 * (moment - self.start), 3)

    def event(
        self, name: str, category: str, track: tuple[int, int], begin: float, end: float, **args: Any
    ) -> Event:
        ts = self.microseconds(begin)
        return {
            "name": name,
            "cat": category,
            "ph": "X",
            "ts": ts,
            "dur": round(self.microseconds(end) - ts, 3),
            "pid": track[0],
            "tid": track[1],
            "args": args,
        }


def _names(timeline: Timeline) -> Iterator[Event]:
    """What groups and tracks are called, and their order."""
    for place, (pid, name) in enumerate(((ENGINE, f"engine: {timeline.model}"), (REQUESTS, "requests"))):
        yield _name(pid, 0, "process_name", name=name)
        yield _name(pid, 0, "process_sort_index", sort_index=place)
    yield _name(ENGINE, STEPS, "thread_name", name="steps")
    for i, again in enumerate(timeline.profiled, STEPS + 1):
        yield _name(ENGINE, i, "thread_name", name=_again(again, timeline))
        yield _name(ENGINE, i, "thread_sort_index", sort_index=i)
    for i, request in enumerate(timeline.requests, 1):
        tokens = f"{request.prompt_tokens} + {request.output_tokens} tokens"
        yield _name(REQUESTS, i, "thread_name", name=f"request {i}: {tokens}")
        yield _name(REQUESTS, i, "thread_sort_index", sort_index=i)


def _name(pid: int, tid: int, kind: str, **args: Any) -> Event:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": args}


def _request(request: RequestTimeline, tid: int, axis: _Axis) -> Iterator[Event]:
    for phase in request.phases:
        yield axis.event(phase.state, "request", (REQUESTS, tid), phase.begin, phase.end)


def _step(step: StepReport, number: int, axis: _Axis) -> Iterator[Event]:
    """A step, and in it scheduling, the model's pass and sampling."""
    track = ENGINE, STEPS
    scheduled = step.started + step.scheduling
    computed = scheduled + step.running
    finished = step.started + step.seconds
    yield axis.event(step.kind, "step", track, step.started, finished, **_step_args(step, number))
    yield axis.event("schedule", "part", track, step.started, scheduled)
    yield axis.event("run the model", "part", track, scheduled, computed)
    yield axis.event("sample", "part", track, computed, finished)


def _step_args(step: StepReport, number: int) -> Mapping[str, Any]:
    return {
        "step": number,
        "rows": step.rows,
        "sequences": step.sequences,
        "prefill_rows": step.prefill_rows,
        "decode_rows": step.decode_rows,
        "verify_rows": step.verify_rows,
        "context": step.context,
        **_work(step.flops, step.bytes, step.running, step.predicted),
        "bound": step.bound,
        "bound_share": step.bound_share,
    }


def _work(flops: float, nbytes: float, achieved: float, predicted: float | None) -> Mapping[str, Any]:
    """Work and time, achieved and predicted side by side, and what follows from them."""
    return {
        "achieved_us": 1e6 * achieved,
        "predicted_us": None if predicted is None else 1e6 * predicted,
        "flops": flops,
        "bytes": nbytes,
        "flop_per_byte": flops / nbytes if nbytes else None,
        "gflop_per_s": 1e-9 * flops / achieved if achieved else None,
        "gb_per_s": 1e-9 * nbytes / achieved if achieved else None,
    }


def _profiled(number: int, timeline: Timeline, axis: _Axis) -> Iterator[Event]:
    """A step's second run, and in it its operators, on a track of its own below the steps."""
    again = timeline.profiled[number]
    track, args = (ENGINE, STEPS + 1 + number), _step_args(timeline.steps[again.step], again.step)
    yield axis.event(_again(again, timeline), "profile", track, again.begin, again.end, **args)
    for run in again.operators:
        end = min(run.begin + run.seconds, again.end)
        yield axis.event(run.name, "operator", track, run.begin, end, **_operator_args(run))


def _again(again: ProfiledStep, timeline: Timeline) -> str:
    """What a second run is called."""
    return f"{timeline.steps[again.step].kind}, operator by operator"


def _operator_args(run: OperatorRun) -> Mapping[str, Any]:
    layer = {} if run.layer is None else {"layer": run.layer}
    work = _work(run.flops, run.bytes, run.seconds, run.predicted)
    return {"kind": run.kind, **layer, **work, "bound": run.bound}


def _counters(load: Load, blocks: int, axis: _Axis) -> Iterator[Event]:
    ts = axis.microseconds(load.moment)
    for name, args in (
        ("cache blocks", {"in use": load.blocks, "free": blocks - load.blocks}),
        ("rows of the step", {"prefill": load.prefill_rows, "decode": load.decode_rows}),
    ):
        yield {"name": name, "ph": "C", "ts": ts, "pid": ENGINE, "tid": 0, "args": args}
