"""Published figures beside what Ridgeline computes in their place, from its one model definition.

``FIGURES`` holds them as data, one module a document or kind of publication; :func:`validate`
computes every one, and :func:`judge_profiles` holds predicted times against measured profiles of
accelerators. See :mod:`ridgeline.validation.figures` for when a figure counts as reproduced.
"""

from ridgeline.validation import (
    bottleneck,
    dataflows,
    diffusion,
    fast,
    flat,
    mixtures,
    performance,
    publications,
    serving,
    thoughts_intensity,
    thoughts_long_context,
    training,
)
from ridgeline.validation.figures import Figure, Result, compare
from ridgeline.validation.profiles import Judged, judge_profiles

FIGURES: tuple[Figure, ...] = (
    *thoughts_intensity.FIGURES,
    *thoughts_long_context.FIGURES,
    *performance.FIGURES,
    *diffusion.VIDEO_FIGURES,
    *fast.FIGURES,
    *flat.FIGURES,
    *bottleneck.FIGURES,
    *dataflows.FIGURES,
    *training.FIGURES,
    *publications.FIGURES,
    *diffusion.PAPER_FIGURES,
    *mixtures.FIGURES,
    *serving.FIGURES,
)


def validate() -> list[Result]:
    """Every published figure with Ridgeline's value, in the order of the sources."""
    return [compare(figure) for figure in FIGURES]


__all__ = ["FIGURES", "Figure", "Judged", "Result", "compare", "judge_profiles", "validate"]
