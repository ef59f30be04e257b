"""Shared by the tests: hypothesis without deadlines, and small random twins of transformers' models."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Two test processes with two threads each would spend their time waiting for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RIDGELINE_THREADS", "1")

# Kernels are interpreted or compiled by what this says when Triton, and they, are first imported, which any
# test may be the first to do.
try:
    import torch

    has_gpu = torch.cuda.is_available()
except ImportError:  # tests of what runs without it
    has_gpu = False
if not has_gpu:
    os.environ["TRITON_INTERPRET"] = "1"

import pytest
from hypothesis import settings

from tests.browser import browser  # noqa: F401

# No deadlines: a shared machine is slow at times. `make test` draws the same examples every time, so that a
# change is judged by what it changed; `make test-all` draws new ones.
settings.register_profile("repeat", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("RIDGELINE_HYPOTHESIS", "repeat"))

#: Added to every parameter, so that biases and norms count and logits differ from row to row.
NOISE = 0.2


@dataclass(frozen=True)
class Twin:
    """A small random model of transformers, and ours as loaded from the folder it was saved to: as tensors,
    and packed for the cpu reading."""

    theirs: Any
    ours: Any
    packed: Any
    folder: Path

    def on(self, ops: Any) -> Any:
        """Ours, as the executing reading ``ops`` takes it."""
        from ridgeline.ops.cpu import Cpu

        return self.packed if isinstance(ops, Cpu) else self.ours


@pytest.fixture(scope="session")
def make_twin(tmp_path_factory):
    """``make_twin("LlamaForCausalLM", hidden_size=48, ...)``: a Twin in float32, made once a session."""
    twins: dict[str, Twin] = {}

    def make(architecture: str, **fields: Any) -> Twin:
        key = json.dumps([architecture, fields], sort_keys=True)
        if key not in twins:
            twins[key] = _make_twin(architecture, fields, tmp_path_factory.mktemp(architecture))
        return twins[key]

    return make


def _make_twin(architecture: str, fields: dict[str, Any], folder: Path) -> Twin:
    import torch
    import transformers

    from ridgeline.models import load_config
    from ridgeline.weights.load import load_model
    from ridgeline.weights.pack import load_packed

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    model_class = getattr(transformers, architecture)
    theirs = model_class(model_class.config_class(**fields)).eval().requires_grad_(False)
    for parameter in theirs.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=NOISE)
    for name, buffer in theirs.named_buffers():
        if name.endswith("e_score_correction_bias"):  # which decides what is chosen
            buffer.add_(torch.randn_like(buffer), alpha=NOISE)
    theirs.save_pretrained(folder)
    config = load_config(folder)
    return Twin(theirs, load_model(config, folder), load_packed(config, folder, "fp32"), folder)
