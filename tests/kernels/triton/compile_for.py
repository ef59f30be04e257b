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

NAMES = {80: "NVIDIA A100", 89: "NVIDIA L4", 90: "NVIDIA H200", 120: "NVIDIA GeForce RTX 5090"}


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


def report(kernel: JITFunction, compiled: object) -> None:
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
    row = {"kernel": kernel.__name__, "registers": registers, "stack": spilled, "shared": info.shared}
    row |= {"wgmma": "wgmma" in ptx, "mma": "mma.sync" in ptx, "cp_async": "cp.async" in ptx}
    row["instructions"] = sorted(set(re.findall(r"(?:wgmma\.mma_async|mma\.sync)\S*(m\d+n\d+k\d+\S*)", ptx)))
    row["call"] = calling[-1]
    print(json.dumps(row), flush=True)


#: What is being compiled, as the functions below name it.
calling: list[str] = [""]


def announce(*parts: object) -> None:
    calling.append(" ".join(map(str, parts)))
    print(calling[-1], flush=True)


def prepare(capability: int) -> None:
    from ridgeline.kernels.triton import arguments, configs, runtime

    driver.set_active(Driver(capability))
    done = set()

    def compiling(kernel: JITFunction, grid: object):
        def launch(*args: object, **options: object) -> None:
            compiled = kernel.warmup(*args, grid=(1,), **options)
            if id(compiled) not in done:
                done.add(id(compiled))
                report(kernel, compiled)

        return launch

    JITFunction.__getitem__ = compiling
    runtime.is_usable = arguments.is_usable = lambda device: True
    found = (NAMES[capability], divmod(capability, 10))
    configs._device = lambda index: found
    configs._tuned = lambda name: {}
    configs._processors = lambda index: 100


def attention_calls() -> None:
    from ridgeline.kernels import triton as gpu

    for dtype in (torch.bfloat16, torch.float32):
        for dim in (64, 128, 256):
            q, k, v = (torch.zeros(2, n, h, dim, dtype=dtype) for n, h in ((64, 8), (96, 2), (96, 2)))
            print(dtype, dim, flush=True)
            gpu.attention(q, k, v, causal=True, schedule="flash")
            pages = torch.zeros(40, 32, 2, dim, dtype=dtype)
            cu, lengths = torch.arange(3), torch.tensor([600, 40])
            tables = torch.zeros(2, 20, dtype=torch.int32)
            gpu.attention_paged(q[0, :2], pages, pages, cu, lengths, tables, causal=True)
    q, k, v = (torch.zeros(2, n, 4, 80, dtype=torch.float16) for n in (64, 96, 96))
    gpu.merge_states(torch.zeros(3, 2, 80), torch.zeros(3, 2))
    everything = {"alibi_slopes": torch.zeros(4), "sink_logits": torch.zeros(4), "softcap": 3.0}
    everything["distance_bias"] = torch.zeros(4, 9)
    gpu.attention(q, k, v, window=(9, 4), sinks=2, schedule="flash", **everything)
    gpu.attention(q, k, v, window=(9, 4), sinks=2, schedule="split_kv", **everything)


def invariant_attention_calls() -> None:
    from ridgeline.kernels import triton as gpu

    for dtype, dim in (
        (torch.bfloat16, 64),
        (torch.bfloat16, 128),
        (torch.bfloat16, 256),
        (torch.float32, 64),
    ):
        for rows in (1, 512):
            announce("invariant attention", dtype, dim, rows)
            q, k, v = (torch.zeros(1, n, h, dim, dtype=dtype) for n, h in ((rows, 8), (600, 2), (600, 2)))
            gpu.attention(q, k, v, causal=True, schedule="invariant")


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

    announce("gradients")
    for dtype, dim in (
        (torch.bfloat16, 64),
        (torch.bfloat16, 128),
        (torch.bfloat16, 256),
        (torch.float32, 64),
    ):
        print(dtype, dim, flush=True)
        q, k, v = (torch.zeros(2, 64, h, dim, dtype=dtype, requires_grad=True) for h in (4, 2, 2))
        with torch.enable_grad():
            gpu.attention_with_gradient(q, k, v, causal=True).sum().backward()
    with torch.enable_grad():
        gpu.attention_with_gradient(
            q, k, v, window=(9, 4), sinks=2, softcap=3.0, dropout=0.1
        ).sum().backward()


CALLS = {name.removesuffix("_calls"): f for name, f in list(globals().items()) if name.endswith("_calls")}

if __name__ == "__main__":
    prepare(int(sys.argv[1]))
    with torch.no_grad():
        for name in sys.argv[2:] or CALLS:
            CALLS[name]()
