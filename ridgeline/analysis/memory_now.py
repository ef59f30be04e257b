"""Predictions for a machine whose memory moves: how fast it is right now, beside what the file says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ridgeline.analysis.here import computing_as
from ridgeline.hardware import Device
from ridgeline.hardware.drift import device_at
from ridgeline.hardware.host import this_host
from ridgeline.hardware.kernels import Kernels
from ridgeline.hardware.measured import is_measured_gpu

if TYPE_CHECKING:
    from ridgeline.analysis.check import PhaseCheck
    from ridgeline.predict import Prediction

#: How far the prediction may move with memory while what it predicts is timed; and memory, which single
#: operators wait for.
STEADY, STEADY_RATE = 0.05, 0.2
#: How often a phase is predicted and run anew because memory moved meanwhile.
ATTEMPTS = 3


@dataclass(frozen=True)
class MemoryReading:
    """The rate of memory, bytes/s: what the hardware file was ``measured`` at, right ``before`` the
    prediction, and ``after`` the run. ``moved``: too far for the prediction to hold.
    """

    measured: float
    before: float
    after: float
    moved: bool


class MemoryNow:
    """Reads memory's rate, and moves the measured ``device`` to it; with ``as_measured``, or where the file
    does not say what rate it was measured at, or is a GPU's, nothing is read and nothing moves."""

    def __init__(
        self, device: Device, *, as_measured: bool = False, read: Callable[[], float] | None = None
    ) -> None:
        as_measured = as_measured or is_measured_gpu(device)
        self.measured = 0.0 if as_measured else Kernels.from_dict(device.kernels).memory
        self._device, self._read = device, read

    def read(self) -> float | None:
        """Bytes a second, with the threads that the machine was measured with."""
        if not self.measured:
            return None
        with computing_as(self._device):
            if self._read is None:  # its memory is filled once
                from ridgeline.hardware.probes.memory_rate import MemoryRate

                self._read = MemoryRate(this_host()).read_long
            return self._read()

    def device(self, rate: float | None) -> Device:
        """The machine while memory is read at ``rate``."""
        return self._device if rate is None else device_at(self._device, rate)

    def timed(
        self, predict: Callable[[Device], Prediction], time: Callable[[Prediction], PhaseCheck]
    ) -> PhaseCheck:
        """Read memory's rate, predict, time, and read it again; anew if memory moved too far meanwhile, but
        :data:`ATTEMPTS` times at most. Which attempt counts is decided by memory's rate alone."""
        for _ in range(ATTEMPTS):
            before = self.read()
            prediction = predict(self.device(before))
            with computing_as(self._device):
                phase = time(prediction)
            after = self.read()
            if before is None or after is None:
                return phase
            later = float(predict(self.device(after)).seconds)
            moved = (
                abs(later / float(prediction.seconds) - 1) > STEADY or abs(after / before - 1) > STEADY_RATE
            )
            phase = replace(phase, memory=MemoryReading(self.measured, before, after, moved))
            if not moved:
                break
        return phase
