"""Constants for an uncalibrated device come from others of its class, never from itself."""

from dataclasses import asdict, replace

import pytest

from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.predict.gpu.generic import CALIBRATED, constants_of, generic_constants, reach
from ridgeline.predict.gpu.kinds import MODULES, kind


def test_they_are_the_geometric_mean_of_the_others_of_the_class():
    """Beside shares of the clock, which an H100 exceeds that its matrix rates are quoted at."""
    found = generic_constants(load_device("a40"), "gemm")
    a100, h100 = (constants_of(load_device(name), "gemm") for name in ("a100-80gb", "h100-sxm"))
    for name, value in asdict(found).items():
        clock = 1.83 / 1.98 if name in ("matrix", "feed") else 1
        assert value == pytest.approx((getattr(a100, name) * getattr(h100, name) * clock) ** 0.5), name


def test_a_card_for_games_takes_those_of_its_class():
    assert generic_constants(load_device("rtx-3090"), "gemm").matrix == pytest.approx(
        constants_of(load_device("rtx-4090"), "gemm").matrix
    )
    assert generic_constants(load_device("b200"), "gemm").matrix < 1


def test_what_follows_the_clock_is_larger_where_the_clock_goes_higher():
    """An H200 has an H100's chip: 1.98 GHz, and matrix rates at 1.83."""
    h200, a10 = (generic_constants(load_device(name), "gemm") for name in ("h200", "a10"))
    assert h200.matrix / a10.matrix == pytest.approx(1.98 / 1.83)
    assert h200.memory == pytest.approx(a10.memory)
    assert reach(load_device("rtx-3060")) > 1 == reach(load_device("a100-80gb"))


@pytest.mark.parametrize("name", CALIBRATED)
def test_a_devices_own_constants_play_no_part_in_its_generic_ones(name):
    device = load_device(name)
    wild = {kind: dict.fromkeys(constants, 7.0) for kind, constants in device.calibration.items()}
    for kind_name in MODULES:
        assert generic_constants(replace(device, calibration=wild), kind_name) == generic_constants(
            device, kind_name
        )


def test_a_kind_that_no_device_is_calibrated_for_has_its_models_usual_constants(monkeypatch):
    monkeypatch.setattr("ridgeline.predict.gpu.generic._calibrated", lambda: ())
    assert generic_constants(load_device("a40"), "gemm") == kind("gemm").constants()


def test_constants_that_are_not_the_models_are_refused():
    device = load_device("a40")
    with pytest.raises(InputError, match=r"calibration.gemm of a40 lacks or misnames .*feed.*, speed"):
        constants_of(replace(device, calibration={"gemm": {"speed": 1.0}}), "gemm")
    with pytest.raises(InputError, match="h200 is not calibrated for gemm: run `ridgeline calibrate`"):
        constants_of(load_device("h200"), "gemm")


def test_a_file_from_before_there_were_generations_has_the_first():
    device = load_device("a40")
    older = {name: value for name, value in device.calibration["elementwise"].items() if name != "generation"}
    assert constants_of(replace(device, calibration={"elementwise": older}), "elementwise").generation == 1


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="unknown kind of kernel 'fft'; choose one of: gemm, elementwise"):
        kind("fft")
