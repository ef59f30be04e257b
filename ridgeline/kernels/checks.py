"""What the kernels' Python functions ask of their tensors before an address reaches C++."""

from __future__ import annotations

import torch

from ridgeline import _native
from ridgeline.errors import InputError

DTYPES = {torch.float32: _native.Dtype.fp32, torch.bfloat16: _native.Dtype.bf16}


def check_tensor(name: str, tensor: torch.Tensor) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}; give a torch.Tensor")
    if tensor.dtype not in DTYPES:
        raise InputError(f"{name} is {tensor.dtype}; give torch.float32 or torch.bfloat16")
    if tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise InputError(
            f"{name} is a {tensor.layout} tensor on {tensor.device}; give a strided one on the CPU"
        )


def check_matrix(name: str, tensor: torch.Tensor) -> None:
    check_tensor(name, tensor)
    if tensor.dim() != 2:
        raise InputError(f"{name} is {describe(tensor)}; give a matrix of 2 dimensions")
    if tensor.shape[1] > 1 and tensor.stride(1) != 1:
        raise InputError(
            f"{name} has a stride of {tensor.stride(1)} inside its rows; call {name}.contiguous()"
        )


def check_vector(name: str, tensor: torch.Tensor, length: int) -> None:
    check_tensor(name, tensor)
    if tensor.shape != (length,) or not tensor.is_contiguous():
        raise InputError(
            f"{name} is {describe(tensor)} of stride {tensor.stride()}; give a contiguous [{length}]"
        )


def check_integers(name: str, tensor: torch.Tensor) -> None:
    """A contiguous run of int64 on the CPU."""
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}; give a torch.Tensor")
    if tensor.dtype != torch.int64 or tensor.dim() != 1 or tensor.device.type != "cpu":
        raise InputError(f"{name} is {describe(tensor)} on {tensor.device}; give int64 [rows] on the CPU")
    if not tensor.is_contiguous():
        raise InputError(f"{name} has gaps between its elements; call {name}.contiguous()")


def check_sequences(sequences: torch.Tensor, rows: int, count: int, name: str) -> None:
    """Which of ``count`` vectors, those of ``name``, each of ``rows`` rows takes."""
    check_integers("sequences", sequences)
    if len(sequences) != rows:
        raise InputError(f"sequences has {len(sequences)} numbers and x {rows} rows; give one a row")
    if rows and not 0 <= int(sequences.min()) <= int(sequences.max()) < count:
        raise InputError(f"sequences name rows outside of {name}, which has {count}")


def check_no_gradient(name: str, tensor: torch.Tensor) -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise InputError(
            f"{name} requires a gradient, which this kernel has not; use torch.no_grad() or {name}.detach()"
        )


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the address ranges meet (the gaps between rows count as part of them)."""
    return a.data_ptr() < _end(b) and b.data_ptr() < _end(a)


def same_place(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the two are the same elements of one dtype."""
    return a.data_ptr() == b.data_ptr() and a.stride() == b.stride() and a.dtype == b.dtype


def has_overlapping_rows(tensor: torch.Tensor) -> bool:
    """Whether two indices may mean one element, as in an expanded tensor."""
    if tensor.numel() == 0:
        return False
    end = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape) if n > 1):
        if stride < end:
            return True
        end = stride * (size - 1) + end
    return False


def _end(tensor: torch.Tensor) -> int:
    if tensor.numel() == 0:
        return tensor.data_ptr()
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr() + (last + 1) * tensor.element_size()


def describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
