"""What ``benchmarks.gpu`` checks and times: each kernel's shapes, its peers, and its result in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.gpu_linear_cases import fp8_cases as fp8_linear_cases
from benchmarks.gpu_linear_cases import invariant_cases
from ridgeline.hardware.gpu.products import random_linear
from ridgeline.kernels import triton as gpu
from ridgeline.kernels.triton import naive
from ridgeline.kernels.triton.arguments import Policy
from ridgeline.kernels.triton.runtime import has_fp8

Call = Callable[..., torch.Tensor]


@dataclass
class Case:
    """One shape of a kernel. ``inputs`` draws new arguments from a generator; ``ours`` takes them, and
    ``out`` where it can write into one; ``exact`` gives the result in float64. ``flops`` and ``bytes`` are
    those of a call. ``ring_inputs`` draws what is timed, where that is much sooner made. Peers take the same
    arguments; one that cannot run raises, and is left out."""

    name: str
    inputs: Callable[[torch.Generator], tuple[Any, ...]]
    ours: Call
    exact: Call
    tolerance: float
    flops: float = 0.0
    bytes: float = 0.0
    peers: dict[str, Call] = field(default_factory=dict)
    writes_out: bool = True
    ring_inputs: Callable[[torch.Generator], tuple[Any, ...]] | None = None


def normal(
    generator: torch.Generator, *shape: int, dtype: torch.dtype, device: torch.device, grad: bool = False
) -> torch.Tensor:
    x = torch.randn(shape, generator=generator, device=generator.device).to(device, dtype)
    return x.requires_grad_(grad)


# -- attention ------------------------------------------------------------------------------------


def exact_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """In float64 where scores fit memory, head by head."""
    heads, rows, keys = q.shape[2], q.shape[1], k.shape[1]
    group = heads // k.shape[2]
    seen = torch.ones(rows, keys, dtype=torch.bool, device=q.device).tril(keys - rows) if causal else None
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=torch.float64, device=q.device)
    for b in range(q.shape[0]):
        for h in range(heads):
            scores = q[b, :, h].double() @ k[b, :, h // group].double().T / math.sqrt(q.shape[3])
            if seen is not None:
                scores = scores.masked_fill(~seen, -torch.inf)
            out[b, :, h] = scores.softmax(-1) @ v[b, :, h // group].double()
    return out


def sdpa(backend: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(getattr(SDPBackend, backend)):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped).transpose(1, 2)


def flex(compiled: list, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    from torch.nn.attention import flex_attention as module

    if not compiled:
        mask = None
        if causal:
            mask = module.create_block_mask(
                lambda b, h, i, j: i >= j, None, None, q.shape[1], k.shape[1], device=q.device
            )
        attend = torch.compile(partial(module.flex_attention, block_mask=mask, enable_gqa=True))
        compiled.append(attend)
    return compiled[0](*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def flashinfer_prompt(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    import flashinfer

    return torch.stack(
        [flashinfer.single_prefill_with_kv_cache(*x, causal=causal) for x in zip(q, k, v, strict=True)]
    )


SDPA = {"sdpa cudnn": "CUDNN_ATTENTION", "sdpa flash": "FLASH_ATTENTION", "sdpa mem": "EFFICIENT_ATTENTION"}


def attention_cases(device: torch.device, tiny: bool) -> Iterator[Case]:
    shapes = (
        [(1, 24, 2, 1, 32)]
        if tiny
        else [(1, 8192, 32, 32, 128), (4, 2048, 32, 8, 128), (4, 4096, 16, 16, 64)]
    )
    for batch, tokens, heads, kv_heads, dim in shapes:
        for causal in (True, False):
            dtype = torch.float16 if tiny else torch.bfloat16
            flops = 4 * batch * heads * tokens * tokens * dim * (0.5 if causal else 1.0)
            ours = partial(gpu.attention, causal=causal)
            peers = {name: partial(sdpa, backend, causal=causal) for name, backend in SDPA.items()}
            if causal and dim == 128:  # it takes long to compile
                peers["flex"] = partial(flex, [], causal=causal)
            peers["flashinfer"] = partial(flashinfer_prompt, causal=causal)
            yield Case(
                f"{batch}x{tokens} h{heads}/{kv_heads} d{dim}{' causal' if causal else ''}",
                partial(_qkv, batch, tokens, tokens, heads, kv_heads, dim, dtype, device, False),
                ours, partial(exact_attention, causal=causal), 1e-2, flops=flops, peers=peers,
            )  # fmt: skip


def _qkv(batch, rows, keys, heads, kv_heads, dim, dtype, device, grad, generator):
    draw = partial(normal, generator, dtype=dtype, device=device, grad=grad)
    return draw(batch, rows, heads, dim), draw(batch, keys, kv_heads, dim), draw(batch, keys, kv_heads, dim)


def with_gradients(call: Call, *inputs: torch.Tensor) -> torch.Tensor:
    """Forward and backward: the gradients of the inputs, end to end."""
    for x in inputs:
        x.grad = None
    out = call(*inputs)
    return torch.cat([g.flatten() for g in torch.autograd.grad(out.sum(), inputs)])


def backward_cases(device: torch.device, tiny: bool) -> Iterator[Case]:
    shapes = [(1, 20, 2, 1, 16)] if tiny else [(1, 8192, 32, 32, 128), (4, 2048, 32, 8, 128)]
    dtype = torch.float16 if tiny else torch.bfloat16
    for batch, tokens, heads, kv_heads, dim in shapes:
        ours = partial(with_gradients, partial(gpu.attention_with_gradient, causal=True))
        peers = {
            name: partial(with_gradients, partial(sdpa, backend, causal=True))
            for name, backend in SDPA.items()
        }
        yield Case(
            f"{batch}x{tokens} h{heads}/{kv_heads} d{dim} causal",
            partial(_qkv, batch, tokens, tokens, heads, kv_heads, dim, dtype, device, True),
            ours, partial(with_gradients, partial(differentiable, causal=True)), 2e-2,
            flops=3.5 * 4 * batch * heads * tokens * tokens * dim * 0.5, peers=peers, writes_out=False,
        )  # fmt: skip


def differentiable(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """:func:`exact_attention` as PyTorch differentiates it, by checkpoints of a head each."""
    from torch.utils.checkpoint import checkpoint

    group, outs = q.shape[2] // k.shape[2], []
    for h in range(q.shape[2]):
        one = (q[:, :, h : h + 1], k[:, :, h // group : h // group + 1], v[:, :, h // group : h // group + 1])
        outs.append(checkpoint(_one_head, *one, causal, use_reentrant=False))
    return torch.cat(outs, 2)


def _one_head(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    q, k, v = (x[:, :, 0].double() for x in (q, k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    if causal:
        hidden = ~torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).tril(
            k.shape[1] - q.shape[1]
        )
        scores = scores.masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ v)[:, :, None]


# -- decode over pages ----------------------------------------------------------------------------


def decode_cases(device: torch.device, tiny: bool) -> Iterator[Case]:
    shapes = (
        [(2, 70, 4, 2, 32)]
        if tiny
        else [(16, 32768, 32, 8, 128), (1, 8192, 32, 8, 128), (64, 4096, 32, 8, 128)]
    )
    dtype, tokens = (torch.float16 if tiny else torch.bfloat16), 32
    for batch, keys, heads, kv_heads, dim in shapes:
        blocks = -(-keys // tokens)

        def inputs(generator, batch=batch, keys=keys, heads=heads, kv_heads=kv_heads, dim=dim, blocks=blocks):
            draw = partial(normal, generator, dtype=dtype, device=device)
            order = torch.randperm(batch * blocks, generator=generator, device=generator.device)
            tables = order.view(batch, blocks).int().to(device)
            starts = torch.arange(batch + 1, dtype=torch.int32, device=device)
            lengths = torch.full((batch,), keys, dtype=torch.int32, device=device)
            pages = [draw(batch * blocks, tokens, kv_heads, dim) for _ in "kv"]
            return draw(batch, heads, dim), *pages, starts, lengths, tables

        yield Case(
            f"{batch}x1 over {keys} h{heads}/{kv_heads} d{dim}",
            inputs,
            partial(gpu.attention_paged, causal=True, max_rows=1, max_keys=keys),
            exact_paged, 1e-2, flops=4 * batch * heads * keys * dim,
            bytes=2 * batch * keys * kv_heads * dim * dtype.itemsize, peers={"flashinfer":
            FlashInferDecode()},
        )  # fmt: skip


def byte_cache_cases(device: torch.device, tiny: bool) -> Iterator[Case]:
    """Decodes over int8 and FP8 caches, beside bf16 ones of the same blocks: bytes are what they store."""
    shapes = [(2, 70, 4, 2, 32, 16)] if tiny else [(16, 32768, 32, 8, 128, 32), (16, 32768, 32, 8, 128, 128)]
    for format in ("bf16", "int8", "fp8"):
        for batch, keys, heads, kv_heads, dim, tokens in shapes:
            blocks = -(-keys // tokens)

            def inputs(generator, format=format, shape=(batch, keys, heads, kv_heads, dim, tokens), n=blocks):
                batch, keys, heads, kv_heads, dim, tokens = shape
                cache = gpu.KVCache.empty(batch * n, kv_heads, dim, format, device=device, tokens=tokens)
                order = torch.randperm(batch * n, generator=generator, device=generator.device)
                tables = order.view(batch, n).int().to(device)
                starts = torch.arange(batch + 1, dtype=torch.int32, device=device)
                lengths = torch.full((batch,), keys, dtype=torch.int32, device=device)
                places = torch.arange(keys, device=device)
                for table in tables.long():  # a sequence at a time, whose keys take memory as bf16
                    slots = table[places // tokens] * tokens + places % tokens
                    whole = gpu.Sequences(starts[:2], lengths[:1], table[None].int(), slots, keys, keys)
                    draw = partial(
                        normal, generator, keys, kv_heads, dim, dtype=torch.bfloat16, device=device
                    )
                    gpu.store(draw(), draw(), cache, whole)
                slots = torch.full((batch,), -1, device=device)  # nothing new
                q = normal(generator, batch, heads, dim, dtype=torch.bfloat16, device=device)
                return q, cache, gpu.Sequences(starts, lengths, tables, slots, 1, keys)

            size = {"bf16": 2 * dim, "int8": dim + 4, "fp8": dim + 4}[format]
            yield Case(
                f"{format} {batch}x1 over {keys} h{heads}/{kv_heads} d{dim}, blocks of {tokens}",
                inputs, gpu.attend_stored, exact_stored, 2e-2, flops=4 * batch * heads * keys * dim,
                bytes=2 * batch * keys * kv_heads * size,
            )  # fmt: skip


def exact_stored(q: torch.Tensor, cache: gpu.KVCache, sequences: gpu.Sequences) -> torch.Tensor:
    """In float64, of keys and values as they are stored."""
    outs, group = [], q.shape[1] // cache.keys.shape[2]
    for b, n in enumerate(sequences.lengths.tolist()):
        k, v = (x.double().repeat_interleave(group, 1) for x in cache.read(sequences.tables[b], n))
        scores = torch.einsum("hd,jhd->hj", q[b].double(), k) / math.sqrt(q.shape[2])
        outs.append(torch.einsum("hj,jhd->hd", scores.softmax(-1), v))
    return torch.stack(outs)


def fp8_cases(device: torch.device, tiny: bool) -> Iterator[Case]:
    """Prompts whose scores are products of FP8; the error against float64 is theirs, not the kernel's."""
    if not has_fp8(device):
        return
    batch, tokens, heads, kv_heads, dim = (1, 24, 2, 1, 32) if tiny else (1, 8192, 32, 32, 128)
    yield Case(
        f"fp8 scores {batch}x{tokens} h{heads}/{kv_heads} d{dim} causal",
        partial(_qkv, batch, tokens, tokens, heads, kv_heads, dim, torch.bfloat16, device, False),
        partial(gpu.attention_fp8, causal=True), partial(exact_attention, causal=True), 0.1,
        flops=4 * batch * heads * tokens * tokens * dim * 0.5,
        peers={"bf16": partial(gpu.attention, causal=True)},
    )  # fmt: skip


def exact_paged(q, k_pages, v_pages, starts, lengths, tables) -> torch.Tensor:
    policy, outs = Policy.of(q, True, (-1, -1), 0, None, 0.0, None, None), []
    for b, n in enumerate(lengths.tolist()):
        k, v = (x[tables[b].long()].flatten(0, 1)[:n].double() for x in (k_pages, v_pages))
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("hd,jhd->hj", q[b].double(), k) * policy.scale
        outs.append(torch.einsum("hj,jhd->hd", scores.softmax(-1), v))
    return torch.stack(outs)


class FlashInferDecode:
    """FlashInfer's paged decode; it plans once for each step."""

    def __init__(self) -> None:
        self.planned: dict[int, Any] = {}

    def __call__(self, q, k_pages, v_pages, starts, lengths, tables) -> torch.Tensor:
        import flashinfer

        if id(tables) in self.planned:
            return self.planned[id(tables)].run(q, (k_pages, v_pages))
        workspace = torch.empty(128 << 20, dtype=torch.uint8, device=q.device)
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
        tokens, blocks = k_pages.shape[1], tables.shape[1]
        indptr = torch.arange(len(lengths) + 1, dtype=torch.int32, device=q.device) * blocks
        last = (lengths - 1) % tokens + 1
        wrapper.plan(
            indptr,
            tables.flatten(),
            last,
            q.shape[1],
            k_pages.shape[2],
            q.shape[2],
            tokens,
            data_type=q.dtype,
        )
        self.planned[id(tables)] = wrapper
        return wrapper.run(q, (k_pages, v_pages))


# -- linear ---------------------------------------------------------------------------------------


def linear_cases(device: torch.device, tiny: bool) -> Iterator[Case]:
    """One row of the format that a target is set for comes first."""
    outputs, inner = (64, 96) if tiny else (14336, 4096)
    dtype = torch.float16 if tiny else torch.bfloat16
    for format in ("int4-g128", "int4-g32-zp", "int8"):
        for rows in (1, 20) if tiny else (1, 16, 2048):

            def inputs(generator, format=format, rows=rows):
                weight = normal(generator, outputs, inner, dtype=torch.float32, device=torch.device("cpu"))
                return normal(generator, rows, inner, dtype=dtype, device=device), gpu.gpu_linear(
                    weight, format, device=device
                )

            def repeated(generator, format=format, rows=rows):
                return (
                    normal(generator, rows, inner, dtype=dtype, device=device),
                    random_linear(format, outputs, inner, device),
                )

            bits = 8 if format == "int8" else 4 + 16 / int(format.split("-g")[1].split("-")[0])
            yield Case(
                f"{format} {rows}x{inner} -> {outputs}",
                inputs,
                gpu.linear,
                lambda x, packed: x.double() @ packed.unpack().double().T,
                1e-2, flops=2 * rows * outputs * inner, bytes=outputs * inner * bits / 8,
                peers={f"{str(dtype).removeprefix('torch.')} cublas": DensePeer()},
                ring_inputs=None if tiny else repeated,
            )  # fmt: skip


class DensePeer:
    """The same product with the weight unpacked: PyTorch's own."""

    def __init__(self) -> None:
        self.weights: dict[int, torch.Tensor] = {}

    def __call__(self, x: torch.Tensor, packed: gpu.GpuLinear) -> torch.Tensor:
        if id(packed) not in self.weights:
            self.weights[id(packed)] = packed.unpack().to(x.dtype)
        return F.linear(x, self.weights[id(packed)])


# -- rows -----------------------------------------------------------------------------------------


def row_cases(device: torch.device, tiny: bool) -> Iterator[Case]:
    rows, width = (3, 80) if tiny else (4096, 4096)
    dtype = torch.float16 if tiny else torch.bfloat16
    draw = partial(normal, dtype=dtype, device=device)
    size = dtype.itemsize

    def fused(x, residual, weight, out=None):
        return gpu.add_rms_norm(x, residual.clone() if tiny else residual, weight, 1e-5, out)

    def unfused(x, residual, weight):
        return naive.norm(x, weight, 1e-5, layer=False, residual=residual.clone() if tiny else residual)

    compiled = [unfused]
    yield Case(
        f"add + rms norm {rows}x{width}",
        lambda g: (draw(g, rows, width), draw(g, rows, width), draw(g, width)),
        fused if tiny else lambda x, r, w, out=None: gpu.add_rms_norm(x, r, w, 1e-5, out),
        lambda x, r, w: F.rms_norm((x + r).double(), (width,), w.double(), 1e-5),
        1e-2, bytes=4 * rows * width * size,
        peers={"unfused": unfused, "torch.compile": lambda *a: _compiled(compiled)(*a)},
    )  # fmt: skip
    gated = [lambda x: naive.activate(x, "silu_gated")]
    yield Case(
        f"silu gated {rows}x{2 * width}",
        lambda g: (draw(g, rows, 2 * width),),
        lambda x, out=None: gpu.activate(x, "silu_gated", out),
        lambda x: naive.activate(x.double(), "silu_gated"),
        1e-2, bytes=3 * rows * width * size,
        peers={"unfused": gated[0], "torch.compile": lambda *a: _compiled(gated)(*a)},
    )  # fmt: skip


def _compiled(functions: list) -> Call:
    """The function, compiled at its first use and then kept."""
    if len(functions) == 1:
        functions.append(torch.compile(functions[0]))
    return functions[1]


PARTS: dict[str, Callable[[torch.device, bool], Iterator[Case]]] = {
    "attention": attention_cases,
    "backward": backward_cases,
    "decode": decode_cases,
    "caches": byte_cache_cases,
    "fp8": fp8_cases,
    "linear": linear_cases,
    "fp8_linear": partial(fp8_linear_cases, Case, DensePeer),
    "invariant": partial(invariant_cases, Case),
    "rows": row_cases,
}
