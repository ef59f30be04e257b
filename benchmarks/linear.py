"""Linear layers of TinyLlama-1.1B's shape, side by side with PyTorch's, in one run.

Run as ``python -m benchmarks.linear [--rounds N] [--formats bf16,int4-g128]``. Weights are cold: each
layer has as many copies as it takes to overflow the caches, and they take turns. Rounds alternate between
ours and PyTorch's; the medians of the rounds and their ratio are what counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.record import write_result
from ridgeline import kernels

#: Outputs and inputs of a layer's products; gate and up are one weight, and so are q, k and v.
LAYERS = {"qkv": (2560, 2048), "out": (2048, 2048), "gate_up": (11264, 2048), "down": (2048, 5632)}
ROWS = (1, 16, 512)
#: What takes turns is this large at least: several times the last-level cache of the machines it runs on.
COLD_BYTES = 256 << 20
#: A round calls until it has taken this long.
ROUND_SECONDS = 0.1
FORMATS = ("bf16", "fp32", "int8", "int4-g128", "int4-g32")


@dataclass
class Contestant:
    """One way to compute a product, with its bytes of weights a call."""

    call: Callable[[int], Any]
    copies: int
    bytes: int

    def round(self) -> float:
        """Seconds a call, over one round."""
        calls, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < ROUND_SECONDS or calls < 2:
            self.call(calls % self.copies)
            calls += 1
        return elapsed / calls


def _copies(nbytes: int) -> int:
    return max(2, -(-COLD_BYTES // nbytes))


def ours(out: int, inputs: int, rows: int, format: str) -> Contestant:
    dtype = torch.float32 if format == "fp32" else torch.bfloat16
    first = kernels.pack_linear(torch.randn(out, inputs), format)
    weights = [first]
    for _ in range(_copies(first.nbytes) - 1):
        weights.append(kernels.PackedLinear(first.data.clone(), first.shape, format))
    x, y = torch.randn(rows, inputs, dtype=dtype), torch.empty(rows, out, dtype=dtype)
    return Contestant(lambda i: kernels.linear(x, weights[i], out=y), len(weights), first.nbytes)


def pytorch(out: int, inputs: int, rows: int, format: str) -> Contestant:
    dtype = torch.float32 if format == "fp32" else torch.bfloat16
    first = torch.randn(out, inputs, dtype=dtype)
    weights = [first] + [first.clone() for _ in range(_copies(first.nbytes) - 1)]
    x = torch.randn(rows, inputs, dtype=dtype)
    return Contestant(lambda i: F.linear(x, weights[i]), len(weights), first.nbytes)


def read_bandwidth() -> float:
    """Bytes a second that a sum over a large tensor reads, the best of a few."""
    data = torch.ones(COLD_BYTES // 4)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        data.sum()
        seconds.append(time.perf_counter() - start)
    return data.nbytes / min(seconds)


def compare(layer: str, rows: int, format: str, rounds: int) -> dict[str, Any]:
    out, inputs = LAYERS[layer]
    contestants = {
        "ridgeline": ours(out, inputs, rows, format),
        "pytorch": pytorch(out, inputs, rows, format),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant.round()
    for _ in range(rounds):
        for name, contestant in contestants.items():
            times[name].append(contestant.round())
    medians = {name: statistics.median(t) for name, t in times.items()}
    ratios = [theirs / own for own, theirs in zip(times["ridgeline"], times["pytorch"])]
    row = {
        "layer": layer,
        "rows": rows,
        "format": format,
        "seconds": medians["ridgeline"],
        "gbytes_per_second": contestants["ridgeline"].bytes / medians["ridgeline"] / 1e9,
        "tera_ops_per_second": 2 * rows * out * inputs / medians["ridgeline"] / 1e12,
        "pytorch_seconds": medians["pytorch"],
        "speedup": statistics.median(ratios),
    }
    print(
        f"{layer:8} {rows:4} rows {format:10} {row['seconds'] * 1e6:9.1f} us"
        f" {row['gbytes_per_second']:6.1f} GB/s {row['tera_ops_per_second']:6.3f} TOPS"
        f"   pytorch {row['pytorch_seconds'] * 1e6:9.1f} us   speedup {row['speedup']:.2f}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--rows", default=",".join(map(str, ROWS)))
    parser.add_argument("--dry-run", action="store_true", help="print only, write no result")
    options = parser.parse_args()
    bandwidth = read_bandwidth()
    print(f"{kernels.isa()}, {kernels.threads()} threads; torch.sum reads {bandwidth / 1e9:.1f} GB/s")
    torch.manual_seed(0)
    cases = [
        compare(layer, int(rows), format, options.rounds)
        for format in options.formats.split(",")
        for rows in options.rows.split(",")
        for layer in options.layers.split(",")
    ]
    if not options.dry_run:
        best_read = max(bandwidth, *(case["gbytes_per_second"] * 1e9 for case in cases))
        setting = {
            "isa": kernels.isa(),
            "threads": kernels.threads(),
            "load_average": os.getloadavg()[0],  # above the threads in use: others were at work
            "read_bandwidth": best_read,
        }
        print(f"wrote {write_result('linear', {**setting, 'cases': cases})}")


if __name__ == "__main__":
    main()
