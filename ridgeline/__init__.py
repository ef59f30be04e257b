"""Ridgeline tells where a Transformer's time goes on a given machine, and takes it back.

The public functions are imported on first use, so that ``import ridgeline`` is instant and the
analysis needs no PyTorch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# PyTorch reads this once, at its first allocation: weights then lie in large pages, where they are read
# at one speed. In small ones it differs by a third from process to process.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_PUBLIC = {
    "Engine": "ridgeline.engine.engine",
    "InputError": "ridgeline.errors",
    "check": "ridgeline.analysis.check",
    "declare": "ridgeline.models",
    "evaluate": "ridgeline.analysis.evaluate",
    "explain": "ridgeline.analysis.explain",
    "load": "ridgeline.loading",
    "load_config": "ridgeline.models",
    "load_device": "ridgeline.hardware",
    "measure": "ridgeline.hardware.measure",
    "predict_step": "ridgeline.analysis.step",
    "simulate": "ridgeline.analysis.serving",
    "trace_step": "ridgeline.analysis.step",
    "validate": "ridgeline.validation",
    "write_report": "ridgeline.report",
    "Span": "ridgeline.ops.protocol",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from ridgeline.analysis.check import check as check
    from ridgeline.analysis.evaluate import evaluate as evaluate
    from ridgeline.analysis.explain import explain as explain
    from ridgeline.analysis.serving import simulate as simulate
    from ridgeline.analysis.step import predict_step as predict_step
    from ridgeline.analysis.step import trace_step as trace_step
    from ridgeline.engine.engine import Engine as Engine
    from ridgeline.errors import InputError as InputError
    from ridgeline.hardware import load_device as load_device
    from ridgeline.hardware.measure import measure as measure
    from ridgeline.loading import load as load
    from ridgeline.models import declare as declare
    from ridgeline.models import load_config as load_config
    from ridgeline.ops.protocol import Span as Span
    from ridgeline.report import write_report as write_report
    from ridgeline.validation import validate as validate


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ridgeline' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
