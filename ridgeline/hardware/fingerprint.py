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
    that computed, ``isa`` is the instruction set of the native kernels."""

    date: str
    cpu: str
    cores: int
    threads: int
    isa: str
    system: str
    python: str
    torch: str
    ridgeline: str


def fingerprint(threads: int) -> Fingerprint:
    """Today's fingerprint of this machine, for a result that ``threads`` threads computed."""
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
    )
