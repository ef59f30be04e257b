"""A GPU that computes how long its kernels take: by the time models, with constants that only it knows."""

from __future__ import annotations

from dataclasses import replace

from tests import gpu as shared  # isort: skip  (it skips the module where there is no Triton)

import torch

from ridgeline.hardware import Provenance, load_device
from ridgeline.hardware.gpu import steps
from ridgeline.hardware.gpu.rows import ALONE, WHOLE
from ridgeline.hardware.gpu.work import GpuFacts
from ridgeline.hardware.timing import Timing
from ridgeline.predict.gpu.kernels import GpuTimes
from ridgeline.predict.gpu.measured import ISSUE, kernel_at, place_of
from ridgeline.predict.gpu.schedule import exposed, runs_as_graph
from ridgeline.predict.residency import place
from ridgeline.predict.tiers import Tier

patched_once_a_launch = shared.patched_once_a_launch

FACTS = GpuFacts(
    "NVIDIA H200", 132, (9, 0), 141e9, 50 << 20, 1.98e9, "575.1", "13.0", torch.__version__, "3.9.0"
)
GAP, LAUNCH, REPLAY, STEP = 1.2e-6, 4e-6, 25e-6, 60e-6
ISSUES = {
    **{"linear": 11e-6, "quantised": 21e-6, "norm": 15e-6, "add": 6e-6, "activation": 14e-6},
    **{"attend": 45e-6, "gather": 8e-6},
}
BANDWIDTH = {"copy": 4.1e12, "read": 4.3e12, "l2": 7e12}
ENGINE = (30e-6, 2e-6, 1e-11)
#: Constants of the time models that no calibrated device has.
CONSTANTS = {
    "gemm": {
        **{"launch_us": 2.4, "matrix": 0.86, "memory": 0.91, "feed": 190.0},
        **{"tile_us": 0.6, "wave": 0.2, "overlap": 2.6},
    },
    "elementwise": {"start_us": 1.6, "memory": 0.88, "issue": 10.0, "cache": 1.5, "row": 0.7},
}


def simulated_device():
    """The H200 with those constants, and of attention what is usual."""
    from dataclasses import asdict

    from ridgeline.predict.gpu.kinds import kind

    device = load_device("h200")
    known = {n: asdict(replace(kind(n).constants(), **own)) for n, own in CONSTANTS.items()}
    attention = asdict(kind("attention").constants())
    provenance = {**device.provenance, "calibration": Provenance.CALIBRATED}
    return replace(device, calibration={**known, "attention": attention}, provenance=provenance)


class Physics:
    """Seconds of kernels and of whole steps."""

    def __init__(self, device=None):
        self._times = GpuTimes(device or simulated_device(), Tier.CALIBRATED)

    def kernel(self, kernel):
        return float(self._times.time(kernel).seconds)

    def step(self, trace):
        """Seconds of a step of ``trace``, and of its operators' calls, together."""
        kernels = [p.kernel for p in place(trace)]
        seconds = [self.kernel(k) for k in kernels]
        worked, places = {}, iter(seconds)
        for index, op in enumerate(trace.ops):
            worked[index] = sum(next(places) for _ in op.kernels(trace.lowering))
        whole = sum(worked[i] * op.repeat for i, op in enumerate(trace.ops))
        if runs_as_graph(trace):
            return whole + REPLAY, worked
        return whole + exposed(trace, seconds, [issue_of(k) for k in kernels], STEP), worked


def issue_of(kernel):
    found = place_of(kernel)
    if found is not None and found.table.startswith("linear."):
        return ISSUES["linear" if found.table.endswith(("bf16", "fp32")) else "quantised"]
    name, share = ISSUE.get(found.table.partition(".")[0] if found else "", ("", 1.0))
    return share * ISSUES[name] if name else LAUNCH


class ComputedStopwatch:
    """Every work's time by physics; ``broken`` are figures that do not run, and a work takes ``costs`` of the
    clock's seconds. ``runs`` says whether calls are made and called, too."""

    facts = FACTS

    def __init__(self, device=None, *, broken=(), costs=0.01, runs=False, facts=FACTS):
        self.device = device or torch.device("cpu")
        self.physics = Physics()
        self.facts = facts
        self.timed, self.broken, self.costs, self.runs, self._now = [], broken, costs, runs, 0.0

    def clock(self):
        return self._now

    def time(self, work):
        self.timed.append(work)
        self._now += self.costs
        if work.figure in self.broken:
            raise RuntimeError("out of shared memory\nand more")
        if self.runs and work.point != (steps.MANY_LAYERS,):
            work.make()()
        return Timing(self._seconds(work), 0.01)

    def _seconds(self, work):
        figure, point = work.key
        kind, _, detail = figure.partition(".")
        if kind == "bandwidth":
            return (1 if detail == "read" else 2) * point[0] / BANDWIDTH[detail]
        if kind == "issue":
            return ISSUES[detail]
        if kind == "engine":
            sequences, vocab = point
            return ENGINE[0] + sequences * (ENGINE[1] + vocab * ENGINE[2])
        if figure == "step.graph":
            return REPLAY + 30e-6 * point[0] + steps.OUTSIDE_KERNELS * GAP
        if figure == "step.eager":
            layer = sum(n * ISSUES[k] for k, n in steps.A_LAYER.items())
            return STEP + point[0] * layer + sum(n * ISSUES[k] for k, n in steps.OUTSIDE.items())
        if figure in (WHOLE, ALONE):
            rotating = self.physics.kernel(kernel_at("rotate_append", point))
            return 3e-6 + (rotating if figure == WHOLE else 0.0)
        if figure in ("gap", "launch"):
            return {"gap": GAP, "launch": LAUNCH}[figure]
        return self.physics.kernel(kernel_at(figure, point))
