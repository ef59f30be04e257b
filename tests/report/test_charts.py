"""The charts show every operator, all of the time, and all of the memory."""

from __future__ import annotations

from dataclasses import replace
from math import isclose

import pytest

from ridgeline.analysis.explain import explain
from ridgeline.hardware import load_device
from ridgeline.report.charts import memory_by_use, signed_errors, time_by_class
from ridgeline.report.joined import join
from ridgeline.report.roofline import roofline


def points(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_every_operator_that_computes_is_a_point_predicted_and_measured(decoder, cpu, checked):
    phases = join(decoder, checked(decoder))
    figure = roofline(cpu, "bf16", phases)
    for joined in phases:
        names = [o.name for o in joined.operators if o.computes]
        assert {o.name for o in joined.operators if not o.computes} == {"embedding", "take_rows"}
        for reading in ("predicted", "measured"):
            drawn = points(figure, f"{joined.phase.name}, {reading}")
            assert list(drawn.customdata) == names


def test_a_point_lies_at_its_intensity_and_rate(decoder, cpu, checked):
    (prefill, _) = phases = join(decoder, checked(decoder, slower=2.0))
    figure = roofline(cpu, "bf16", phases)
    predicted, measured = (points(figure, f"prefill, {r}") for r in ("predicted", "measured"))
    operators = [o for o in prefill.operators if o.computes]
    for o, x, y, half in zip(operators, predicted.x, predicted.y, measured.y, strict=True):
        assert isclose(x, o.flops / o.bytes)
        assert isclose(y, o.flops / o.predicted)
        assert isclose(half, y / 2)


def test_predicted_points_are_hollow_and_a_class_keeps_its_symbol(decoder, cpu, checked):
    phases = join(decoder, checked(decoder))
    figure = roofline(cpu, "bf16", phases)
    for joined in phases:
        hollow = points(figure, f"{joined.phase.name}, predicted").marker.symbol
        filled = points(figure, f"{joined.phase.name}, measured").marker.symbol
        assert [s.removesuffix("-open") for s in hollow] == list(filled)
        assert all(s.endswith("-open") for s in hollow)


def test_on_a_datasheet_every_point_is_below_the_roofs_and_inside_the_chart():
    device = load_device("h100-sxm")
    phases = join(explain("llama-3-8b", device, prompt=2048, batch=8), None)
    figure = roofline(device, "bf16", phases)
    top = device.matrix_rate("bf16") + device.vector_rate("bf16")  # units of both kinds work at once
    for joined in phases:
        drawn = points(figure, f"{joined.phase.name}, predicted")
        for x, y in zip(drawn.x, drawn.y, strict=True):
            assert y <= min(top, x * device.bandwidth) * 1.0001
            assert 10 ** figure.layout.xaxis.range[0] < x < 10 ** figure.layout.xaxis.range[1]
            assert 10 ** figure.layout.yaxis.range[0] < y < 10 ** figure.layout.yaxis.range[1]


def test_the_bars_of_a_phase_add_up_to_its_time(decoder, checked):
    for joined in join(decoder, checked(decoder)):
        figure = time_by_class(joined)
        predicted, measured = (sum(trace.x[bar] for trace in figure.data) for bar in (0, 1))
        assert predicted == pytest.approx(joined.phase.seconds)
        assert measured == pytest.approx(joined.check.measured)


def test_time_that_no_operator_takes_is_shown_as_such(decoder, checked):
    found = checked(decoder)
    late = replace(found, phases=tuple(replace(p, measured=2 * p.measured) for p in found.phases))
    (prefill, _) = join(decoder, late)
    rest = time_by_class(prefill).data[-1]
    assert rest.text[1] == "between operators 50 %"
    assert rest.x[1] == pytest.approx(prefill.check.measured / 2)


def test_memory_fills_the_device(decoder):
    whole = [t.x[0] for t in memory_by_use(decoder.memory).data if t.y[0] == "device"]
    assert sum(whole) == pytest.approx(decoder.memory.device)


def test_memory_beyond_the_device_shows_its_capacity():
    memory = explain("llama-3-8b", "rtx-4060", prompt=512).memory
    figure = memory_by_use(memory)
    assert not memory.fits
    assert [a.text for a in figure.layout.annotations] == ["capacity 8.00 GB"]
    assert figure.layout.shapes[0].x0 == memory.device


def test_an_error_beyond_the_axis_is_cut_but_said(decoder, checked):
    phase = checked(decoder, slower=0.1).phases[0]
    (bars,) = signed_errors(phase).data
    assert set(bars.x) == {1.0}
    assert set(bars.text) == {"+900 %"}
    assert len(bars.x) == 1 + len(phase.operators)
