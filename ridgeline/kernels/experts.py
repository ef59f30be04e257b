"""Mixtures of experts: choosing experts, and the weighted sum of what they make of their rows.

A row's choice and sum depend on that row alone, so its bits are the same in any batch: ties go to the lower
number, and outputs are added in the order of the experts' numbers. For tensors on the CPU.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import torch

from ridgeline import _native
from ridgeline.errors import InputError
from ridgeline.kernels.checks import (
    DTYPES,
    check_matrix,
    check_no_gradient,
    check_vector,
    describe,
    overlap,
    same_place,
)
from ridgeline.kernels.linear import ACTIVATIONS, GATED, PackedLinear

SCORINGS = {"softmax": _native.Scoring.softmax, "sigmoid": _native.Scoring.sigmoid}
GROUP_SCORES = {"max": _native.GroupScore.max, "top2": _native.GroupScore.top2}


def route(
    logits: torch.Tensor,
    chosen: int,
    *,
    scoring: str = "softmax",
    normalised: bool = True,
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
    groups: int = 1,
    open_groups: int = 1,
    group_score: str = "max",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``chosen`` experts of every row, int32 ``[rows, chosen]`` in ascending order, and their weights,
    float32 ``[rows, chosen]``.

    - ``logits``: float32 ``[rows, experts]``, of which ``scoring``, softmax or sigmoid, makes scores.
    - ``bias``: float32 or bfloat16 ``[experts]``, added to the scores for the choice alone.
    - ``groups``: equal groups of experts; only ``open_groups`` of them are chosen from, those whose best
      expert (``max``) or best two together (``top2``) score highest.
    - ``normalised``: whether a row's weights are divided by their sum; then they are times ``scale``.

    Raises InputError that names the argument for one that does not fit.
    """
    _check_float32("logits", logits)
    rows, experts = logits.shape
    if scoring not in SCORINGS or group_score not in GROUP_SCORES:
        raise InputError(
            f"scoring is {scoring!r} and group_score {group_score!r}; choose of {', '.join(SCORINGS)} and of "
            f"{', '.join(GROUP_SCORES)}"
        )
    if groups < 1 or experts % groups or not 1 <= open_groups <= groups:
        raise InputError(f"groups are {groups}, {open_groups} of them open, for {experts} experts")
    if not 0 < chosen <= experts // groups * open_groups:
        raise InputError(f"chosen is {chosen}; give 1 to {experts // groups * open_groups}")
    if not math.isfinite(scale):
        raise InputError(f"scale is {scale!r}; give a finite number")
    if bias is not None:
        check_vector("bias", bias, experts)
    numbers, weights = torch.empty(rows, chosen, dtype=torch.int32), torch.empty(rows, chosen)
    _native.route(
        rows,
        experts,
        logits.data_ptr(),
        logits.stride(0),
        SCORINGS[scoring],
        0 if bias is None else bias.data_ptr(),
        _native.Dtype.fp32 if bias is None else DTYPES[bias.dtype],
        groups,
        open_groups,
        GROUP_SCORES[group_score],
        normalised,
        scale,
        chosen,
        numbers.data_ptr(),
        weights.data_ptr(),
    )
    return numbers, weights


def mix_experts(
    x: torch.Tensor,
    numbers: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Sequence[PackedLinear],
    down: Sequence[PackedLinear],
    activation: str,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """residual + the sum over a row's experts of weight * down(act(gate x) * (up x)): ``[rows, columns]``.

    - ``x``: float32 ``[rows, in]``.
    - ``numbers``, ``weights``: int32 and float32 ``[rows, chosen]``, as :func:`route` gives them.
    - ``gate_up``, ``down``: of every expert its packed matrices, all of one shape and format; ``gate_up`` are
      gated.
    - ``activation``: silu, gelu, gelu_tanh, relu or tanh, with ``_gated`` after it.
    - ``residual``, ``out``: float32 of the result's shape; the residual may be ``out``.

    Each expert that a row takes multiplies all rows that take it at once. Raises InputError that names the
    argument for one that does not fit, and for an expert that is not there.
    """
    _check_float32("x", x)
    for name, matrices in (("gate_up", gate_up), ("down", down)):
        kinds = {(m.shape, m.format, m.gated) if isinstance(m, PackedLinear) else None for m in matrices}
        if None in kinds or len(kinds) != 1 or next(iter(kinds))[2] != (name == "gate_up"):
            raise InputError(f"{name} must be packed weights of one shape and format, gated in gate_up alone")
    if len(gate_up) != len(down) or gate_up[0].columns != down[0].shape[1]:
        raise InputError(
            f"gate_up has {len(gate_up)} of {gate_up[0].columns} columns, down {len(down)} of "
            f"{down[0].shape[1]} inputs; give the same"
        )
    if x.shape[1] != gate_up[0].shape[1]:
        raise InputError(f"x is {describe(x)}; the experts take {gate_up[0].shape[1]} columns")
    plain = activation.removesuffix(GATED) if isinstance(activation, str) else activation
    if plain not in ACTIVATIONS or plain == activation:
        names = ", ".join(name + GATED for name in ACTIVATIONS)
        raise InputError(f"activation is {activation!r}; choose one of: {names}")
    _check_routes(numbers, weights, len(x), len(gate_up))
    shape = (len(x), down[0].columns)
    out = torch.empty(shape) if out is None else out
    for name, matrix in (("out", out), ("residual", residual)):
        if matrix is not None:
            _check_float32(name, matrix)
            if matrix.shape != shape:
                raise InputError(f"{name} is {describe(matrix)}; the result is {list(shape)}")
    if overlap(out, x) or (residual is not None and not same_place(out, residual) and overlap(out, residual)):
        raise InputError("out shares memory with x or residual; give one of its own")
    addresses = [array("Q", (m.data.data_ptr() for m in matrices)) for matrices in (gate_up, down)]
    _native.mix(
        len(x),
        len(gate_up),
        x.data_ptr(),
        x.stride(0),
        numbers.shape[1],
        numbers.data_ptr(),
        weights.data_ptr(),
        gate_up[0].layout,
        addresses[0].buffer_info()[0],
        down[0].layout,
        addresses[1].buffer_info()[0],
        ACTIVATIONS[plain],
        0 if residual is None else residual.data_ptr(),
        0 if residual is None else residual.stride(0),
        out.data_ptr(),
        out.stride(0),
    )
    return out


def _check_float32(name: str, matrix: torch.Tensor) -> None:
    check_matrix(name, matrix)
    check_no_gradient(name, matrix)
    if matrix.dtype != torch.float32:
        raise InputError(f"{name} is {matrix.dtype}; give torch.float32")


def _check_routes(numbers: torch.Tensor, weights: torch.Tensor, rows: int, experts: int) -> None:
    _check_float32("weights", weights)
    fits = isinstance(numbers, torch.Tensor) and numbers.dtype == torch.int32 and numbers.dim() == 2
    if not fits or numbers.device.type != "cpu" or numbers.shape[1] < 1 or len(numbers) != rows:
        raise InputError(f"numbers must be int32 [{rows}, chosen] on the CPU, with at least one chosen")
    if weights.shape != numbers.shape or not (numbers.is_contiguous() and weights.is_contiguous()):
        raise InputError(f"weights is {describe(weights)}; give contiguous numbers and weights of one shape")
    if rows and not 0 <= int(numbers.min()) <= int(numbers.max()) < experts:
        raise InputError(f"numbers name experts outside of 0 to {experts - 1}")
