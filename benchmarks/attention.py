"""Attention beside PyTorch's: prompts, and one query over a long cache.

    python -m benchmarks.attention

All contestants of a case take turns in the same process, so that whatever else the machine does falls on
all; speedups are medians of ratios of rounds that followed each other. A decode case's tensors are larger
than the last-level cache, so its keys come from memory.
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

from benchmarks.linear import read_bandwidth
from benchmarks.record import write_result
from ridgeline import kernels
from ridgeline.kernels import BLOCK_TOKENS, KVCache, Sequences

#: Heads, key heads and elements of a head.
PROMPTS = [(32, 32, 64), (16, 16, 128), (32, 4, 64)]
PROMPT_TOKENS = 2048
DECODES = [(16, 16, 128), (32, 32, 64), (32, 4, 64)]
DECODE_TOKENS = 32768
#: A round calls until it has taken this long.
ROUND_SECONDS = 0.1
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Case:
    """One shape, its contestants by name, and what the first of them does in a call."""

    name: str
    contestants: dict[str, Callable[[], Any]]
    flops: float
    bytes: float


def seconds_a_call(call: Callable[[], Any]) -> float:
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < ROUND_SECONDS or calls < 2:
        call()
        calls += 1
    return elapsed / calls


def table(blocks: int, shuffled: bool) -> torch.Tensor:
    """The blocks of one sequence, ``[1, blocks]``."""
    order = torch.randperm(blocks) if shuffled else torch.arange(blocks)
    return order.to(torch.int32)[None]


def ours_on_cache(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, format: str, shuffled: bool = False):
    """The newest rows of a sequence, whose keys are k's, appended and attended to over and over."""
    rows, tokens = q.shape[0], k.shape[0]
    cache = KVCache.empty(-(-tokens // BLOCK_TOKENS), k.shape[1], k.shape[2], format)
    blocks = table(cache.blocks, shuffled)
    past = torch.tensor([tokens - rows])
    if past[0] > 0:
        before = Sequences(past, torch.tensor([0]), blocks)
        # A window of the key itself: nothing but storing them.
        filler = k[: past[0]], k[: past[0]], v[: past[0]]
        kernels.attend(*filler, cache, before, window=(0, 0))
    sequences, out = Sequences(torch.tensor([rows]), past, blocks), torch.empty_like(q)
    return lambda: kernels.attend(q, k[-rows:], v[-rows:], cache, sequences, out=out)


def ours_on_plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor):
    out = torch.empty_like(q)[None]
    return lambda: kernels.attention(q[None], k[None], v[None], causal=True, out=out)


def pytorch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dtype: torch.dtype):
    """In the layout that it likes best, [batch, heads, rows, dim]."""
    q, k, v = (x.transpose(0, 1)[None].to(dtype).contiguous() for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    causal = q.shape[2] > 1
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)


def reading(nbytes: float):
    """Sums of as many bytes, which all threads read: what memory gives in the same rounds."""
    rows = torch.get_num_threads() * 16
    numbers = torch.randn(rows, int(nbytes) // 4 // rows)
    return lambda: numbers.sum(1)


def heads_of(rows: int, tokens: int, heads: int, kv_heads: int, dim: int, format: str):
    dtype = DTYPES[format]
    q = torch.randn(rows, heads, dim).to(dtype)
    return q, torch.randn(tokens, kv_heads, dim).to(dtype), torch.randn(tokens, kv_heads, dim).to(dtype)


def prompt(heads: int, kv_heads: int, dim: int, format: str) -> Case:
    q, k, v = heads_of(PROMPT_TOKENS, PROMPT_TOKENS, heads, kv_heads, dim, format)
    contestants = {
        "cache": ours_on_cache(q, k, v, format),
        "plain": ours_on_plain(q, k, v),
        **{f"pytorch {name}": pytorch(q, k, v, dtype) for name, dtype in DTYPES.items()},
    }
    pairs = PROMPT_TOKENS * (PROMPT_TOKENS + 1) / 2
    nbytes = (2 * q.numel() + 2 * k.numel()) * q.itemsize
    return Case(
        f"prompt {PROMPT_TOKENS} {heads}/{kv_heads}x{dim} {format}",
        contestants,
        4 * heads * dim * pairs,
        nbytes,
    )


def decode(heads: int, kv_heads: int, dim: int, format: str) -> Case:
    source = "bf16" if format == "int8" else format
    q, k, v = heads_of(1, DECODE_TOKENS, heads, kv_heads, dim, source)
    contestants = {
        "cache": ours_on_cache(q, k, v, format),
        "scattered": ours_on_cache(q, k, v, format, shuffled=True),
    }
    if format in DTYPES:
        contestants["plain"] = ours_on_plain(q, k, v)
        contestants[f"pytorch {format}"] = pytorch(q, k, v, DTYPES[format])
    element = {"fp32": 4, "bf16": 2, "int8": 1 + 4 / dim}[format]
    flops = 4 * heads * dim * DECODE_TOKENS
    contestants["memory, only read"] = reading(2 * k.numel() * element)
    return Case(
        f"decode {DECODE_TOKENS} {heads}/{kv_heads}x{dim} {format}",
        contestants,
        flops,
        2 * k.numel() * element,
    )


def compare(case: Case, rounds: int) -> dict[str, Any]:
    for call in case.contestants.values():
        seconds_a_call(call)
    times: dict[str, list[float]] = {name: [] for name in case.contestants}
    for _ in range(rounds):
        for name, call in case.contestants.items():
            times[name].append(seconds_a_call(call))
    medians = {name: statistics.median(t) for name, t in times.items()}
    own = times["cache"]
    ratios = {name: statistics.median(b / a for a, b in zip(own, t)) for name, t in times.items()}
    row = {
        "case": case.name,
        "seconds": medians,
        "tera_flops_per_second": case.flops / medians["cache"] / 1e12,
        "gbytes_per_second": case.bytes / medians["cache"] / 1e9,
        "times_of_cache": ratios,
    }
    others = "   ".join(f"{n} {medians[n] * 1e3:.2f} ms ({ratios[n]:.2f}x)" for n in list(medians)[1:])
    print(
        f"{case.name:32} {medians['cache'] * 1e3:8.2f} ms {row['tera_flops_per_second']:6.3f} TFLOPS"
        f" {row['gbytes_per_second']:6.1f} GB/s   {others}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", default="prompt,decode")
    parser.add_argument("--formats", default="bf16,fp32,int8")
    parser.add_argument("--dry-run", action="store_true", help="print only, write no result")
    options = parser.parse_args()
    bandwidth = read_bandwidth()
    print(f"{kernels.isa()}, {kernels.threads()} threads; torch.sum reads {bandwidth / 1e9:.1f} GB/s")
    torch.manual_seed(0)
    formats = options.formats.split(",")
    shapes = {
        "prompt": [(prompt, *shape, f) for f in formats if f in DTYPES for shape in PROMPTS],
        "decode": [(decode, *shape, f) for f in formats for shape in DECODES],
    }
    cases = []
    for kind in options.cases.split(","):
        for make, *shape in shapes[kind]:
            cases.append(compare(make(*shape), options.rounds))
    if not options.dry_run:
        setting = {
            "isa": kernels.isa(),
            "threads": kernels.threads(),
            "load_average": os.getloadavg()[0],  # above the threads in use: others were at work
            "read_bandwidth": max(bandwidth, *(case["gbytes_per_second"] * 1e9 for case in cases)),
        }
        print(f"wrote {write_result('attention', {**setting, 'cases': cases})}")


if __name__ == "__main__":
    main()
