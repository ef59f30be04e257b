"""Profiles of accelerators: every device and kind is judged, by points apart from those fitted to."""

from ridgeline.predict.gpu.generic import CALIBRATED
from ridgeline.validation.profiles import PROFILED, judge_profiles


def test_every_calibrated_device_is_judged_and_holds():
    found = judge_profiles()
    assert set(PROFILED) == set(CALIBRATED)
    assert {(j.device, j.kind) for j in found} == {(d, k) for d, p in PROFILED.items() for k in p.kinds}
    assert all(j.ok for j in found)


def test_a_miss_is_no_success(monkeypatch):
    strict = dict.fromkeys(("gemm", "attention", "collective"), 0.01)
    monkeypatch.setattr("ridgeline.validation.profiles.MOST_MEAN", strict)
    assert not any(j.ok for j in judge_profiles() if j.kind in strict)
