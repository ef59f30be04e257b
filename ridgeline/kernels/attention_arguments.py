"""What the attention functions share: their options, and what they ask of tensors of heads."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from ridgeline import _native
from ridgeline.errors import InputError
from ridgeline.kernels.checks import (
    DTYPES,
    check_no_gradient,
    check_tensor,
    describe,
    has_overlapping_rows,
    overlap,
)
from ridgeline.ops.batch import Span

SCHEDULES = {
    "auto": _native.Schedule.automatic,
    "naive": _native.Schedule.naive,
    "flash": _native.Schedule.flash,
    "split_kv": _native.Schedule.split_kv,
}
#: Positions and window sizes stay below this, so that their sums fit.
MOST_TOKENS = 1 << 40
NO_ANGLES = _native.Angles(0, 0, 0, 0)


@dataclass(frozen=True)
class Options:
    """Mask, score and schedule of a call, as its function was given them."""

    causal: bool
    window: tuple[int, int]
    sinks: int
    scale: float | None
    softcap: float
    alibi_slopes: torch.Tensor | None
    sink_logits: torch.Tensor | None
    schedule: str
    distance_bias: torch.Tensor | None = None

    def native_mask(self) -> _native.AttentionMask:
        if not isinstance(self.window, tuple | list) or len(self.window) != 2:
            raise InputError(f"window is {self.window!r}; give (left, right), -1 for no limit")
        for size in self.window:
            if not _is_int(size) or not -1 <= size < MOST_TOKENS:
                raise InputError(f"window is {self.window!r}; give whole numbers of tokens, -1 for no limit")
        if not _is_int(self.sinks) or not 0 <= self.sinks < MOST_TOKENS:
            raise InputError(f"sinks is {self.sinks!r}; give a whole number of tokens, 0 for none")
        return _native.AttentionMask(bool(self.causal), *self.window, self.sinks)

    def native_score(self, heads: int, dim: int) -> _native.AttentionScore:
        scale = 1 / math.sqrt(dim) if self.scale is None else self.scale
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise InputError(f"scale is {scale!r}; give a finite number, or None for 1 / sqrt(dim)")
        if not isinstance(self.softcap, int | float) or not 0 <= self.softcap < math.inf:
            raise InputError(f"softcap is {self.softcap!r}; give a finite number, or 0 for none")
        slopes = _per_head("alibi_slopes", self.alibi_slopes, heads)
        sinks = _per_head("sink_logits", self.sink_logits, heads)
        bias = _by_distance(self.distance_bias, heads)
        return _native.AttentionScore(scale, self.softcap, slopes, sinks, *bias)

    def native_schedule(self) -> _native.Schedule:
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule is {self.schedule!r}; choose one of: {', '.join(SCHEDULES)}")
        return SCHEDULES[self.schedule]


@dataclass(frozen=True, eq=False)
class Sequences:
    """The sequences of a packed step, as the kernels read them; made once, it serves all layers.

    - ``rows``: int64 ``[sequences]``, the new rows of each, one sequence after another in the step's tensors.
    - ``past``: int64 ``[sequences]``, the tokens that came before them.
    - ``tables``: int32 ``[sequences, columns]``, the cache blocks of each sequence: token j lies in block
      ``tables[i, j // block]``. None where keys lie in no blocks.

    Raises InputError that names the field for another dtype, shape, stride or device.
    """

    rows: torch.Tensor
    past: torch.Tensor
    tables: torch.Tensor | None = None
    native: _native.Sequences = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check_integers("rows", self.rows, (None,), torch.int64)
        _check_integers("past", self.past, (len(self.rows),), torch.int64)
        if self.tables is not None:
            _check_integers("tables", self.tables, (len(self.rows), None), torch.int32)
        native = _native.Sequences(
            len(self.rows),
            self.rows.data_ptr(),
            self.past.data_ptr(),
            0 if self.tables is None else self.tables.data_ptr(),
            0 if self.tables is None else self.tables.shape[1],
        )
        object.__setattr__(self, "native", native)

    @classmethod
    def of(cls, spans: Iterable[Span]) -> Sequences:
        """The sequences of a batch's spans, whose ``count`` is 1."""
        spans = tuple(spans)
        tables = torch.zeros(len(spans), max((len(s.table) for s in spans), default=0), dtype=torch.int32)
        for row, span in zip(tables, spans):
            row[: len(span.table)] = torch.tensor(span.table, dtype=torch.int32)
        rows = torch.tensor([s.rows for s in spans], dtype=torch.int64)
        return cls(rows, torch.tensor([s.past for s in spans], dtype=torch.int64), tables)

    def check(self, name: str, tokens: int, units: int) -> None:
        """Whether lengths and tables stay inside ``units`` blocks or pages of ``tokens`` each."""
        try:
            self.native.check(tokens, units)
        except ValueError as error:
            raise InputError(f"{name} {error}") from None


def check_heads(name: str, tensor: torch.Tensor, shape: str) -> None:
    """A float tensor of as many dimensions as ``shape`` names, the elements of a head side by side."""
    check_tensor(name, tensor)
    if tensor.dim() != len(shape.split(", ")):
        raise InputError(f"{name} is {describe(tensor)}; give [{shape}]")
    if not 1 <= tensor.shape[-1] <= _native.most_head_dim:
        raise InputError(
            f"{name} is {describe(tensor)}; a head has from 1 to {_native.most_head_dim} elements"
        )
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise InputError(
            f"{name} has a stride of {tensor.stride(-1)} inside its heads; call {name}.contiguous()"
        )
    check_no_gradient(name, tensor)


def check_same_dtype(**tensors: torch.Tensor) -> None:
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.dtype != first.dtype:
            raise InputError(f"{name} is {tensor.dtype} and {first_name} {first.dtype}; give one dtype")


def check_groups(q: torch.Tensor, kv_heads: int, name: str) -> None:
    """Whether the query heads of ``[.., heads, dim]`` share key heads evenly."""
    heads = q.shape[-2]
    if kv_heads < 1 or heads < 1 or heads % kv_heads:
        raise InputError(
            f"{name} has {kv_heads} heads and q {heads}; give q a whole multiple, at least 1, of {name}'s"
        )


def check_sizes(name: str, tensor: torch.Tensor, wanted: tuple[int, ...], because: str) -> None:
    if tuple(tensor.shape) != wanted:
        raise InputError(f"{name} is {describe(tensor)}; {because} takes {list(wanted)}")


def integers(name: str, tensor: torch.Tensor, dims: int, dtype: torch.dtype) -> torch.Tensor:
    """Whole numbers of ``dims`` dimensions on the CPU, as contiguous ``dtype``."""
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}; give a torch.Tensor")
    if tensor.dtype not in (torch.int32, torch.int64) or tensor.dim() != dims or tensor.device.type != "cpu":
        raise InputError(
            f"{name} is {describe(tensor)} on {tensor.device}; give int32 or int64 of {dims} dimension"
            f"{'s' if dims > 1 else ''} on the CPU"
        )
    return tensor.to(dtype).contiguous()


def result(out: torch.Tensor | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A new tensor for the output, of q's shape but v's dim, or the one that was given, checked."""
    shape = (*q.shape[:-1], v.shape[-1])
    if out is None:
        return torch.empty(shape, dtype=q.dtype)
    check_heads("out", out, ", ".join("rows" for _ in shape))
    check_sizes("out", out, shape, "this call")
    if has_overlapping_rows(out):
        raise InputError("out has rows that overlap; give one whose rows do not")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if overlap(out, tensor):
            raise InputError(f"out shares memory with {name}; give one of its own")
    return out


def head_rows(tensor: torch.Tensor) -> _native.HeadRows:
    """``[batch or pages, rows, heads, dim]``, or packed ``[rows, heads, dim]``."""
    rows, heads, _ = tensor.stride()[-3:]
    sequence = tensor.stride(0) if tensor.dim() == 4 else _native.packed
    return _native.HeadRows(tensor.data_ptr(), DTYPES[tensor.dtype], sequence, rows, heads)


def lse_rows(lse: torch.Tensor | None) -> _native.HeadRows:
    """``[batch, heads, rows]``, or packed ``[heads, rows]``."""
    if lse is None:
        return _native.HeadRows(0, _native.Dtype.fp32, 0, 0, 0)
    sequence = lse.stride(0) if lse.dim() == 3 else _native.packed
    return _native.HeadRows(lse.data_ptr(), _native.Dtype.fp32, sequence, lse.stride(-1), lse.stride(-2))


def run(
    q: torch.Tensor,
    sequences: Sequences,
    source: _native.KvSource,
    options: Options,
    out: torch.Tensor,
    angles: _native.Angles = NO_ANGLES,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """One call of the core, of arguments that have been checked."""
    heads, dim = q.shape[-2:]
    lse = torch.empty(*q.shape[:-3], heads, q.shape[-3]) if return_lse else None
    _native.attention(
        heads,
        sequences.native,
        head_rows(q),
        angles,
        source,
        options.native_mask(),
        options.native_score(heads, dim),
        head_rows(out),
        lse_rows(lse),
        options.native_schedule(),
    )
    return out if lse is None else (out, lse)


def _check_integers(
    name: str, tensor: torch.Tensor, shape: tuple[int | None, ...], dtype: torch.dtype
) -> None:
    """Contiguous whole numbers on the CPU; None in the shape is any size."""
    if not isinstance(tensor, torch.Tensor):
        raise InputError(f"{name} is a {type(tensor).__name__}; give a torch.Tensor")
    fits = tensor.dim() == len(shape) and all(n in (None, size) for n, size in zip(shape, tensor.shape))
    if not fits or tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        kind = str(dtype).removeprefix("torch.")
        raise InputError(f"{name} is {describe(tensor)}; give contiguous {kind} [{wanted}] on the CPU")


def _is_int(x: object) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _per_head(name: str, tensor: torch.Tensor | None, heads: int) -> int:
    if tensor is None:
        return 0
    check_tensor(name, tensor)
    if tensor.dtype != torch.float32 or tensor.shape != (heads,) or not tensor.is_contiguous():
        raise InputError(f"{name} is {describe(tensor)}; give a contiguous float32 [{heads}], one a head")
    return tensor.data_ptr()


def _by_distance(tensor: torch.Tensor | None, heads: int) -> tuple[int, int]:
    """The address of a bias by distance, and the largest distance that it has a number for."""
    if tensor is None:
        return 0, 0
    check_tensor("distance_bias", tensor)
    fits = tensor.dtype == torch.float32 and tensor.dim() == 2 and len(tensor) == heads
    if not fits or tensor.shape[1] % 2 == 0 or not tensor.is_contiguous():
        raise InputError(
            f"distance_bias is {describe(tensor)}; give contiguous float32 [{heads}, 2 reach + 1], those of "
            "distances -reach to reach"
        )
    return tensor.data_ptr(), tensor.shape[1] // 2
