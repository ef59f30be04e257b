"""The trace file: fields of the Trace Event Format, and events that nest."""

import io
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.analysis.timeline import Load, OperatorRun, Phase, ProfiledStep, RequestTimeline, Timeline
from ridgeline.engine.steps import StepReport
from ridgeline.report.chrome_trace import ENGINE, REQUESTS, STEPS, trace_events, write_chrome_trace

STEP = StepReport(
    kind="decode",
    started=100.25,
    scheduling=0.0001,
    running=0.02,
    sampling=0.0003,
    rows=2,
    sequences=2,
    prefill_rows=0,
    decode_rows=2,
    context=50,
    flops=4e9,
    bytes=1e9,
    predicted=0.018,
    bound="memory",
    bound_share=0.8,
)
FIRST = OperatorRun("embedding", "embed", None, 100.3, 0.001, 0.0, 1e3, None, None)
SECOND = OperatorRun("attention.qkv", "linear", 3, 100.301, 0.002, 1e6, 1e6, 0.0015, "memory")
TIMELINE = Timeline(
    model="tiny",
    weight_format="bf16",
    blocks=10,
    requests=(
        RequestTimeline(20, 5, (Phase("queued", 100.0, 100.25), Phase("decode", 100.25, 100.4))),
        RequestTimeline(30, 6, (Phase("queued", 100.1, 100.25), Phase("prefill", 100.25, 100.5))),
    ),
    steps=(STEP,),
    profiled=(ProfiledStep(0, 100.3, 100.304, (FIRST, SECOND)),),
    loads=(Load(100.25, 4, 0, 2), Load(100.4, 0, 0, 0)),
)


def named(events, name):
    return [event for event in events if event["name"] == name]


def test_every_event_has_the_fields_of_its_kind():
    for event in trace_events(TIMELINE):
        assert isinstance(event["name"], str)
        assert {"pid", "tid", "args"} <= event.keys()
        match event["ph"]:
            case "M":
                assert event["name"] in (
                    *("process_name", "process_sort_index", "thread_name", "thread_sort_index"),
                )
                assert event["args"].keys() <= {"name", "sort_index"}
            case "X":
                assert event["ts"] >= 0
                assert event["dur"] >= 0
                assert event["cat"]
            case "C":
                assert event["ts"] >= 0
                assert all(isinstance(value, int) for value in event["args"].values())
            case other:
                raise AssertionError(other)


def test_times_are_microseconds_from_the_first_arrival():
    [step] = named(trace_events(TIMELINE), "decode")[1:]
    assert step["cat"] == "step"
    assert step["ts"] == 250_000
    assert step["dur"] == pytest.approx(20_400)


def test_groups_and_tracks_have_names():
    events = trace_events(TIMELINE)
    processes = {e["pid"]: e["args"]["name"] for e in named(events, "process_name")}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in named(events, "thread_name")}
    assert processes == {ENGINE: "engine: tiny", REQUESTS: "requests"}
    assert threads == {
        (ENGINE, STEPS): "steps",
        (ENGINE, STEPS + 1): "decode, operator by operator",
        (REQUESTS, 1): "request 1: 20 + 5 tokens",
        (REQUESTS, 2): "request 2: 30 + 6 tokens",
    }
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"} == threads.keys()


def test_achieved_and_predicted_stand_beside_each_other():
    events = trace_events(TIMELINE)
    [step] = [event for event in events if event.get("cat") == "step"]
    assert (step["args"]["achieved_us"], step["args"]["predicted_us"]) == pytest.approx((20_000, 18_000))
    assert step["args"]["gflop_per_s"] == pytest.approx(200)
    assert step["args"]["flop_per_byte"] == pytest.approx(4)
    [qkv] = named(events, "attention.qkv")
    assert (qkv["args"]["achieved_us"], qkv["args"]["predicted_us"]) == pytest.approx((2000, 1500))
    assert (qkv["args"]["layer"], qkv["args"]["bound"]) == (3, "memory")


def test_counters_follow_cache_and_batch():
    events = [event for event in trace_events(TIMELINE) if event["ph"] == "C"]
    assert [e["args"] for e in named(events, "cache blocks")] == [
        {"in use": 4, "free": 6},
        {"in use": 0, "free": 10},
    ]
    assert [e["args"] for e in named(events, "rows of the step")] == [
        {"prefill": 0, "decode": 2},
        {"prefill": 0, "decode": 0},
    ]


def end(event):
    return round(event["ts"] + event["dur"], 3)


def assert_nested(events):
    """On each track an event ends before the next begins, or holds all of it."""
    tracks = {}
    for event in events:
        if event["ph"] == "X":
            tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    for found in tracks.values():
        open_ends = []
        for event in sorted(found, key=lambda e: (e["ts"], -e["dur"])):
            while open_ends and open_ends[-1] <= event["ts"]:
                open_ends.pop()
            assert not open_ends or end(event) <= open_ends[-1]
            open_ends.append(end(event))


def depths(events, category):
    """How many events of the category lie in one of the category ``step`` or ``profile``."""
    outer = [e for e in events if e.get("cat") in ("step", "profile")]
    inner = [e for e in events if e.get("cat") == category]
    return [sum(o["ts"] <= e["ts"] and end(e) <= end(o) for o in outer) for e in inner]


seconds = st.floats(1e-7, 0.5)


@given(
    st.floats(0, 1e6),
    st.lists(st.tuples(seconds, seconds, seconds, seconds), min_size=1, max_size=6),
    st.lists(seconds, max_size=5),
)
def test_events_nest_wherever_they_begin(start, parts, operators):
    steps, moment = [], start
    for scheduling, running, sampling, gap in parts:
        steps.append(replace(STEP, started=moment, scheduling=scheduling, running=running, sampling=sampling))
        moment += scheduling + running + sampling + gap
    runs, begin = [], moment
    for took in operators:
        runs.append(replace(SECOND, begin=begin, seconds=took))
        begin += took
    again = ProfiledStep(0, moment, begin, tuple(runs))
    request = RequestTimeline(1, 1, (Phase("queued", start, moment),))
    events = trace_events(
        replace(TIMELINE, requests=(request,), steps=tuple(steps), profiled=(again,), loads=())
    )
    assert_nested(events)
    assert depths(events, "part") == [1] * 3 * len(steps)
    assert depths(events, "operator") == [1] * len(runs)


def test_the_file_is_a_json_object_that_says_what_ran():
    stream = io.StringIO()
    write_chrome_trace(TIMELINE, stream)
    file = json.loads(stream.getvalue())
    assert file["traceEvents"] == trace_events(TIMELINE)
    assert file["displayTimeUnit"] == "ms"
    assert file["otherData"]["model"] == "tiny"
