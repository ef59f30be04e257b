"""Where results go, and the machine that each was measured on."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import ridgeline

RESULTS = Path(__file__).parent / "results"


def fingerprint() -> dict[str, Any]:
    """What a reader needs to know of the machine and the software."""
    import torch

    return {
        "date": date.today().isoformat(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ridgeline": ridgeline.__version__,
    }


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Store a result with the machine's fingerprint as ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": fingerprint(), **result}, indent=2) + "\n")
    return path


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
