"""measure --device cuda on a simulated GPU: what is timed, what comes out, and what is said when it cannot
be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.hardware import simulated_gpu as simulated  # isort: skip  (it chooses the interpreter first)

import torch

from ridgeline.analysis.calibrate import calibrate
from ridgeline.errors import InputError
from ridgeline.hardware import Provenance, load_device, save_device
from ridgeline.hardware.gpu.measure import measure_gpu
from ridgeline.hardware.gpu.names import CATALOGUE, device_of, known_device
from ridgeline.hardware.gpu.plan import GpuPlan, spread
from ridgeline.hardware.gpu.points import write_points
from ridgeline.hardware.gpu.products import PACKED, random_linear
from ridgeline.hardware.gpu.steps import FEW_LAYERS, read_issue
from ridgeline.hardware.gpu_kernels import COLUMNS, GpuKernels
from ridgeline.hardware.measure import measure
from ridgeline.kernels.triton import gpu_linear
from ridgeline.loading import FORMATS
from ridgeline.ops.formats import get_format
from ridgeline.predict.tiers import Tier, tier_of, tiers_of
from tests.hardware.simulated_gpu import (
    BANDWIDTH,
    ENGINE,
    FACTS,
    GAP,
    ISSUES,
    LAUNCH,
    REPLAY,
    STEP,
    ComputedStopwatch,
)

patched_once_a_launch = simulated.patched_once_a_launch


#: One or two sizes of everything, and no larger.
TINY = GpuPlan(
    rows=(1, 20),
    weights=((64, 48), (96, 64)),
    quantised_rows=(1, 20),
    quantised_weights=((128, 128),),
    rare_rows=(1,),
    rare_weights=((160, 128),),
    heads=((4, 2, 16),),
    decode_keys=(40,),
    decode_sequences=(1, 2),
    prompts=((20, 0), (9, 30)),
    encodes=((20, 2),),
    element_rows=(1, 5),
    widths=(96, 192),
    vocabularies=(64,),
    copied=1 << 12,
)


@pytest.fixture(scope="module")
def found():
    return measure_gpu(stopwatch=ComputedStopwatch())


@pytest.fixture(scope="module")
def kernels(found):
    return GpuKernels.from_dict(found.device.kernels)


def test_every_work_runs_on_the_kernels():
    """Made and called, in the interpreter."""
    one = {"weights": ((96, 64),), "element_rows": (5,), "widths": (96,), "prompts": ((9, 30),)}
    one["caches"] = ("bf16", "int8", "fp8")
    plan = replace(TINY, **one, formats=("int8",), rare_formats=("int4-g32-zp",), decode_sequences=(2,))
    small = measure_gpu(stopwatch=ComputedStopwatch(runs=True), plan=plan)
    assert small.failed == {}
    assert small.left_out == 0
    tables = GpuKernels.from_dict(small.device.kernels).tables
    assert {name.partition(".")[0] for name in tables} == COLUMNS.keys()


def test_the_figures_are_those_of_the_gpu(kernels):
    assert kernels.gap == GAP
    assert kernels.launch == LAUNCH
    assert kernels.replay == pytest.approx(REPLAY)
    assert kernels.step == pytest.approx(STEP)
    assert kernels.issue == pytest.approx(ISSUES)
    assert kernels.bandwidth == pytest.approx(BANDWIDTH)
    assert (kernels.engine.step, kernels.engine.sequence, kernels.engine.logit) == pytest.approx(ENGINE)
    assert (kernels.reading, kernels.gpu, kernels.driver) == ("gpu", FACTS.name, FACTS.driver)


def test_it_starts_from_the_catalogue_and_says_what_is_measured(found):
    catalogue, device = load_device("h200"), found.device
    assert (device.matrix, device.levels, device.title) == (
        catalogue.matrix, catalogue.levels, catalogue.title,
    )  # fmt: skip
    assert device.provenance["matrix"] is Provenance.DATASHEET
    assert device.provenance["kernels"] is Provenance.MEASURED
    assert device.provenance["calibration"] is Provenance.CALIBRATED
    assert tiers_of(device) == tuple(Tier)
    assert tier_of(device) is Tier.MEASURED
    for part in ("NVIDIA H200", "driver 575.1", torch.__version__, "h200"):
        assert part in device.source


def test_every_format_that_a_model_can_have_on_a_gpu_is_measured(kernels):
    quantised = {f"linear.{name}" for name in FORMATS if get_format(name).is_quantised}
    assert quantised < kernels.tables.keys()


def test_what_is_stored_is_what_was_found(found, tmp_path):
    save_device(found.device, tmp_path / "gpu.toml")
    assert load_device(tmp_path / "gpu.toml") == found.device


def test_its_points_calibrate_the_same_constants(found, tmp_path):
    path = tmp_path / "points.csv"
    write_points(path, list(found.points), found.facts)
    again = calibrate("h200", [path], most=64).device.calibration
    assert again.keys() == found.device.calibration.keys() == {"gemm", "elementwise", "attention"}
    for kind, constants in found.device.calibration.items():
        assert again[kind] == pytest.approx(constants, rel=0.02)
    header, line = path.read_text().splitlines()[:2]
    assert header.endswith("time_us,device,driver,cuda,torch,triton,date")
    assert "NVIDIA H200,575.1,13.0" in line


def test_what_there_is_no_time_for_is_left_out_the_finest_steps_last():
    plan = replace(TINY, seconds=0.5, rows=tuple(range(1, 60)))
    stopwatch = ComputedStopwatch(costs=0.01)
    found = measure_gpu(stopwatch=stopwatch, plan=plan)
    assert found.left_out > 50
    assert found.measured + found.left_out == len(stopwatch.timed) + found.left_out
    assert stopwatch.clock() <= plan.seconds + 0.02
    table = GpuKernels.from_dict(found.device.kernels).tables["linear.bf16"]
    assert {1, 59} <= {point[0] for point in table.points}  # the ends came before what lies between


def test_a_kernel_that_does_not_run_leaves_a_gap_and_says_why():
    found = measure_gpu(stopwatch=ComputedStopwatch(broken={"linear.int8"}), plan=TINY)
    assert found.failed == {"linear.int8": "(1, 128, 128): out of shared memory"}
    assert "linear.int8" not in found.device.kernels["tables"]


def test_a_figure_that_is_needed_is_named():
    with pytest.raises(InputError, match=r"bandwidth\.read could not be measured: out of shared memory"):
        measure_gpu(stopwatch=ComputedStopwatch(broken={"bandwidth.read"}), plan=TINY)


def test_progress_grows_to_the_end():
    told = []
    measure_gpu(lambda what, share: told.append(share), stopwatch=ComputedStopwatch(), plan=TINY)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


def test_host_times_are_scaled_to_those_of_a_layer():
    """A pass does more between its operators than calling them."""
    seconds = {(f"issue.{kind}", ()): s for kind, s in ISSUES.items()}
    alone = 2 * ISSUES["norm"] + 4 * ISSUES["linear"] + ISSUES["attend"] + ISSUES["activation"]
    layer = 1.5 * (alone + 2 * ISSUES["add"])
    seconds |= {("step.eager", (FEW_LAYERS,)): 1e-3 + layer, ("step.eager", (9,)): 1e-3 + 9 * layer}
    issue, _ = read_issue(seconds)
    assert issue == pytest.approx({kind: 1.5 * s for kind, s in ISSUES.items()})


@pytest.mark.parametrize("format", ["int8", "int4-g32-zp", "int4-g128"])
def test_a_random_weight_repeats_few_outputs(format):
    packed = random_linear(format, 2 * PACKED + 10, 256, torch.device("cpu"))
    weight = packed.unpack()
    assert weight.shape == (2 * PACKED + 10, 256)
    assert torch.equal(weight[PACKED : 2 * PACKED], weight[:PACKED])
    assert torch.equal(weight[2 * PACKED :], weight[:10])
    whole = gpu_linear(weight, format, device="cpu")
    assert (whole.data.shape, whole.scales.shape) == (packed.data.shape, packed.scales.shape)


def test_a_gpu_that_no_catalogue_has_is_what_its_driver_says():
    facts = replace(FACTS, name="NVIDIA H200 MIG 3g.71gb", units=60)
    assert known_device(facts) is None
    device = device_of(facts, matrix=3e14, bandwidth=2e12)
    assert (device.units, device.memory_bytes, device.bandwidth) == (60, 141e9, 2e12)
    assert device.provenance["vector"] is Provenance.ASSUMED
    found = measure_gpu(stopwatch=ComputedStopwatch(facts=facts), plan=TINY).device
    assert tier_of(found) is Tier.MEASURED
    assert found.title == facts.name


def test_a_part_of_a_known_gpu_is_not_that_gpu():
    assert known_device(FACTS).name == "h200"
    assert known_device(replace(FACTS, units=66)) is None


def test_every_name_leads_into_the_catalogue():
    for name in CATALOGUE.values():
        assert load_device(name).kind == "gpu"


@pytest.mark.parametrize("items", [[], [1], list("abcdefg")])
def test_another_order_has_the_same_items(items):
    assert sorted(spread(items)) == items


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", ""])
def test_other_devices_are_named(device):
    with pytest.raises(InputError, match="choose one of: cpu, cuda"):
        measure(device=device)


def test_threads_are_the_cpus():
    with pytest.raises(InputError, match="leave them out"):
        measure(2, device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(InputError, match=r"is no GPU|sees 0"):
        measure(device="cuda")
    with pytest.raises(InputError, match="there is no GPU 1: PyTorch sees 0"):
        measure(device="cuda:1")
