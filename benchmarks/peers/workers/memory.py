"""No model: memory is read as often as generating reads its weights, by the best of the reading kernels that
``ridgeline measure`` tries."""

from __future__ import annotations

import time

import torch

from benchmarks.peers.protocol import Ready, Task, serve
from ridgeline.hardware.probes.bandwidth import bandwidth_probes
from ridgeline.hardware.probes.ring import Ring

#: About the bytes of TinyLlama-1.1B's weights in 4 bits: far more than a cache holds.
RING_BYTES = 512 << 20


def prepare(task: Task) -> Ready:
    torch.set_num_threads(task.threads)
    kernels = [probe.call for probe in bandwidth_probes((), Ring(RING_BYTES), task.threads)]

    def run() -> float:
        """Every kernel reads a share of the times; the time as if the fastest had read them all."""
        share = -(-task.case.tokens // len(kernels))
        return task.case.tokens / share * min(_seconds(kernel, share) for kernel in kernels)

    run()
    return Ready(run, "none", step_bytes=RING_BYTES)


def _seconds(kernel, times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        kernel()
    return time.perf_counter() - begin


if __name__ == "__main__":
    serve(prepare)
