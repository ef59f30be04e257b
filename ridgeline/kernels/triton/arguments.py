"""What the GPU functions ask of their tensors before a kernel gets their addresses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.triton.runtime import FLOATS, is_usable

#: Heads have from 1 to this many elements.
MOST_HEAD_DIM = 256
SCHEDULES = ("auto", "naive", "flash", "split_kv", "invariant")


def describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def check_floats(name: str, tensor: torch.Tensor, device: torch.device | None = None) -> None:
    """A float tensor on the GPU (on ``device``, if given) whose last dimension has no gaps."""
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}; give a torch.Tensor")
    if tensor.dtype not in FLOATS:
        raise InputError(f"{name} is {tensor.dtype}; give torch.float32, torch.bfloat16 or torch.float16")
    if not is_usable(tensor.device):
        raise InputError(f"{name} is on {tensor.device}; give a tensor on the GPU")
    if device is not None and tensor.device != device:
        raise InputError(f"{name} is on {tensor.device} and the others on {device}; give one device")
    if tensor.dim() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise InputError(
            f"{name} has a stride of {tensor.stride(-1)} in its last dimension; call {name}.contiguous()"
        )


def check_heads(name: str, tensor: torch.Tensor, shape: str, device: torch.device | None = None) -> None:
    check_floats(name, tensor, device)
    if tensor.dim() != len(shape.split(", ")):
        raise InputError(f"{name} is {describe(tensor)}; give [{shape}]")
    if not 1 <= tensor.shape[-1] <= MOST_HEAD_DIM:
        raise InputError(f"{name} is {describe(tensor)}; a head has from 1 to {MOST_HEAD_DIM} elements")


def check_sizes(name: str, tensor: torch.Tensor, wanted: tuple[int, ...], because: str) -> None:
    if tuple(tensor.shape) != tuple(wanted):
        raise InputError(f"{name} is {describe(tensor)}; {because} takes {list(wanted)}")


def check_groups(q: torch.Tensor, kv_heads: int, name: str) -> None:
    heads = q.shape[-2]
    if kv_heads < 1 or heads < 1 or heads % kv_heads:
        raise InputError(
            f"{name} has {kv_heads} heads and q {heads}; give q a whole multiple, at least 1, of {name}'s"
        )


def check_no_gradient(name: str, tensor: torch.Tensor, way_out: str) -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise InputError(f"{name} requires a gradient, which this function has not; {way_out}")


def check_integers(name: str, tensor: torch.Tensor, dims: int, device: torch.device) -> torch.Tensor:
    """Whole numbers of ``dims`` dimensions, contiguous and on ``device``, wherever they were given."""
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}; give a torch.Tensor")
    if tensor.dtype not in (torch.int32, torch.int64) or tensor.dim() != dims:
        raise InputError(f"{name} is {describe(tensor)}; give int32 or int64 of {dims} dimensions")
    return tensor.to(device).contiguous()


def cumulative(name: str, tensor: torch.Tensor, rows: int) -> None:
    """Whether starts that lie on the CPU grow from 0 to ``rows``; a GPU's are not waited for."""
    if tensor.device.type != "cpu":
        return
    lengths = tensor.long().diff()
    if not len(tensor) or tensor[0] != 0 or tensor[-1] != rows or bool((lengths < 0).any()):
        raise InputError(f"{name} is {tensor.tolist()}; give numbers that grow from 0 to {rows}")


@dataclass(frozen=True)
class Policy:
    """Mask and score of a call, checked. ``left`` and ``right`` are -1 where unlimited."""

    causal: bool
    left: int
    right: int
    sinks: int
    scale: float
    softcap: float
    alibi_slopes: torch.Tensor | None
    sink_logits: torch.Tensor | None
    distance_bias: torch.Tensor | None = None
    dropout: float = 0.0
    seed: int = 0

    @classmethod
    def of(
        cls,
        q: torch.Tensor,
        causal: bool,
        window: tuple[int, int],
        sinks: int,
        scale: float | None,
        softcap: float,
        alibi_slopes: torch.Tensor | None,
        sink_logits: torch.Tensor | None,
        distance_bias: torch.Tensor | None = None,
    ) -> Policy:
        if (
            not isinstance(window, tuple | list)
            or len(window) != 2
            or not all(_is_int(x, -1) for x in window)
        ):
            raise InputError(f"window is {window!r}; give (left, right), -1 for no limit")
        if not _is_int(sinks, 0):
            raise InputError(f"sinks is {sinks!r}; give a whole number of tokens, 0 for none")
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise InputError(f"scale is {scale!r}; give a finite number, or None for 1 / sqrt(dim)")
        if not isinstance(softcap, int | float) or not 0 <= softcap < math.inf:
            raise InputError(f"softcap is {softcap!r}; give a finite number, or 0 for none")
        for name, tensor in (("alibi_slopes", alibi_slopes), ("sink_logits", sink_logits)):
            _check_per_head(name, tensor, q)
        _check_by_distance(distance_bias, q)
        left, right = window
        right = -1 if causal else right  # causal alone makes it 0
        sinks = 0 if left < 0 and right < 0 else sinks  # without a window they are seen anyway
        numbers = float(scale), float(softcap)
        return cls(bool(causal), left, right, sinks, *numbers, alibi_slopes, sink_logits, distance_bias)

    @property
    def reach(self) -> int:
        """The largest distance that the bias by distance has a number for."""
        return 0 if self.distance_bias is None else self.distance_bias.shape[1] // 2

    def constants(self) -> dict[str, bool]:
        """The kernel's compile-time policies."""
        return {
            "CAUSAL": self.causal,
            "LEFT": self.left >= 0,
            "RIGHT": self.right >= 0,
            "SINKS": self.sinks > 0,
            "SOFTCAP": self.softcap > 0,
            "ALIBI": self.alibi_slopes is not None,
            "DISTANCE": self.distance_bias is not None,
            "DROPOUT": self.dropout > 0,
        }


def check_schedule(schedule: str) -> None:
    if schedule not in SCHEDULES:
        raise InputError(f"schedule is {schedule!r}; choose one of: {', '.join(SCHEDULES)}")


def result(
    out: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """``out`` if it is fit to be written to, or a new tensor."""
    if out is None:
        return torch.empty(shape, dtype=dtype, device=device)
    check_floats("out", out, device)
    if tuple(out.shape) != tuple(shape):
        raise InputError(f"out is {describe(out)}; the result is {list(shape)}")
    return out


def _is_int(x: object, least: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and least <= x < 1 << 30


def _check_per_head(name: str, tensor: torch.Tensor | None, q: torch.Tensor) -> None:
    if tensor is None:
        return
    check_floats(name, tensor, q.device)
    if tensor.dtype != torch.float32 or tensor.shape != (q.shape[-2],) or not tensor.is_contiguous():
        raise InputError(
            f"{name} is {describe(tensor)}; give a contiguous float32 [{q.shape[-2]}], one a head"
        )


def _check_by_distance(tensor: torch.Tensor | None, q: torch.Tensor) -> None:
    if tensor is None:
        return
    check_floats("distance_bias", tensor, q.device)
    fits = tensor.dtype == torch.float32 and tensor.dim() == 2 and len(tensor) == q.shape[-2]
    if not fits or tensor.shape[1] % 2 == 0 or not tensor.is_contiguous():
        raise InputError(
            f"distance_bias is {describe(tensor)}; give contiguous float32 [{q.shape[-2]}, 2 reach + 1], "
            "those of distances -reach to reach"
        )
