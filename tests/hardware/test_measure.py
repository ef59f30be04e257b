import gc
import tomllib
from dataclasses import replace

import pytest
import torch

from ridgeline.errors import InputError
from ridgeline.hardware import load_device, save_device
from ridgeline.hardware.device import Provenance
from ridgeline.hardware.host import usable_cpus
from ridgeline.hardware.kernels import Kernels
from ridgeline.hardware.measure import Plan, measure
from ridgeline.hardware.probes.epilogues import ACTIVATIONS
from ridgeline.hardware.timing import Schedule
from ridgeline.kernels import isa
from ridgeline.kernels.linear import FORMATS

#: Large enough to have every figure, and no larger.
TINY = Plan(
    schedule=Schedule(rounds=2, seconds=0.1, calls=1),
    formats=("fp32", "bf16", "int8"),
    rare_formats=("int4-g32",),
    rows=(1, 4),
    widths=(32, 64),
    few_widths=(64, 128),
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
    assert device.matrix.keys() == {"fp32", "bf16", "int8"}
    assert device.vector.keys() == {"fp32", "bf16"}
    assert device.levels[-1].name == "memory"
    assert set(device.provenance.values()) == {Provenance.MEASURED}
    assert "1 thread" in device.source
    assert torch.__version__ in device.source


def test_the_kernels_are_those_of_the_plan(found):
    kernels = Kernels.from_dict(found.device.kernels)
    assert (kernels.reading, kernels.isa) == ("cpu", isa())
    assert kernels.step > 0
    assert kernels.engine.step > 0
    assert kernels.memory > 0
    assert {format: len(table.weight_bytes) for format, table in kernels.linear.items()} == {
        **dict.fromkeys(TINY.formats, len(TINY.widths)),
        **dict.fromkeys(TINY.rare_formats, len(TINY.few_widths)),
    }
    for table in kernels.linear.values():
        assert table.rows == TINY.rows
    assert kernels.attend.keys() == {"fp32", "bf16", "int8"}
    assert all(curve.rows == TINY.attend_rows for curve in kernels.attend.values())
    assert kernels.simple.keys() == {"fp32"}
    assert kernels.simple["fp32"].keys() == {
        *("embed", "embed.packed", "norm", "norm.layer", "norm.modulated", "add", "activation", "gather"),
        *(f"epilogue.{name}" for name in ("residual", *ACTIVATIONS)),
    }


def test_every_format_that_a_model_can_be_packed_in_is_measured():
    assert {*Plan().formats, *Plan().rare_formats} == FORMATS.keys()


def test_every_figure_has_a_spread(found):
    assert {
        "matrix.fp32",
        "levels.memory",
        "kernels.linear.bf16.fresh",
        "kernels.step.python",
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
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            measure(1, interrupt, plan=TINY)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert gc.isenabled()
    assert not torch.is_inference_mode_enabled()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threads", [0, -2])
def test_it_takes_at_least_one_thread(threads):
    with pytest.raises(InputError, match="threads must be at least 1"):
        measure(threads)


def test_it_takes_no_more_threads_than_there_are_processors():
    usable = len(usable_cpus())
    with pytest.raises(InputError, match=rf"at most {usable}\b.* not {usable + 1}"):
        measure(usable + 1)


def test_what_takes_too_long_is_left_out_but_for_two_sizes():
    plan = Plan(rows=(1, 4, 16, 64), widths=(1000,), longest_call=0.1)
    assert plan.within(1e12).rows == (1, 4, 16, 64)
    assert plan.within(1e12 / 1e3 / 3).rows == (1, 4, 16)
    assert plan.within(1.0).rows == (1, 4)
    assert plan.within(1.0).widths == plan.widths
    assert len(plan.within(1.0).squares) == len(plan.within(1.0).attend_rows) == 2
