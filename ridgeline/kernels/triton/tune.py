"""Trying out tiles on the GPU at hand: every kernel that has them, on a shape that is usual for it; but those
that are invariant, whose bits a tile decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch

from ridgeline.kernels.triton.attention import attention, attention_paged
from ridgeline.kernels.triton.attention_gradient import attention_with_gradient
from ridgeline.kernels.triton.configs import SPLIT, Tiles, trying
from ridgeline.kernels.triton.linear import gpu_linear, linear

#: Tiles of each kernel: rows, columns, warps, stages, inner elements.
CANDIDATES = {
    "attention": [Tiles(*x) for x in product((64, 128), (32, 64, 128), (4, 8), (2, 3))]
    + [Tiles(128, *x, bulk=1) for x in product((64, 128), (4, 8), (2, 3))],
    "decode": [Tiles(16, *x, resident=n) for *x, n in product((32, 64, 128), (2, 4, 8), (3, 5), (1, 2, 4))],
    "backward": [Tiles(*x) for x in product((32, 64, 128), (64, 128), (4, 8), (1, 2))],
    "linear_few": [Tiles(16, *x) for x in product((16, 32, 64), (2, 4), (3, 4, 5), (64, 128, 256))],
    "linear_many": [Tiles(*x, 64) for x in product((64, 128), (64, 128, 256), (4, 8), (3, 4))],
    "linear_fp8": [Tiles(*x, 128) for x in product((64, 128), (64, 128, 256), (4, 8), (2, 3, 4))],
}
#: Sizes of heads that have entries, and of rows for products.
SIZES = {"linear_few": (16,), "linear_many": (1,), "linear_fp8": (1,)}
#: Bytes of an element of what is multiplied, 2 where it is not said.
BYTES = {"linear_fp8": 1}
HEADS = (64, 128, 256)


@dataclass(frozen=True)
class Tuned:
    """The fastest tile of an entry, its seconds a call, and how many others ran and did not."""

    entry: str
    tile: Tiles
    seconds: float
    ran: int
    failed: int


def tune(
    device: torch.device,
    seconds: Callable[[Callable[[], object]], float] | None = None,
    kernels: tuple[str, ...] = tuple(CANDIDATES),
    scale: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> Iterator[Tuned]:
    """The fastest tile of each entry of bfloat16, one after another. ``seconds`` times a call; shapes are
    divided by ``scale``. A tile that the device has no room for is passed over."""
    seconds = seconds or _seconds
    entries = [(kernel, size) for kernel in kernels for size in SIZES.get(kernel, HEADS)]
    for place, (kernel, size) in enumerate(entries):
        entry, call = f"{kernel}-{BYTES.get(kernel, 2)}-{size}", CALLS[kernel](size, device, scale)
        if progress is not None:
            progress(f"trying tiles of {kernel}", place / len(entries))
        times: dict[Tiles, float] = {}
        for tile in CANDIDATES[kernel]:
            try:
                with trying(entry, tile):
                    times[tile] = seconds(call)
            except Exception:  # too much shared memory, too many registers: Triton has no one error for it
                continue
        if times:
            best = min(times, key=times.get)
            yield Tuned(entry, best, times[best], len(times), len(CANDIDATES[kernel]) - len(times))


def write(path: Path, tuned: list[Tuned]) -> None:
    """The file that goes before the package's tiles."""
    lines = []
    for found in tuned:
        numbers = ", ".join(f"{name} = {n}" for name, n in asdict(found.tile).items() if n)
        lines.append(f"{found.entry} = {{ {numbers} }}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")


def _seconds(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return do_bench(call, warmup=5, rep=30, return_mode="median") / 1e3


def _normal(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16)


def _attention(dim: int, device: torch.device, scale: int) -> Callable[[], object]:
    tokens = 4096 // scale
    q, k, v = (_normal(device, 1, tokens, heads, dim) for heads in (16, 4, 4))
    return partial(attention, q, k, v, causal=True, schedule="flash")


def _decode(dim: int, device: torch.device, scale: int) -> Callable[[], object]:
    batch, tokens = 16, max(8192 // scale, SPLIT + 1)
    blocks = -(-tokens // 32)
    q, pages = _normal(device, batch, 16, dim), [_normal(device, batch * blocks, 32, 4, dim) for _ in "kv"]
    starts = torch.arange(batch + 1, dtype=torch.int32, device=device)
    lengths = torch.full((batch,), tokens, dtype=torch.int32, device=device)
    tables = torch.randperm(batch * blocks, device=device).int().view(batch, blocks)
    return partial(
        attention_paged, q, *pages, starts, lengths, tables, causal=True, max_rows=1, max_keys=tokens
    )


def _backward(dim: int, device: torch.device, scale: int) -> Callable[[], object]:
    leaves = [_normal(device, 1, 2048 // scale, heads, dim).requires_grad_() for heads in (16, 4, 4)]
    out = attention_with_gradient(*leaves, causal=True)
    return partial(torch.autograd.grad, out, leaves, torch.randn_like(out), retain_graph=True)


def _linear(format: str, rows: int, _: int, device: torch.device, scale: int) -> Callable[[], object]:
    weight = gpu_linear(torch.randn(4096 // scale, 4096 // scale), format, device=device)
    return partial(linear, _normal(device, rows, 4096 // scale), weight)


CALLS: dict[str, Callable[[int, torch.device, int], Callable[[], object]]] = {
    "attention": _attention,
    "decode": _decode,
    "backward": _backward,
    "linear_few": partial(_linear, "int4-g128", 1),
    "linear_many": partial(_linear, "int4-g128", 2048),
    "linear_fp8": partial(_linear, "fp8", 2048),
}
