"""Compiles the kernels of ``benchmarks.gpu`` in several processes at once, before anything is timed.

    python -m benchmarks.gpu_warm --processes 12 --seconds 75

Triton takes seconds to compile a kernel, on one core, and the parts meet more than a hundred: in the process
that times, that would be most of their budgets, and most of ``measure``'s points would be left out. Here each
process runs some of the calls once; what it compiled is in Triton's cache on disk, where the others find it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

from ridgeline.hardware.gpu.work import Work

#: Peers that torch.compile makes.
COMPILED = {"flex", "torch.compile"}
#: Threads of a process on the host, most of whose work is one thread's.
THREADS = 2


def calls(parts: Iterable[str], device: torch.device, tiny: bool = False) -> Iterator[Callable[[], Any]]:
    """What runs each kernel of the parts once, as the parts will run it."""
    from benchmarks.gpu_cases import PARTS as CASES

    for part in parts:
        if part in CASES:
            yield from (partial(run_case, case, device) for case in CASES[part](device, tiny))
        elif part == "measure":
            yield from (partial(run_work, work) for work in distinct(measured(device)))
        elif part == "model":
            from benchmarks.gpu_model import BATCHES

            yield from (partial(run_step, batch, device) for batch in BATCHES)


def run_case(case: Any, device: torch.device) -> None:
    """Ours, and what PyTorch compiles, which it keeps on disk, too."""
    inputs = (case.ring_inputs or case.inputs)(torch.Generator(device).manual_seed(1))
    case.ours(*inputs)
    for name in COMPILED & case.peers.keys() if device.type == "cuda" else ():
        case.peers[name](*inputs)


def run_work(work: Work) -> None:
    with torch.inference_mode():
        work.make()()


def run_step(batch: int, device: torch.device) -> None:
    """A decode step of the model's first layer: the others have the same kernels."""
    from benchmarks.gpu_model import CONTEXT, MODEL, decode_step, random_on_gpu

    with torch.inference_mode():
        decode_step(random_on_gpu(MODEL, device, layers=1, windows=(-1,)), batch, CONTEXT)()


def measured(device: torch.device) -> list[Work]:
    from ridgeline.hardware.gpu.attention import attention_work
    from ridgeline.hardware.gpu.plan import GpuPlan
    from ridgeline.hardware.gpu.products import product_work
    from ridgeline.hardware.gpu.rows import row_work
    from ridgeline.ops.gpu import Gpu

    plan, ops = GpuPlan.usual(), Gpu(torch.bfloat16, device)
    return [work for make in (product_work, attention_work, row_work) for w in make(plan, ops) for work in w]


def distinct(works: Iterable[Work]) -> list[Work]:
    """The smallest of the works that take the same kernels; those of PyTorch's products need none."""
    found: dict[tuple, Work] = {}
    for work in works:
        if work.figure == "linear.bf16":
            continue
        key = variant(work)
        if key not in found or work.nbytes < found[key].nbytes:
            found[key] = work
    return list(found.values())


def variant(work: Work) -> tuple:
    """What a work's kernels are compiled for, of its sizes."""
    from ridgeline.kernels.triton.configs import SPLIT

    kind, point = work.figure.partition(".")[0], work.point
    if kind == "decode":
        count, keys, *heads = point
        return work.figure, count, keys > SPLIT, *heads
    if kind == "prompt":
        return work.figure, *point[3:]
    if kind == "encode":
        return work.figure, *point[2:]
    return (work.figure, *point) if kind == "linear" else (work.figure, point[-1])


def share(parts: Iterable[str], number: int, of: int) -> int:
    """Runs every ``of``-th call, from ``number`` on. What fails is named, and fails again where it counts."""
    from ridgeline.kernels.triton.runtime import default_device

    failed = 0
    device = default_device()
    for call in list(calls(parts, device))[number::of]:
        try:
            call()
            torch.cuda.synchronize(device)
        except Exception as error:
            failed += 1
            print(f"warming up: {type(error).__name__}: {str(error)[:160]}", file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
    return failed


def warm(parts: Iterable[str], processes: int, seconds: float) -> None:
    """Returns when all shares are done, or after so many seconds, when what still runs is ended."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.gpu_warm", "--parts", ",".join(parts)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    running = [
        subprocess.Popen([*command, "--share", str(i), "--processes", str(processes)], env=environment)
        for i in range(processes)
    ]
    try:
        for one in running:
            one.wait(max(seconds - (time.perf_counter() - begin), 0.01))
    except subprocess.TimeoutExpired:
        print(f"warming up: not done after {seconds:g} s", file=sys.stderr)
    finally:
        for one in running:
            one.kill()
            one.wait()
    print(f"warming up took {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    from benchmarks.gpu import PARTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="Parts of benchmarks.gpu.")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--seconds", type=float, default=75, help="After which what still runs is ended.")
    parser.add_argument("--share", type=int, help="Run the calls of this process's number only.")
    options = parser.parse_args(argv)
    parts = options.parts.split(",")
    if options.share is not None:
        return min(share(parts, options.share, options.processes), 1)
    warm(parts, options.processes, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
