import gc
import tomllib
from dataclasses import replace

import pytest
import torch

from ridgeline.errors import InputError
from ridgeline.hardware import load_device, save_device
from ridgeline.hardware.device import Provenance
from ridgeline.hardware.kernels import Kernels
from ridgeline.hardware.measure import DTYPES, Plan, measure
from ridgeline.hardware.timing import Schedule

#: Large enough to have every figure, and no larger.
TINY = Plan(
    schedule=Schedule(rounds=2, seconds=0.1, calls=1),
    rows=(1, 4),
    widths=(32, 64),
    squares=(64, 128),
    attend_rows=(4, 16),
    attend_keys=256,
    storage_bytes=8 << 20,
)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def found(told, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIDGELINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return measure(1, lambda what, share: told.append((what, share)), plan=TINY)


def test_every_figure_is_found_and_says_that_it_was_measured(found):
    device = found.device
    assert set(DTYPES) <= device.matrix.keys() == device.vector.keys()
    assert device.levels[-1].name == "memory"
    assert set(device.provenance.values()) == {Provenance.MEASURED}
    assert "1 thread" in device.source
    assert torch.__version__ in device.source


def test_the_kernels_are_those_of_the_plan(found):
    kernels = Kernels.from_dict(found.device.kernels)
    assert kernels.reading == "cpu"
    assert kernels.step > 0
    for dtype in DTYPES:
        assert kernels.linear[dtype].rows == TINY.rows
        assert kernels.attend[dtype].rows == TINY.attend_rows
        assert {
            "norm",
            "activation",
            "residual",
            "rotate",
            "append",
            "add",
            "embed",
            "gather",
            "split",
        } <= set(kernels.simple[dtype])


def test_every_figure_has_a_spread(found):
    assert {
        "matrix.fp32",
        "levels.memory",
        "kernels.linear.bf16.fresh",
        "kernels.step",
    } <= found.spreads.keys()
    assert all(spread >= 0 for spread in found.spreads.values())
    assert found.seconds > 0


def test_a_measured_device_is_the_same_after_it_was_stored(found, tmp_path):
    save_device(found.device, tmp_path / "this-machine.toml")
    loaded = load_device(tmp_path / "this-machine.toml")
    assert Kernels.from_dict(loaded.kernels) == Kernels.from_dict(found.device.kernels)
    assert replace(loaded, kernels={"stored": 1}) == replace(found.device, kernels={"stored": 1})
    assert "kernels" in tomllib.loads((tmp_path / "this-machine.toml").read_text())


def test_progress_grows_to_the_end(told, found):
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(what, share):
        raise KeyboardInterrupt

    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path))
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        measure(threads + 1, interrupt, plan=TINY)
    assert torch.get_num_threads() == threads
    assert gc.isenabled()
    assert not torch.is_inference_mode_enabled()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threads", [0, -2])
def test_it_takes_at_least_one_thread(threads):
    with pytest.raises(InputError, match="threads must be at least 1"):
        measure(threads)


def test_what_takes_too_long_is_left_out_but_for_two_sizes():
    plan = Plan(rows=(1, 4, 16, 64), widths=(1000,), longest_call=0.1)
    assert plan.within(1e12).rows == (1, 4, 16, 64)
    assert plan.within(1e12 / 1e3 / 3).rows == (1, 4, 16)
    assert plan.within(1.0).rows == (1, 4)
    assert plan.within(1.0).widths == plan.widths
    assert len(plan.within(1.0).squares) == len(plan.within(1.0).attend_rows) == 2
