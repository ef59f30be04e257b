"""Ridgeline tells where a Transformer's time goes on a given machine, and takes it back.

The public functions are imported on first use, so that ``import ridgeline`` is instant and the
analysis needs no PyTorch. Those of the kernels (``attention``, ``linear``, ``merge_states``, ...) need it.
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
    "KVCache": "ridgeline.kernels",
    "PackedLinear": "ridgeline.kernels",
    "Sequences": "ridgeline.kernels",
    "attend": "ridgeline.kernels",
    "attention": "ridgeline.kernels",
    "attention_paged": "ridgeline.kernels",
    "attention_varlen": "ridgeline.kernels",
    "best_layouts": "ridgeline.analysis.parallel",
    "check": "ridgeline.analysis.check",
    "check_denoising": "ridgeline.analysis.check_denoising",
    "declare": "ridgeline.models",
    "evaluate": "ridgeline.analysis.evaluate",
    "explain": "ridgeline.analysis.explain",
    "explain_denoising": "ridgeline.analysis.denoising",
    "layer_norm": "ridgeline.kernels",
    "linear": "ridgeline.kernels",
    "linear_weight_only": "ridgeline.kernels",
    "load": "ridgeline.loading",
    "load_config": "ridgeline.models",
    "load_device": "ridgeline.hardware",
    "measure": "ridgeline.hardware.measure",
    "merge_states": "ridgeline.kernels",
    "pack_linear": "ridgeline.kernels",
    "parallel": "ridgeline.analysis.parallel",
    "place": "ridgeline.analysis.placement",
    "predict_step": "ridgeline.analysis.step",
    "rms_norm": "ridgeline.kernels",
    "rotate": "ridgeline.kernels",
    "sample": "ridgeline.kernels",
    "simulate": "ridgeline.analysis.serving",
    "trace_step": "ridgeline.analysis.step",
    "validate": "ridgeline.validation",
    "write_report": "ridgeline.report",
    "Layout": "ridgeline.predict.layout",
    "Span": "ridgeline.ops.batch",
}

#: Packages whose names are too many, or too general, for the top level.
_PACKAGES = ("compat", "kernels")

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from ridgeline.analysis.check import check as check
    from ridgeline.analysis.check_denoising import check_denoising as check_denoising
    from ridgeline.analysis.denoising import explain_denoising as explain_denoising
    from ridgeline.analysis.evaluate import evaluate as evaluate
    from ridgeline.analysis.explain import explain as explain
    from ridgeline.analysis.parallel import best_layouts as best_layouts
    from ridgeline.analysis.parallel import parallel as parallel
    from ridgeline.analysis.placement import place as place
    from ridgeline.analysis.serving import simulate as simulate
    from ridgeline.analysis.step import predict_step as predict_step
    from ridgeline.analysis.step import trace_step as trace_step
    from ridgeline.engine.engine import Engine as Engine
    from ridgeline.errors import InputError as InputError
    from ridgeline.hardware import load_device as load_device
    from ridgeline.hardware.measure import measure as measure
    from ridgeline.kernels import KVCache as KVCache
    from ridgeline.kernels import PackedLinear as PackedLinear
    from ridgeline.kernels import Sequences as Sequences
    from ridgeline.kernels import attend as attend
    from ridgeline.kernels import attention as attention
    from ridgeline.kernels import attention_paged as attention_paged
    from ridgeline.kernels import attention_varlen as attention_varlen
    from ridgeline.kernels import layer_norm as layer_norm
    from ridgeline.kernels import linear as linear
    from ridgeline.kernels import linear_weight_only as linear_weight_only
    from ridgeline.kernels import merge_states as merge_states
    from ridgeline.kernels import pack_linear as pack_linear
    from ridgeline.kernels import rms_norm as rms_norm
    from ridgeline.kernels import rotate as rotate
    from ridgeline.kernels import sample as sample
    from ridgeline.loading import load as load
    from ridgeline.models import declare as declare
    from ridgeline.models import load_config as load_config
    from ridgeline.ops.batch import Span as Span
    from ridgeline.predict.layout import Layout as Layout
    from ridgeline.report import write_report as write_report
    from ridgeline.validation import validate as validate


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"ridgeline.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ridgeline' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
