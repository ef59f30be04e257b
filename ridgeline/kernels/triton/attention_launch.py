"""One attention of checked arguments: which kernel, tile and grid it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ridgeline.errors import InputError
from ridgeline.kernels.triton import attention_forward as kernels
from ridgeline.kernels.triton import naive
from ridgeline.kernels.triton.arguments import (
    Policy,
    check_groups,
    check_no_gradient,
    check_schedule,
    result,
)
from ridgeline.kernels.triton.attention_merge import merge
from ridgeline.kernels.triton.configs import SPLIT, Tiles, programs, tiles
from ridgeline.kernels.triton.descriptors import boxes
from ridgeline.kernels.triton.runtime import OPTIONS, TRITON_DTYPE, padded, triton

#: Partial states that one step of merging takes.
STATES = 16
#: Sequences whose splits one program can list.
MOST_LISTED = 4096
_WAY_OUT = "use ridgeline.kernels.triton.attention_with_gradient"


@dataclass(frozen=True)
class Layout:
    """Where a call's rows and keys lie. ``cu_rows`` None is dense rows; keys are packed by ``cu_keys``, in
    pages by ``tables``, else dense; ``lengths`` are each sequence's keys, None for ``max_keys`` of them."""

    batch: int
    max_rows: int
    max_keys: int
    cu_rows: torch.Tensor | None = None
    cu_keys: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    tables: torch.Tensor | None = None


@dataclass(frozen=True)
class Scales:
    """What elements of one byte are multiplied by: float32 ``[batch or pages, heads, tokens]``, or packed
    ``[heads, tokens]``, tokens side by side. None where elements are floats of their own."""

    q: torch.Tensor | None = None
    k: torch.Tensor | None = None
    v: torch.Tensor | None = None


NO_SCALES = Scales()


def run(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    policy: Policy,
    schedule: str,
    return_lse: bool,
    out: torch.Tensor | None,
    scales: Scales = NO_SCALES,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """One attention of checked arguments; the result is of q's dtype, or of the values' where q is FP8."""
    check_schedule(schedule)
    for name, tensor, scale in (("k", k, scales.k), ("v", v, scales.v)):
        if scale is None and tensor.dtype != q.dtype and scales.q is None:
            raise InputError(f"{name} is {tensor.dtype} and q {q.dtype}; give one dtype")
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_no_gradient(name, tensor, _WAY_OUT)
    check_groups(q, k.shape[-2], "k")
    if schedule in ("split_kv", "invariant") and layout.batch > MOST_LISTED:
        raise InputError(
            f"schedule is {schedule!r} for {layout.batch} sequences; it takes at most {MOST_LISTED}: leave it"
            " out"
        )
    dtype = q.dtype if scales.q is None else v.dtype
    out = result(out, (*q.shape[:-1], v.shape[-1]), dtype, q.device)
    lse = torch.empty(*q.shape[:-3], q.shape[-2], q.shape[-3], dtype=torch.float32, device=q.device)
    if q.numel() and out.numel():
        if schedule == "naive":
            naive.attention_into(q, k, v, layout, policy, out, lse, scales)
        else:
            launch(q, k, v, layout, policy, schedule, out, lse, scales)
    return (out, lse) if return_lse else out


def launch(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    policy: Policy,
    schedule: str,
    out: torch.Tensor,
    lse: torch.Tensor,
    scales: Scales = NO_SCALES,
) -> None:
    """The forward kernel into ``out`` and ``lse``, and the merging of its splits.

    Splits have one tile, that of decodes, whatever their rows are: a row's bits do not depend on how many
    others there are. ``invariant`` takes one tile with and without splits, and multiplications and additions
    that no compiler fuses, so that what is not split has the same bits, too.
    """
    heads, kv_heads = q.shape[-2], k.shape[-2]
    group, dim, size = heads // kv_heads, max(q.shape[-1], v.shape[-1]), k.element_size()
    fixed = schedule == "invariant"
    few = tiles("attention_invariant" if fixed else "decode", dim, size, q.device)
    one_tile = layout.max_rows * group <= few.m
    if fixed:
        # One split alone has the bits of its merging, but for a sink's logit, which is added elsewhere; and
        # only splits take a window's tiles in their order.
        split = layout.max_keys > SPLIT or policy.left >= 0 or policy.sink_logits is not None
    else:
        split = schedule == "split_kv" or (
            schedule == "auto" and one_tile and layout.max_keys > SPLIT and layout.batch <= MOST_LISTED
        )
    if not split:
        many = "attention" if scales.q is None else "attention_fp8"
        keeps = fixed or (one_tile and scales.q is None)
        tile = few if keeps else tiles(many, dim, size, q.device)
        cells = -(-layout.max_rows * group // tile.m)
        grid = layout.batch * kv_heads * cells
        _forward(
            kernels.forward, grid, q, k, v, layout, policy, tile, cells, out, lse, scales, False, not fixed
        )
        return
    splits, cells = max(1, -(-layout.max_keys // SPLIT)), -(-layout.max_rows * group // few.m)
    o = torch.empty(splits, *out.shape, dtype=torch.float32, device=q.device)
    o_lse = torch.empty(splits, *lse.shape, dtype=torch.float32, device=q.device)
    grid = min(programs(few, q.device), layout.batch * kv_heads * cells * splits)
    _forward(
        kernels.forward_splits, grid, q, k, v, layout, policy, few, cells, o, o_lse, scales, True, not fixed
    )
    _merge(o, o_lse, layout, policy, out, lse)


def _forward(
    kernel: triton.JITFunction,
    grid: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: Layout,
    policy: Policy,
    tile: Tiles,
    cells: int,
    o: torch.Tensor,
    lse: torch.Tensor,
    scales: Scales,
    split: bool,
    fused: bool,
) -> None:
    dim, value_dim = q.shape[-1], v.shape[-1]
    paged = layout.tables is not None
    table = layout.tables if paged else q
    page = k.shape[1] if paged else 1
    found = boxes(k, v, tile.n, page if paged else 0) if tile.bulk else None
    stored = scales.k if scales.k is not None else scales.v
    float_type = q.dtype if scales.q is None else v.dtype
    least = 32 if scales.q is not None else 16  # inner elements of a product of FP8
    kernel[(grid,)](
        q, *(found or (k, v)), or_(scales.q, q), or_(scales.k, q), or_(scales.v, q), o, lse,
        or_(layout.cu_rows, q), or_(layout.cu_keys, q), or_(layout.lengths, q), table,
        or_(policy.alibi_slopes, q), or_(policy.sink_logits, q), or_(policy.distance_bias, q),
        *strides(q), *strides(k), *strides(v), *_scale_strides(scales.q), *_scale_strides(stored),
        o.stride(0) if split else 0, *strides(o[0] if split else o),
        lse.stride(0) if split else 0, *lse_strides(lse[0] if split else lse),
        table.stride(0) if paged else 0,
        layout.max_rows, layout.max_keys, layout.batch, k.shape[-2], cells,
        policy.scale, policy.softcap, max(policy.left, 0), max(policy.right, 0), policy.sinks,
        policy.dropout, policy.seed, policy.reach,
        GROUP=q.shape[-2] // k.shape[-2], DIM=dim, VALUE_DIM=value_dim, FLOAT=TRITON_DTYPE[float_type],
        BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_D=max(padded(dim), least), BLOCK_E=padded(value_dim),
        PACKED=layout.cu_rows is not None, PACKED_KEYS=layout.cu_keys is not None,
        LENGTHS=layout.lengths is not None, PAGED=paged, PAGE=page,
        **policy.constants(),
        SINK=policy.sink_logits is not None and not split,  # enters once, not once a split
        SPLIT=SPLIT if split else 0, BATCH=triton.next_power_of_2(layout.batch) if split else 0,
        SCALED_Q=scales.q is not None, SCALED_K=scales.k is not None, SCALED_V=scales.v is not None,
        BULK=found is not None,
        **tile.options(fused=fused),
    )  # fmt: skip


def _merge(
    partial: torch.Tensor,
    partial_lse: torch.Tensor,
    layout: Layout,
    policy: Policy,
    out: torch.Tensor,
    lse: torch.Tensor,
) -> None:
    lengths = layout.lengths
    if layout.cu_keys is not None:
        lengths = layout.cu_keys.diff()
    heads, dim = out.shape[-2:]
    merge[(layout.batch * layout.max_rows * heads,)](
        partial, partial_lse, out, lse,
        or_(layout.cu_rows, out), or_(lengths, out), or_(policy.sink_logits, out),
        partial.stride(0), *strides(partial[0]), partial_lse.stride(0), *lse_strides(partial_lse[0]),
        *strides(out), *lse_strides(lse), layout.max_rows, heads, layout.max_keys, 0,
        max(policy.left, 0), policy.sinks,
        dim, padded(dim), STATES, layout.cu_rows is not None, lengths is not None,
        policy.left >= 0, policy.sinks > 0, policy.sink_logits is not None, SPLIT, **OPTIONS,
    )  # fmt: skip


def or_(tensor: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    """A kernel's argument that it does not read still is a tensor."""
    return other if tensor is None else tensor


def strides(x: torch.Tensor) -> tuple[int, int, int]:
    """Of a sequence or page, a row and a head."""
    return (x.stride(0) if x.dim() == 4 else 0, *x.stride()[-3:-1])


def lse_strides(lse: torch.Tensor) -> tuple[int, int, int]:
    return (lse.stride(0) if lse.dim() == 3 else 0, lse.stride(-1), lse.stride(-2))


def _scale_strides(scales: torch.Tensor | None) -> tuple[int, int]:
    """Of a sequence or page, and a head."""
    if scales is None:
        return 0, 0
    return scales.stride(0) if scales.dim() == 3 else 0, scales.stride(-2)
