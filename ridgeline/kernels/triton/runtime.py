"""What all GPU kernels share: whether Triton is there, where tensors must lie, the products of tiles."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from ridgeline.errors import InputError

if find_spec("triton") is None:
    raise InputError("the GPU kernels need Triton: pip install 'ridgeline[gpu]'")

import triton
import triton.language as tl

#: Whether kernels run in Triton's interpreter, on the CPU (TRITON_INTERPRET=1 before Triton is imported).
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

#: How all kernels are compiled: multiply-adds are one instruction. Triton's own default is to change.
OPTIONS = {"enable_fp_fusion": True}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
TRITON_DTYPE = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
#: tl.dot takes no fewer rows, columns or inner elements.
LEAST_TILE = 16


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter instead of on a GPU."""
    return INTERPRETED.value


def default_device() -> torch.device:
    """Where the kernels' tensors lie: the current GPU, or the CPU if they are interpreted.

    Raises InputError where there is no GPU.
    """
    if is_interpreted():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError("PyTorch sees no CUDA device here: take device cpu, or a machine that has one")
    return torch.device("cuda", torch.cuda.current_device())


def with_index(device: torch.device | str | None) -> torch.device:
    """The device, by default :func:`default_device`; a GPU with its number, as tensors' devices have it."""
    if device is None:
        return default_device()
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def is_usable(device: torch.device) -> bool:
    """Whether kernels can read tensors of ``device``."""
    return device.type == "cuda" or (is_interpreted() and device.type == "cpu")


def has_fp8(device: torch.device) -> bool:
    """Whether the GPU converts FP8 (e4m3): compute capability 8.9 and newer."""
    return is_interpreted() or torch.cuda.get_device_capability(device) >= (8, 9)


def as_fp8(x: torch.Tensor, always: bool = False) -> torch.Tensor:
    """Bytes of FP8 as such numbers, where the GPU has them; other tensors as they are."""
    is_bytes = x.dtype == torch.uint8 and (always or has_fp8(x.device))
    return x.view(torch.float8_e4m3fn) if is_bytes else x


def padded(size: int) -> int:
    """The power of two that a dimension of ``size`` elements is computed in."""
    return max(LEAST_TILE, triton.next_power_of_2(size))


@triton.jit
def dot(a, b, acc):
    """acc + a b, summed in float32; float32 operands are not rounded to TF32."""
    if INTERPRETED:
        # NumPy has no bfloat16: the interpreter multiplies such operands' bits as integers.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def tanh(x):
    """Without a library call, so that the interpreter runs it too; right to 2e-7."""
    t = tl.exp2(tl.abs(x) * (-2 * LOG2E))
    y = (1 - t) / (1 + t)
    return tl.where(x < 0, -y, y)


@triton.jit
def load_tile(pointers, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of pointers [r, c]; rows and columns are masks, looked at where ROWS and COLUMNS say so. What is
    masked is 0, and not read."""
    if ROWS and COLUMNS:
        return tl.load(pointers, mask=rows[:, None] & columns[None, :], other=0.0)
    elif ROWS:
        return tl.load(pointers, mask=rows[:, None], other=0.0)
    elif COLUMNS:
        return tl.load(pointers, mask=columns[None, :], other=0.0)
    else:
        return tl.load(pointers)
