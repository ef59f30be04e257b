"""Mixtures of experts on PyTorch: choosing experts, and summing what they make of their rows.

A row's choice and the order of its sum depend on that row alone: ties go to the lower number, and outputs
are added in the order of the experts' numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ridgeline.ops.mixture import Router


@dataclass(frozen=True)
class Routes:
    """The ``experts`` that every row takes, int64 [rows, chosen] in ascending order, and their ``weights``,
    [rows, chosen]."""

    experts: torch.Tensor
    weights: torch.Tensor


def choose(logits: torch.Tensor, router: Router, bias: torch.Tensor | None) -> Routes:
    """The routes of rows with these ``logits`` [rows, experts], as :class:`Router` says, in float32 at
    least."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    scores = torch.softmax(wide, -1) if router.scoring == "softmax" else _sigmoid(wide)
    preference = scores if bias is None else scores + bias
    if router.groups > 1:
        preference = preference.masked_fill(~_open(preference, router), -torch.inf)
    ranked = torch.sort(preference.detach(), dim=-1, descending=True, stable=True).indices
    chosen = ranked[:, : router.chosen].sort(-1).values
    weights = scores.gather(1, chosen)
    if router.normalised:
        weights = weights / _sum(weights)
    return Routes(chosen, (weights * router.scale).to(logits.dtype))


def _sigmoid(x: torch.Tensor) -> torch.Tensor:
    """1 / (1 + e^-x) as a softmax over x and 0: PyTorch's own sigmoid rounds an element by where it lies
    in the tensor, a softmax by its row."""
    return torch.softmax(torch.stack((x, torch.zeros_like(x)), -1), -1)[..., 0]


def _open(preference: torch.Tensor, router: Router) -> torch.Tensor:
    """Which experts are in the groups that a row may choose from: bool [rows, experts]."""
    rows, experts = preference.shape
    grouped = preference.view(rows, router.groups, experts // router.groups)
    if router.group_score == "max":
        value = grouped.max(-1).values
    else:
        value = grouped.topk(2, -1).values.sum(-1)
    best = torch.sort(value, dim=-1, descending=True, stable=True).indices[:, : router.open_groups]
    is_open = torch.zeros_like(value, dtype=torch.bool).scatter_(1, best, True)
    return is_open.repeat_interleave(experts // router.groups, 1)


def _sum(weights: torch.Tensor) -> torch.Tensor:
    """Sums of the rows, [rows, 1], term by term."""
    total = weights[:, :1]
    for i in range(1, weights.shape[1]):
        total = total + weights[:, i : i + 1]
    return total


def mix(x: torch.Tensor, routes: Routes, run: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The weighted sum of ``run(expert, rows of x)`` over every row's experts, [rows, width]."""
    rows, chosen = routes.experts.shape
    flat = routes.experts.flatten()
    order = torch.sort(flat, stable=True).indices  # places in `flat`, by expert and then by row
    counts = torch.bincount(flat)
    pieces = []
    used = counts.nonzero().flatten().tolist()
    for expert, places in zip(used, order.split(counts[used].tolist()), strict=True):
        pieces.append(run(expert, x[places // chosen]))
    where = torch.empty_like(order)
    where[order] = torch.arange(len(order), device=order.device)
    outputs = torch.cat(pieces)[where].view(rows, chosen, -1)
    total = outputs[:, 0] * routes.weights[:, :1]
    for i in range(1, chosen):
        total = total + outputs[:, i] * routes.weights[:, i : i + 1]
    return total
