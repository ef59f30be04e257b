"""Fitting a few constants to a few points, held near what is plausible.

The constants are those that make the points and a prior most likely: each constant is drawn towards its
usual value, the more loosely the wider its ``spread``, so that what the points say nothing of stays usual.
Errors count relatively, and large ones in proportion rather than squared (soft L1), because a library that
picks a poor kernel for a shape makes outliers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

#: Relative error beyond which a point's pull grows no more.
SCALE = 0.03
#: Where derivatives are taken, in logarithms: the models have kinks, which small steps would fall into.
STEP = 0.02
ROUNDS = 40


@dataclass(frozen=True)
class Prior:
    """What a constant usually is, and how far from it others lie: the standard deviation of its logarithm,
    or, of a share between 0 and 1, of the logarithm of its odds."""

    usual: float
    spread: float
    is_share: bool = False

    def inward(self, x: float) -> float:
        return float(np.log(x / (1 - x) if self.is_share else x))

    def outward(self, y: float) -> float:
        return float(1 / (1 + np.exp(-y)) if self.is_share else np.exp(y))


def fit_constants(
    kind: Callable[..., Any],
    priors: Mapping[str, Prior],
    errors: Callable[[Any], np.ndarray],
    scale: float = SCALE,
) -> Any:
    """The ``kind`` of constants that fits best. ``errors`` gives, for constants, the error of each point;
    ``scale`` is the one up to which it counts squared. Levenberg's and Marquardt's method, with the weights
    of soft L1 renewed every round."""
    names = list(priors)
    usual = np.array([priors[n].inward(priors[n].usual) for n in names])
    spread = np.array([priors[n].spread for n in names])

    def constants(y: np.ndarray) -> Any:
        return kind(**{n: priors[n].outward(v) for n, v in zip(names, y, strict=True)})

    def cost(y: np.ndarray) -> tuple[float, np.ndarray]:
        r = errors(constants(y)) / scale
        return float(2 * (np.sqrt(1 + r * r) - 1).sum() + (((y - usual) / spread) ** 2).sum()), r

    y, damping = usual.copy(), 1e-2
    best, r = cost(y)
    for _ in range(ROUNDS):
        slopes = [(cost(y + h)[1] - cost(y - h)[1]) / (2 * STEP) for h in np.eye(len(y)) * STEP]
        jacobian, weight = np.stack(slopes, 1), 1 / np.sqrt(1 + r * r)
        hessian = jacobian.T @ (weight[:, None] * jacobian) + np.diag(1 / spread**2)
        gradient = jacobian.T @ (weight * r) + (y - usual) / spread**2
        for _ in range(8):
            move = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), gradient)
            tried = y - np.clip(move, -0.7, 0.7)
            now, found = cost(tried)
            if now < best:
                break
            damping *= 4
        else:
            break
        gained, y, best, r = best - now, tried, now, found
        damping = max(damping / 5, 1e-4)
        if gained < 1e-5 * best:
            break
    return constants(y)


def rounded(constants: Any, digits: int = 4) -> Any:
    """The same constants with so many significant digits: more would claim what a fit cannot know."""
    return type(constants)(**{n: float(f"{v:.{digits}g}") for n, v in asdict(constants).items()})
