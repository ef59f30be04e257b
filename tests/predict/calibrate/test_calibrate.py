"""Calibration on few points, judged by measured times of accelerators that nothing was fitted to."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ridgeline.errors import InputError
from ridgeline.hardware import Provenance, load_device
from ridgeline.predict.calibrate.calibrate import MOST, calibrate, errors, judge, shares
from ridgeline.predict.calibrate.choose import choose
from ridgeline.predict.gpu.kinds import MODULES, kind
from ridgeline.validation.profiles import PROFILED, judge_profiles, profiled_points

#: Those of Llama-2-7B's shapes, for which the errors are promised.
VIDUR = ("a100-80gb", "h100-sxm", "a40")


@pytest.fixture(scope="module")
def judged():
    return {(j.device, j.kind): j for j in judge_profiles()}


@pytest.fixture(scope="module")
def measured():
    return {name: profiled_points(name) for name in PROFILED}


@pytest.mark.parametrize("name", PROFILED)
def test_products_are_predicted_within_eight_per_cent(judged, name):
    found = judged[name, "gemm"]
    assert found.mean <= 0.08
    assert found.median <= 0.06


@pytest.mark.parametrize("name", VIDUR)
def test_without_calibration_the_others_constants_do(judged, name):
    assert judged[name, "gemm"].generic_mean <= 0.09


def test_a_card_for_games_is_foretold_by_those_for_data_centres(judged):
    """No other GeForce is calibrated, so an RTX 4090 without its own points takes theirs."""
    assert judged["rtx-4090", "gemm"].generic_mean <= 0.15


@pytest.mark.parametrize("name", PROFILED)
def test_most_element_wise_kernels_are_close(judged, name):
    assert judged[name, "elementwise"].close >= 0.85


@pytest.mark.parametrize("name", VIDUR)
def test_the_datasheet_alone_would_not_do(judged, name):
    """The negative control: the same rows and the same judgement, and no time model."""
    assert judged[name, "gemm"].datasheet_mean > 0.25
    assert judged[name, "elementwise"].datasheet_mean > 0.25


@pytest.mark.parametrize(("name", "generation"), [("a100-80gb", 1), ("a40", 1), ("rtx-4090", 2)])
def test_the_points_tell_the_generation_of_element_wise_kernels(measured, name, generation):
    """Vidur's profiles are of vLLM's scalar kernels, LLMServingSim's of its vectorised ones."""
    points = measured[name]["elementwise"]
    found = kind("elementwise").fit(load_device(name), points.take(choose(points, 12)))
    assert found.generation == generation


def test_no_accelerator_is_fitted_to_more_points_than_promised(judged):
    for name in PROFILED:
        assert sum(j.fitted_to for (device, _), j in judged.items() if device == name) <= MOST


@pytest.mark.parametrize("name", PROFILED)
def test_the_catalogues_constants_are_those_that_calibration_gives(measured, name):
    found = calibrate(load_device(name), measured[name], most=PROFILED[name].fitted_to)
    for fitted in found.kinds:
        stored = load_device(name).calibration[fitted.kind]
        assert stored == pytest.approx(asdict(fitted.constants), rel=2e-3), fitted.kind


@pytest.mark.parametrize("fold", range(4))
@pytest.mark.parametrize("name", VIDUR)
def test_unseen_shapes_are_predicted_as_well(measured, name, fold):
    """A quarter of the layers is held out whole: no point of their shapes is fitted to."""
    points, device = measured[name]["gemm"], load_device(name)
    shapes = sorted(set(zip(points["n"], points["k"], strict=True)))[fold::4]
    unseen = np.array([shape in shapes for shape in zip(points["n"], points["k"], strict=True)])
    seen = points.take(~unseen)
    constants = kind("gemm").fit(device, seen.take(choose(seen, 40)))
    assert errors(device, constants, points.take(unseen)).mean <= 0.1


@pytest.mark.parametrize("name", VIDUR)
def test_an_unknown_accelerator_takes_64_points(measured, name):
    """As if the catalogue knew nothing of it but its datasheet."""
    device = load_device(name)
    bare = {s: p for s, p in device.provenance.items() if s != "calibration"}
    device = replace(device, name="unknown", calibration={}, provenance=bare)
    found = calibrate(device, measured[name])
    assert found.device.provenance["calibration"] is Provenance.CALIBRATED
    assert sum(k.fitted.points for k in found.kinds) == 64
    by_kind = {k.kind: k for k in found.kinds}
    assert by_kind["gemm"].rest.mean <= 0.08
    assert by_kind["elementwise"].rest.close >= 0.85


def test_points_that_are_not_chosen_are_the_rest(measured):
    found = calibrate(load_device("a40"), measured["a40"], most=20)
    for fitted in found.kinds:
        assert fitted.fitted.points + fitted.rest.points == len(measured["a40"][fitted.kind])


def test_few_points_leave_nothing_to_judge_by(measured):
    few = {"gemm": measured["a40"]["gemm"].take(np.arange(0, 4000, 400))}
    (found,) = calibrate(load_device("a40"), few).kinds
    assert (found.fitted.points, found.rest) == (10, None)
    assert found.generic.points == 10


def test_other_kinds_keep_their_constants(measured):
    device = load_device("a40")
    found = calibrate(device, {"gemm": measured["a40"]["gemm"]}, most=8).device
    assert found.calibration["elementwise"] == device.calibration["elementwise"]
    assert found.calibration["gemm"] != device.calibration["gemm"]


def test_a_calibrated_device_is_judged_by_other_points(measured):
    points = measured["h100-sxm"]
    assert judge(load_device("h100-sxm"), points)["gemm"].mean < 0.08
    with pytest.raises(InputError, match="h200 is not calibrated for gemm"):
        judge(load_device("h200"), points)


def test_no_points_or_too_few_for_the_kinds_are_refused(measured):
    with pytest.raises(InputError, match="no points"):
        calibrate(load_device("a40"), {})
    with pytest.raises(InputError, match="1 points can't calibrate 2 kinds"):
        calibrate(load_device("a40"), measured["a40"], most=1)


@given(
    counts=st.dictionaries(st.sampled_from(sorted(MODULES)), st.integers(1, 200), min_size=1),
    more=st.integers(0, 99),
)
def test_shares_add_up_and_leave_none_out(counts, more):
    most = len(counts) + more
    given_ = shares(counts, most)
    assert sum(given_.values()) == min(most, sum(counts.values()))
    assert all(1 <= given_[name] <= counts[name] for name in counts)


def test_shares_are_as_kinds_ask():
    assert shares({"gemm": 4000, "elementwise": 2000}, 52) == {"gemm": 40, "elementwise": 12}
