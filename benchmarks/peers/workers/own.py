"""Ridgeline, as ``ridgeline bench`` times it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

import ridgeline
from benchmarks.peers.cases import ENCODER_LENGTHS, PADDED_LENGTH
from benchmarks.peers.files import CHECKPOINT, write_encoder_config
from benchmarks.peers.protocol import Ready, Task, Unable, serve
from ridgeline import kernels
from ridgeline.analysis.bench import BenchTest, repetitions
from ridgeline.loading import Loaded
from ridgeline.ops.batch import Span

#: Ours. The 4-bit one is no worse than Q4_0 on the demo model, as `benchmarks.quality` finds.
FORMATS = {"4-bit": "int4-g32", "bf16": "bf16"}


def prepare(task: Task) -> Ready:
    torch.set_num_threads(task.threads)
    kernels.set_threads(task.threads)
    case = task.case
    versions = {"ridgeline": ridgeline.__version__}
    if case.kind in ("padded", "packed"):
        run = _encoder(task.folder, padded=case.kind == "padded")
        return Ready(run, "bf16", versions)
    try:
        loaded = ridgeline.load(task.folder / CHECKPOINT, weights=FORMATS[case.weights])
    except ridgeline.InputError as error:
        raise Unable(str(error)) from None
    seconds = repetitions(loaded, BenchTest(case.kind, case.tokens, case.depth, case.batch))
    next(seconds)
    return Ready(lambda: next(seconds), FORMATS[case.weights], versions, _step_bytes(loaded))


def _step_bytes(loaded: Loaded) -> int:
    """The bytes of all weights but the embedding table, of which a token reads one row."""
    return int(loaded.model.weight_bytes() - loaded.model.embedding.nbytes)


def _encoder(folder: Path, padded: bool) -> Callable[[], float]:
    loaded = ridgeline.load(write_encoder_config(folder), weights="random:bf16")
    lengths = (PADDED_LENGTH,) * len(ENCODER_LENGTHS) if padded else ENCODER_LENGTHS
    ids = torch.randint(loaded.config.vocab, (sum(lengths),)).tolist()
    spans = [Span(n) for n in lengths]

    @torch.inference_mode()
    def run() -> float:
        begin = time.perf_counter()
        loaded.ops.run(loaded.model, ids, spans, logits="all")
        return time.perf_counter() - begin

    run()
    return run


if __name__ == "__main__":
    serve(prepare)
