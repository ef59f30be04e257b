"""This machine, as if it had been measured with the kernels that run."""

from dataclasses import replace

import pytest

from ridgeline import kernels
from ridgeline.hardware import Provenance, load_device, save_device, this_machine_file
from ridgeline.hardware.kernels import Affine, AttendCurve, EngineTimes, Kernels, LinearTable

KINDS = ("norm", "activation", "residual", "rotate", "append", "add", "embed", "gather", "split")


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Stores made-up tables for fp32 weights, changed by the options: measured(**changes)."""
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path))

    def store(**changes):
        tables = Kernels(
            reading="cpu",
            isa=kernels.isa(),
            threads=kernels.threads(),
            step=1e-4,
            linear={"fp32": LinearTable((1, 64), (1e4, 1e6), ((1e-6, 1e-5),) * 2, ((2e-6, 2e-5),) * 2)},
            attend={"fp32": AttendCurve(1e-5, 1e-5, 1e10, 1e10, 1e11, (16, 64), (1e9, 2e9))},
            simple={"fp32": {kind: Affine(1e-6, 1e10) for kind in KINDS}},
            engine=EngineTimes(1e-4, 1e-5, 1e-9),
        )
        cpu = load_device("generic-cpu")
        basis = {**cpu.provenance, "kernels": Provenance.MEASURED}
        save_device(
            replace(cpu, kernels=replace(tables, **changes).to_dict(), provenance=basis), this_machine_file()
        )

    return store
