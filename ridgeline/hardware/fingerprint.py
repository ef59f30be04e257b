"""What a result was measured with: the machine, the software, and the day."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import date

import ridgeline
from ridgeline.hardware.host import this_host


@dataclass(frozen=True)
class Fingerprint:
    """A machine and the software on it. ``cores`` are those that the process may use, ``threads`` those
    that computed, ``isa`` is the instruction set of the native kernels. ``gpu`` is what its driver calls the
    GPU that computed, with the versions of ``driver``, ``cuda`` and ``triton``; empty where none did."""

    date: str
    cpu: str
    cores: int
    threads: int
    isa: str
    system: str
    python: str
    torch: str
    ridgeline: str
    gpu: str = ""
    driver: str = ""
    cuda: str = ""
    triton: str = ""


def fingerprint(threads: int, gpu: str = "") -> Fingerprint:
    """Today's fingerprint of this machine, for a result that ``threads`` threads computed, or the GPU that
    its driver calls ``gpu``."""
    import torch

    from ridgeline import kernels

    host = this_host()
    return Fingerprint(
        date=date.today().isoformat(),
        cpu=host.name,
        cores=host.cores,
        threads=threads,
        isa=kernels.isa(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=torch.__version__,
        ridgeline=ridgeline.__version__,
        gpu=gpu,
        **(_driver() if gpu else {}),
    )


def _driver() -> dict[str, str]:
    import torch
    import triton

    from ridgeline.hardware.gpu.stopwatch import driver_version

    versions = {"cuda": torch.version.cuda or "", "triton": triton.__version__}
    return {"driver": driver_version() if torch.cuda.is_available() else "", **versions}
