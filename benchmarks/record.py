"""Where results go, and the machine that each was measured on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ridgeline.hardware.fingerprint import Fingerprint, fingerprint

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, result: dict[str, Any], machine: Fingerprint | None = None) -> Path:
    """Store a result as ``results/<name>.json``, with the fingerprint of the ``machine``, by default of this
    one with PyTorch's threads."""
    import torch

    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = machine or fingerprint(torch.get_num_threads())
    path.write_text(json.dumps({"machine": asdict(machine), **result}, indent=2) + "\n")
    return path
