"""GPU kernels: right against float64, and their times beside PyTorch's, FlexAttention's and FlashInfer's.

    python -m benchmarks.gpu                       # everything, under eight minutes on an H200
    python -m benchmarks.gpu --only attention,decode
    python -m benchmarks.gpu --check               # only the checks; without a GPU in Triton's interpreter:
    TRITON_INTERPRET=1 python -m benchmarks.gpu --check

Every check draws fresh inputs and fills the output with NaN before the call. Times are medians of CUDA
events; a call takes its inputs from a ring that is larger than the L2 cache. A contestant that is not
installed, or does not run a case, is left out. ``model`` decodes a random Llama-3-8B, beside the bound that a
copy's bandwidth sets. ``invariant`` has products whose bits depend on a row alone beside PyTorch's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ridgeline.errors import InputError

#: Events of one contestant in one case, and the seconds that they may take together.
SAMPLES, SECONDS = 50, 1.0
#: Tensors of a ring are at least this many times the L2 cache.
RING = 3
PARTS = ("attention", "backward", "decode", "linear", "fp8", "invariant", "rows", "model")


@dataclass
class Row:
    """A case as it was found: the largest error over the largest element, and seconds by contestant."""

    part: str
    name: str
    error: float
    tolerance: float
    flops: float
    bytes: float
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        return self.error <= self.tolerance  # a NaN is not


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


def time_case(row: Row, case: Any, device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(1)
    first = case.inputs(generator)
    held = sum(x.nbytes for x in first if hasattr(x, "nbytes"))
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    ring = [first] + [case.inputs(generator) for _ in range(min(31, RING * cache // max(held, 1)))]
    for name, call in {"ours": case.ours, **case.peers}.items():
        try:
            row.seconds[name] = seconds_a_call(call, ring)
        except Exception as error:
            print(f"  {row.name}: {name} is left out: {str(error).splitlines()[0][:90]}", file=sys.stderr)


def seconds_a_call(call: Callable[..., Any], ring: list[tuple[Any, ...]]) -> float:
    """The median over events around each call, after warming up."""
    for inputs in ring[:3]:
        call(*inputs)
    torch.cuda.synchronize()
    begin, samples = time.perf_counter(), []
    while len(samples) < SAMPLES and (time.perf_counter() - begin < SECONDS or len(samples) < 5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The device is kept busy while the host launches, so that launches are not in the time.
        torch.cuda._sleep(1_000_000)
        start.record()
        call(*ring[len(samples) % len(ring)])
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / 1e3)
    return statistics.median(samples)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of copying a few gigabytes."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_a_call(target.copy_, [(source,)])


def decode_a_model(device: torch.device, bandwidth: float) -> list[Row]:
    """A random Llama-3-8B in bf16, batches of 1 and 16 after 512 tokens each."""
    import ridgeline
    from ridgeline.ops.batch import Span

    rows = []
    loaded = ridgeline.load("llama-3-8b", weights="random:bf16", device="cuda")
    model, ops = loaded.model, loaded.ops
    for batch in (1, 16):
        blocks = -(-640 // 32)
        cache = ops.alloc_cache(model.cache_spec("bf16"), batch * blocks)
        cache.randomise()
        tables = [tuple(range(i * blocks, (i + 1) * blocks)) for i in range(batch)]
        spans = [Span(1, 512, table=table) for table in tables]
        with torch.inference_mode():
            step = partial(ops.run, cache=cache)
            seconds = seconds_a_call(step, [(model, [1] * batch, spans)])
        read = model.weight_bytes() + batch * 512 * model.cache_spec("bf16").bytes_per_token
        row = Row("model", f"llama-3-8b bf16, {batch}x1 after 512", 0.0, 0.0, 0.0, read)
        row.seconds = {"ours": seconds, "copy bound": read / bandwidth}
        rows.append(row)
    return rows


def show(rows: list[Row], bandwidth: float | None) -> None:
    """A line a case: errors, our time, its rate, and the best peer's time over ours."""
    print(f"\n{'case':<46}{'error':>9}  {'ours':>9}{'TFLOP/s':>9}{'GB/s':>8}{'of copy':>9}  best peer")
    for row in rows:
        line = f"{row.part + ' ' + row.name:<46.46}{row.error:9.1e}{' ' if row.is_right else '!'} "
        ours = row.seconds.get("ours")
        if ours:
            line += f"{ours * 1e6:7.1f}us{row.flops / ours / 1e12:9.1f}{row.bytes / ours / 1e9:8.0f}"
            line += f"{row.bytes / ours / bandwidth:9.0%}" if bandwidth and row.bytes else f"{'':9}"
            peers = {name: s for name, s in row.seconds.items() if name != "ours"}
            if peers:
                best = min(peers, key=peers.get)
                line += f"  {best} {peers[best] / ours:.2f}x"
        print(line)


def save(path: Path, rows: list[Row], bandwidth: float | None) -> None:
    found = {
        "device": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.now(UTC).date().isoformat(),
        "copy_bytes_per_second": bandwidth,
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(found, indent=1), encoding="utf-8")


def run(arguments: argparse.Namespace) -> int:
    parts = tuple(arguments.only.split(",")) if arguments.only else PARTS
    for part in parts:
        if part not in PARTS:
            raise InputError(f"--only has {part!r}; choose among: {', '.join(PARTS)}")
    from ridgeline.kernels.triton.runtime import default_device, is_interpreted

    device, timed = default_device(), not arguments.check
    if timed and is_interpreted():
        raise InputError("Triton's interpreter is no GPU: only --check runs there")
    from benchmarks.gpu_cases import PARTS as CASES

    rows: list[Row] = []
    bandwidth = copy_bandwidth(device) if timed else None
    for part in parts:
        for case in CASES[part](device, is_interpreted()) if part in CASES else ():
            row = check(part, case, arguments.seed + len(rows), device)
            rows.append(row)
            if timed and row.is_right:
                time_case(row, case, device)
    if timed and "model" in parts:
        rows += decode_a_model(device, bandwidth)
    show(rows, bandwidth)
    if arguments.output is not None:
        save(arguments.output, rows, bandwidth)
    return 0 if all(row.is_right for row in rows) else 1


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help=f"Parts, like attention,decode; all of them: {', '.join(PARTS)}.")
    parser.add_argument("--check", action="store_true", help="Check results, and time nothing.")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**31, help="Of the random inputs.")
    parser.add_argument("--output", type=Path, help="A JSON file for all figures.")
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except InputError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
