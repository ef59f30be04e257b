"""Runs GPU functions with launches replaced by compilation for a GPU that need not be there.

Run as a program, in a process in which Triton does not interpret, because the interpreter takes what the
compiler does not. Prints a line of JSON for each kernel: registers, bytes of stack, shared memory,
whether it uses the tensor cores of Hopper (wgmma), and the shapes and types of its tensor instructions.
"""

from __future__ import annotations

import json
import re
import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from ridgeline.kernels import pack_linear

NAMES = {
    80: "NVIDIA A100",
    89: "NVIDIA L4",
    90: "NVIDIA H200",
    100: "NVIDIA B200",
    120: "NVIDIA GeForce RTX 5090",
}


class Driver:
    """As much of a GPU's driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def size_of(kernel: JITFunction, args: tuple[object, ...], options: dict[str, object]) -> str:
    """A head's elements and the type of a query's, where the kernel has them, like 128 bf16."""
    query = str(getattr(args[0], "dtype", "")).removeprefix("torch.").removesuffix("_e4m3fn")
    short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float8": "fp8"}.get(query, query)
    return f"{options['DIM']} {short}" if "DIM" in options else ""


def report(kernel: JITFunction, compiled: object, size: str) -> None:
    ptx = compiled.asm["ptx"]
    info = compiled.metadata
    spilled = registers = 0
    import os
    import subprocess
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(compiled.asm["cubin"])
    tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
    said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True).stdout
    os.unlink(file.name)
    if found := re.search(r"REG:(\d+)", said):
        registers = int(found[1])
    if found := re.search(r"STACK:(\d+)", said):
        spilled = int(found[1])
    row = {
        "kernel": kernel.__name__,
        "size": size,
        "registers": registers,
        "stack": spilled,
        "shared": info.shared,
        "call": calling[-1],
    }
    row |= {"wgmma": "wgmma" in ptx, "mma": "mma.sync" in ptx, "cp_async": "cp.async.cg" in ptx}
    row |= {"bulk": "cp.async.bulk.tensor" in ptx, "tcgen05": "tcgen05.mma" in ptx}
    shapes = re.findall(r"(?:wgmma\.mma_async|mma\.sync)\S*(m\d+n\d+k\d+\S*)|(tcgen05\.mma\S*)", ptx)
    row["instructions"] = sorted({"".join(shape) for shape in shapes})
    print(json.dumps(row), flush=True)


#: What is being compiled, as the functions below name it.
calling: list[str] = [""]


def announce(*parts: object) -> None:
    calling.append(" ".join(map(str, parts)))
    print(calling[-1], flush=True)


def prepare(capability: int) -> None:
    import importlib

    from ridgeline.kernels.triton import arguments, configs, linear_launch, runtime

    # The package has a function of the same name.
    attention_fp8 = importlib.import_module("ridgeline.kernels.triton.attention_fp8")

    driver.set_active(Driver(capability))
    done = set()

    def compiling(kernel: JITFunction, grid: object):
        def launch(*args: object, **options: object) -> None:
            compiled = kernel.warmup(*args, grid=(1,), **options)
            if id(compiled) not in done:
                done.add(id(compiled))
                report(kernel, compiled, size_of(kernel, args, options))

        return launch

    JITFunction.__getitem__ = compiling
    runtime.is_usable = arguments.is_usable = lambda device: True
    runtime.has_fp8 = attention_fp8.has_fp8 = linear_launch.has_fp8 = lambda device: capability >= 89
    found = (NAMES[capability], divmod(capability, 10))
    configs._device = lambda index: found
    configs._tuned = lambda name: {}
    configs._processors = lambda index: 100


def attention_calls() -> None:
    from ridgeline.kernels import triton as gpu

    for dtype in (torch.bfloat16, torch.float32):
        for dim in (64, 128, 256):
            q, k, v = (torch.zeros(2, n, h, dim, dtype=dtype) for n, h in ((64, 8), (96, 2), (96, 2)))
            announce("attention", dtype, dim)
            gpu.attention(q, k, v, causal=True, schedule="flash")
            pages = torch.zeros(40, 32, 2, dim, dtype=dtype)
            cu, lengths = torch.arange(3), torch.tensor([600, 40])
            tables = torch.zeros(2, 20, dtype=torch.int32)
            gpu.attention_paged(q[0, :2], pages, pages, cu, lengths, tables, causal=True)
    q, k, v = (torch.zeros(2, n, 4, 80, dtype=torch.float16) for n in (64, 96, 96))
    gpu.attention(q, k, v, causal=True, schedule="flash")
    gpu.merge_states(torch.zeros(3, 2, 80), torch.zeros(3, 2))
    everything = {"alibi_slopes": torch.zeros(4), "sink_logits": torch.zeros(4), "softcap": 3.0}
    everything["distance_bias"] = torch.zeros(4, 9)
    gpu.attention(q, k, v, window=(9, 4), sinks=2, schedule="flash", **everything)
    gpu.attention(q, k, v, window=(9, 4), sinks=2, schedule="split_kv", **everything)


def invariant_attention_calls() -> None:
    """In one split and in two, which are kernels of their own."""
    from ridgeline.kernels import triton as gpu

    for dtype, dim in (
        (torch.bfloat16, 64),
        (torch.bfloat16, 128),
        (torch.bfloat16, 256),
        (torch.float32, 64),
    ):
        for keys, rows in ((600, 1), (600, 512), (300, 256)):
            announce("invariant attention", dtype, dim, rows)
            q, k, v = (torch.zeros(1, n, h, dim, dtype=dtype) for n, h in ((rows, 8), (keys, 2), (keys, 2)))
            gpu.attention(q, k, v, causal=True, schedule="invariant")


def byte_calls() -> None:
    """Caches of int8 and FP8, in blocks of fewer tokens than a tile has and of more; FP8 products."""
    from ridgeline.kernels import triton as gpu

    for dim in (64, 128, 256):
        q, k = (torch.zeros(80, h, dim, dtype=torch.bfloat16) for h in (8, 2))
        for format, tokens in (("bf16", 128), ("int8", 32), ("fp8", 32), ("fp8", 128)):
            cache = gpu.KVCache.empty(8, 2, dim, format, device="cpu", tokens=tokens)
            for rows, keys, schedule in ((1, 1000, "auto"), (80, 96, "auto"), (1, 1000, "invariant")):
                announce(format, tokens, dim, schedule, rows)
                cu, lengths = torch.tensor([0, rows]), torch.tensor([keys])
                slots = torch.zeros(rows, dtype=torch.int64)
                tables = torch.zeros(1, 8, dtype=torch.int32)
                numbers = gpu.Sequences(cu.int(), lengths.int(), tables, slots, rows, keys)
                gpu.attend(q[:rows], k[:rows], k[:rows], cache, numbers, schedule=schedule)
        if runtime_has_fp8():
            announce("fp8 products", dim)
            gpu.attention_fp8(*(x[None] for x in (q, k, k)), causal=True)


def runtime_has_fp8() -> bool:
    from ridgeline.kernels.triton import runtime

    return runtime.has_fp8(torch.device("cpu"))


def row_calls() -> None:
    from ridgeline.kernels import triton as gpu

    announce("rows")
    x, residual, weight = (
        torch.zeros(*shape, dtype=torch.bfloat16) for shape in ((4, 4096), (4, 4096), (4096,))
    )
    gpu.rms_norm(x, weight, 1e-5)
    gpu.add_layer_norm(x, residual, weight, weight, 1e-5)
    for activation in ("silu_gated", "gelu", "gelu_tanh", "relu", "tanh"):
        gpu.activate(x, activation)
    q, k = torch.zeros(4, 8, 128, dtype=torch.bfloat16), torch.zeros(4, 2, 128, dtype=torch.bfloat16)
    angles, positions = torch.zeros(9, 128), torch.zeros(4, dtype=torch.int64)
    gpu.rotate(q, angles, angles, positions)
    cache = gpu.KVCache.empty(4, 2, 128, device="cpu")
    numbers = [torch.zeros(n, dtype=torch.int32) for n in (5, 4)]
    tables, slots = torch.zeros(4, 1, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)
    sequences = gpu.Sequences(*numbers, tables, slots, 1, 32)
    gpu.attend(q, k, k, cache, sequences, cos=angles, sin=angles, positions=positions)
    gpu.attend(q, k, k, cache, sequences)
    logits = torch.zeros(4, 32000)
    gpu.sample(logits, 0.7, 1, 2, top_p=0.9)


def linear_calls() -> None:
    """A few rows leave a GPU's processors without work, so that they are summed in parallel; the last weight
    is too large for that."""
    from ridgeline.kernels import triton as gpu

    for format in ("int8", "int4-g32", "int4-g128-zp", "fp8", "fp8-128x128"):
        for gated in (False, True):
            packed = gpu.gpu_linear(torch.ones(256, 2048), format, gated=gated, device="cpu")
            for rows in (1, 17, 8192):
                announce("linear", format, gated, rows)
                x = torch.zeros(rows, 2048, dtype=torch.bfloat16)
                gpu.linear(x, packed, x.new_zeros(256), "silu_gated" if gated else "gelu")
    announce("linear fp16")
    packed = gpu.gpu_linear(torch.ones(256, 2048), "fp8", device="cpu")
    gpu.linear(torch.zeros(1, 2048, dtype=torch.float16), packed)


def invariant_calls() -> None:
    from ridgeline.kernels import triton as gpu

    for format in ("bf16", "fp32", "int4-g128", "fp8"):
        dtype = torch.float32 if format == "fp32" else torch.bfloat16
        for gated in (False, True):
            packed = gpu.gpu_linear(torch.ones(256, 2048), format, gated=gated, device="cpu")
            for rows in (1, 8192):
                announce("invariant", format, gated, rows)
                x = torch.zeros(rows, 2048, dtype=dtype)
                gpu.linear_invariant(x, packed, x.new_zeros(256), "silu_gated" if gated else None)


def gradient_calls() -> None:
    from ridgeline.kernels import triton as gpu

    for dtype, dim in (
        (torch.bfloat16, 64),
        (torch.bfloat16, 128),
        (torch.bfloat16, 256),
        (torch.float32, 64),
    ):
        announce("gradients", dtype, dim)
        q, k, v = (torch.zeros(2, 64, h, dim, dtype=dtype, requires_grad=True) for h in (4, 2, 2))
        with torch.enable_grad():
            gpu.attention_with_gradient(q, k, v, causal=True).sum().backward()
    with torch.enable_grad():
        gpu.attention_with_gradient(
            q, k, v, window=(9, 4), sinks=2, softcap=3.0, dropout=0.1
        ).sum().backward()


def experts_calls() -> None:
    from ridgeline.kernels import triton as gpu
    from ridgeline.kernels.triton.experts import GpuExperts

    for dtype in (torch.bfloat16, torch.float32):
        logits = torch.zeros(4, 256, dtype=dtype)
        gpu.route(
            logits, 8, scoring="sigmoid", bias=torch.zeros(256), groups=8, open_groups=4, group_score="top2"
        )
        gpu.route(logits, 8)
    for format in ("", "int8", "int4-g32", "int4-g128-zp"):
        for dtype in (torch.bfloat16, torch.float32) if not format else (torch.bfloat16,):
            weights = torch.zeros(4, 512, 256, dtype=dtype), torch.zeros(4, 256, 256, dtype=dtype)
            if format:
                gated, down = (
                    GpuExperts.of([pack_linear(w.float(), format, gated=g) for w in weight], "cpu")
                    for weight, g in zip(weights, (True, False), strict=True)
                )
            else:
                gated, down = GpuExperts.plain(weights[0], gated=True), GpuExperts.plain(weights[1])
            for rows in (1, 8, 64):
                x = torch.zeros(rows, 256, dtype=dtype)
                chosen = torch.zeros(rows, 2, dtype=torch.int32), torch.zeros(rows, 2)
                announce("experts", format, dtype, rows)
                gpu.mixture(x, *chosen, gated, down, "silu_gated", x)
                announce("invariant experts", format, dtype, rows)
                gpu.mixture(x, *chosen, gated, down, "silu_gated", x, invariant=True)


def latent_calls() -> None:
    from ridgeline.kernels import triton as gpu

    for dtype in (torch.bfloat16, torch.float32):
        for rows, heads in ((1, 16), (16, 16), (1, 128)):
            announce("latents", dtype, rows, heads)
            cache = gpu.LatentCache(torch.zeros(4, 32, 576, dtype=dtype), 512)
            q, kv = torch.zeros(rows, heads, 192, dtype=dtype), torch.zeros(rows, 576, dtype=dtype)
            starts, lengths = (torch.zeros(n, dtype=torch.int32) for n in (2, 1))
            slots, tables = torch.zeros(rows, dtype=torch.int64), torch.zeros(1, 64, dtype=torch.int32)
            sequences = gpu.Sequences(starts, lengths, tables, slots, rows, 2048)
            angles = {name: torch.zeros(rows, 64) for name in ("cos", "sin")}
            turned, _ = gpu.turn_append(
                q, kv, torch.zeros(512), 1e-6, 512, **angles, interleaved=True, cache=cache, slots=slots
            )
            gpu.attend_latents(q.new_zeros(rows, heads, 512), turned, cache, sequences, 0.1)


CALLS = {name.removesuffix("_calls"): f for name, f in list(globals().items()) if name.endswith("_calls")}

if __name__ == "__main__":
    prepare(int(sys.argv[1]))
    with torch.no_grad():
        for name in sys.argv[2:] or CALLS:
            CALLS[name]()
