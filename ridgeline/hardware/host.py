"""What the operating system says of this machine: its processor, cores, caches and memory."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ridgeline.hardware.caches import Cache, caches_of_linux, caches_of_mac, sysctl

CPUS = Path("/sys/devices/system/cpu")
#: A container may use less than the machine has (control groups, version 2 and 1).
MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True)
class Host:
    """This machine: the processor's name, the cores that this process may use, the data caches from
    the nearest outwards (none where the system does not tell), and bytes of memory."""

    kind: str
    name: str
    cores: int
    caches: tuple[Cache, ...]
    memory_bytes: int


def this_host() -> Host:
    """The machine that this process runs on."""
    if sys.platform == "darwin":
        arm = platform.machine() == "arm64"
        cores = sysctl("hw.physicalcpu") or os.cpu_count() or 1
        caches = caches_of_mac(cores)
        return Host(
            "apple" if arm else "cpu", _name_of_mac(), cores, caches, sysctl("hw.memsize") or _memory()
        )
    cpus = usable_cpus()
    return Host("cpu", _name_of_linux(), count_cores(CPUS, cpus), caches_of_linux(CPUS, cpus), _memory())


def usable_cpus() -> frozenset[int]:
    """The numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def count_cores(root: Path, cpus: Iterable[int]) -> int:
    """Physical cores among these processors, by the tree that Linux keeps at ``CPUS``; where it says
    nothing every processor is a core."""
    cores = set()
    for cpu in cpus:
        topology = root / f"cpu{cpu}" / "topology"
        try:
            package, core = (topology / "physical_package_id").read_text(), (topology / "core_id").read_text()
        except OSError:
            package, core = "", str(cpu)
        cores.add((package, core))
    return max(len(cores), 1)


def _name_of_linux() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "unknown processor"


def _name_of_mac() -> str:
    return sysctl("machdep.cpu.brand_string", str) or platform.machine()


def _memory() -> int:
    """Bytes of memory that this process may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = []
    for path in MEMORY_LIMITS:
        try:
            limits.append(int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min([total, *limits])
