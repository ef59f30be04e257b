"""GPU kernels: right against float64; their times beside PyTorch's, FlexAttention's and FlashInfer's; then a
model, and ``measure`` and ``check``.

    python -m benchmarks.gpu --output h200.json    # everything, under eight minutes on an H200
    python -m benchmarks.gpu --only attention,decode
    python -m benchmarks.gpu --check               # only the checks; without a GPU in Triton's interpreter:
    TRITON_INTERPRET=1 python -m benchmarks.gpu --check

Every check draws fresh inputs and fills the output with NaN before the call. Times are medians of CUDA
events; a call takes its inputs from a ring that is larger than the L2 cache. A contestant that is not
installed, or does not run a case, is left out. ``invariant`` has products whose bits depend on a row alone
beside PyTorch's. ``measure`` writes the GPU's hardware file and its points, and checks a Llama-3-8B's shape
against it; ``model`` decodes that, beside the bound that a copy's bandwidth sets and beside transformers.
Each part has a budget of seconds: one that fails, or takes longer, says so, and the others go on. What was
found is in the output file after every case. The table ends with the targets, and what was reached of each.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_results import Results, Row, show
from benchmarks.gpu_timing import copy_bandwidth, ring_of, seconds_a_call
from ridgeline.errors import InputError

#: Seconds that each part may take, in the order in which they run: what matters most comes first.
BUDGETS = {
    "decode": 40,
    "caches": 25,
    "linear": 45,
    "attention": 55,
    "fp8": 15,
    "fp8_linear": 25,
    "model": 100,
    "measure": 100,
    "backward": 30,
    "rows": 15,
    "invariant": 20,
}
PARTS = tuple(BUDGETS)
#: Seconds between two alarms of a part that is out of time.
AGAIN = 5.0
#: Parts that have no cases to check.
WHOLE = ("model", "measure")


class OutOfTime(BaseException):
    """A part's budget is over. No ``except Exception`` on the way may take it for a failure of its own."""


@contextmanager
def budget(seconds: float) -> Iterator[None]:
    """Inside, OutOfTime is raised after so many seconds, between two steps of Python; and again and again
    after that, because what is raised while an object is torn down goes unheard."""

    def end(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check(part: str, case: Any, seed: int, device: torch.device) -> Row:
    """Ours against float64, on inputs and an output that no other call has seen."""
    generator = torch.Generator(device).manual_seed(seed)
    inputs = case.inputs(generator)
    exact = case.exact(*inputs).detach()
    if case.writes_out:
        kind = next(x.dtype for x in inputs if isinstance(x, torch.Tensor) and x.is_floating_point())
        out = torch.full(exact.shape, torch.nan, dtype=kind, device=device)
        case.ours(*inputs, out=out)
    else:
        out = case.ours(*inputs).detach()
    difference = (out.double() - exact).abs().max() / exact.abs().max()
    return Row(part, case.name, difference.item(), case.tolerance, case.flops, case.bytes)


def time_case(row: Row, case: Any, device: torch.device, seconds: Callable[..., float]) -> None:
    """Ours, then the peers; each that does not run is named, and left out."""
    ring = ring_of(case.ring_inputs or case.inputs, device)
    for name, call in {"ours": case.ours, **case.peers}.items():
        try:
            row.seconds[name] = seconds(call, ring)
        except Exception as error:
            row.left_out[name] = first_line(error)
            print(f"  {row.name}: {name} is left out: {first_line(error)[:90]}", file=sys.stderr)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def run_cases(part: str, found: Results, options: argparse.Namespace, device: torch.device) -> None:
    from benchmarks.gpu_cases import PARTS as CASES
    from ridgeline.kernels.triton.runtime import is_interpreted

    for case in CASES[part](device, is_interpreted()):
        print(f"{part} {case.name}", file=sys.stderr, flush=True)
        try:
            row = check(part, case, options.seed + len(found.rows), device)
            found.rows.append(row)
            if not options.check and row.is_right:
                time_case(row, case, device, seconds_a_call)
        except Exception as error:  # one shape that does not run says nothing of the others
            found.stopped[f"{part} {case.name}"] = first_line(error)
            print(f"  {case.name}: {type(error).__name__}: {first_line(error)[:90]}", file=sys.stderr)
        found.save()
        if device.type == "cuda":
            with suppress(RuntimeError):  # a ruined context has been told of
                torch.cuda.empty_cache()


def run_part(part: str, found: Results, options: argparse.Namespace, device: torch.device) -> None:
    """The part within its budget; what stops it is noted, and what it found so far is kept."""
    begin = time.perf_counter()
    try:
        with budget(BUDGETS[part] if not options.check else 3600):
            if part in WHOLE:
                from benchmarks import gpu_model

                getattr(gpu_model, f"{part}_part")(found, device, options)
            else:
                run_cases(part, found, options, device)
    except OutOfTime:
        found.stopped[part] = f"stopped after its {BUDGETS[part]} s"
    except Exception as error:
        found.stopped[part] = first_line(error)
        print(f"benchmarks.gpu: {part}: {type(error).__name__}: {found.stopped[part]}", file=sys.stderr)
    found.seconds[part] = time.perf_counter() - begin
    found.save()
    if device.type == "cuda":
        gc.collect()  # frames of what failed hold what they worked with
        with suppress(RuntimeError):  # a ruined context has been told of
            torch.cuda.empty_cache()


def run(options: argparse.Namespace) -> int:
    parts = tuple(options.only.split(",")) if options.only else PARTS
    for part in parts:
        if part not in PARTS:
            raise InputError(f"--only has {part!r}; choose among: {', '.join(PARTS)}")
    from ridgeline.kernels.triton.runtime import default_device, is_interpreted

    device, timed = default_device(), not options.check
    if timed and is_interpreted():
        raise InputError("Triton's interpreter is no GPU: only --check runs there")
    found = Results.begin(device, options.output)
    if timed:
        found.bandwidth = copy_bandwidth(device)
    for part in parts:
        if timed or part not in WHOLE:
            run_part(part, found, options, device)
    show(found)
    return 0 if all(row.is_right for row in found.rows) and not found.stopped else 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help=f"Parts, like attention,decode; all of them: {', '.join(PARTS)}.")
    parser.add_argument("--check", action="store_true", help="Check results, and time nothing.")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31, help="Of the random inputs.")
    parser.add_argument("--output", type=Path, help="A JSON file for all figures.")
    parser.add_argument("--points", type=Path, help="A CSV file for `measure`'s points.")
    options = parser.parse_args(argv)
    try:
        return run(options)
    except InputError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
