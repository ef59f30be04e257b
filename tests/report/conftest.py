"""Explanations as `explain` makes them, and checks as `check` would, without running a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ridgeline.analysis.check import Check, OperatorCheck, PhaseCheck
from ridgeline.analysis.explain import explain
from ridgeline.analysis.explanation import Explanation, Phase
from ridgeline.hardware import Device, Level, Provenance, load_device
from ridgeline.hardware.kernels import Affine, AttendCurve, EngineTimes, Kernels, LinearTable


@pytest.fixture(scope="session")
def checked() -> Callable[..., Check]:
    """Makes a check in which everything took ``slower`` times its predicted time."""

    def make(explanation: Explanation, slower: float = 1.25) -> Check:
        phases = tuple(_checked_phase(phase, slower) for phase in explanation.phases)
        return Check(explanation.model, explanation.device, "2026-01-12", phases)

    return make


def _checked_phase(phase: Phase, slower: float) -> PhaseCheck:
    operators: dict[int, OperatorCheck] = {}
    for k in phase.kernels:
        before = operators.get(k.op_index, OperatorCheck(k.op, k.op_kind, k.repeat, 0.0, 0.0))
        predicted = before.predicted + k.seconds * k.repeat
        operators[k.op_index] = replace(before, predicted=predicted, measured=predicted * slower)
    return PhaseCheck(
        name=phase.name,
        rows=phase.tokens,
        context=phase.context,
        predicted=phase.seconds,
        measured=phase.seconds * slower,
        spread=0.05,
        operators=tuple(operators.values()),
    )


@pytest.fixture(scope="session")
def cpu() -> Device:
    """A machine with a cache level of known bandwidth."""
    device = load_device("generic-cpu")
    return replace(device, levels=(Level("L3", 32e6, 4e11), device.levels[-1]))


@pytest.fixture(scope="session")
def measured_cpu(cpu: Device) -> Device:
    """The machine as `ridgeline measure` would leave it: its kernels' times are known."""
    kinds = ("embed", "norm", "split", "rotate", "append", "activation", "residual", "add", "gather")
    simple = {kind: Affine(overhead=2e-6, throughput=2e10) for kind in kinds}
    linear = LinearTable(
        rows=(1, 512),
        weight_bytes=(1e5, 1e8),
        warm=((4e-6, 1.5e-3), (3e-4, 0.2)),
        fresh=((6e-6, 2e-3), (3e-4, 0.2)),
    )
    attend = AttendCurve(5e-6, 5e-6, 3e10, 2e10, row_rate=1e11, rows=(2, 512), flops_per_second=(5e9, 2e11))
    kernels = Kernels(
        reading="cpu",
        isa="avx2",
        threads=2,
        step=5e-5,
        linear={"bf16": linear, "int8": linear},
        attend={"bf16": attend, "fp32": attend},
        simple={"fp32": simple},
        engine=EngineTimes(1e-4, 1e-5, 1e-9),
    )
    return replace(
        cpu,
        kernels=kernels.to_dict(),
        provenance={**cpu.provenance, "kernels": Provenance.MEASURED},
    )


@pytest.fixture(scope="session")
def decoder(cpu: Device) -> Explanation:
    return explain("smollm2-135m", cpu, prompt=512, output=128)


@pytest.fixture(scope="session")
def encoder(cpu: Device) -> Explanation:
    return explain("bert-base", cpu, prompt=128)
