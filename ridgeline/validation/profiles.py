"""Measured profiles of real accelerators beside predictions: what calibration gives, and what does without.

``measured/KIND_DEVICE.csv.gz`` holds the points: facts by others, reduced to what a time model needs. Their
sources, both under the MIT licence: Microsoft Vidur's operator profiles, of Llama-2-7B's shapes under
tensor parallelism 1 to 8, medians rounded to whole microseconds; and KAIST CASYS LLMServingSim's profiles of
vLLM with Llama-3.1-8B. The catalogue's constants are fitted to a few of them, which are kept apart: errors
are on the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MEASURED = Path(__file__).parent / "measured"
VIDUR = "Microsoft Vidur's operator profiles"
LLMSERVINGSIM = "KAIST CASYS LLMServingSim's profiles"


@dataclass(frozen=True)
class Profiled:
    """A device of the catalogue that was profiled: by whom, of which kinds of kernel, and how many points of
    all kinds together its constants are fitted to. Twelve of 64 are left for collectives where these were
    measured apart."""

    source: str
    kinds: tuple[str, ...]
    fitted_to: int


PROFILED: Mapping[str, Profiled] = {
    "a100-80gb": Profiled(VIDUR, ("gemm", "elementwise", "collective"), 64),
    "h100-sxm": Profiled(VIDUR, ("gemm", "elementwise"), 52),
    "a40": Profiled(VIDUR, ("gemm", "elementwise"), 52),
    "rtx-4090": Profiled(LLMSERVINGSIM, ("gemm", "elementwise", "attention"), 64),
}
#: What is asked of a calibrated device: the mean error at most, or the share of close times at least.
MOST_MEAN: Mapping[str, float] = {"gemm": 0.08, "attention": 0.12, "collective": 0.15}
LEAST_CLOSE: Mapping[str, float] = {"elementwise": 0.85}


@dataclass(frozen=True)
class Judged:
    """Errors of one device's predictions of one kind, on ``points`` that nothing was fitted to; ``fitted_to``
    others were. Mean absolute relative errors are those with the device's own constants, with generic ones of
    other devices, and with the datasheet alone, where a kind has such a bound. ``close``: within 1 µs or
    15 %. ``wanted`` is what is asked, and ``ok`` whether it holds."""

    device: str
    kind: str
    source: str
    fitted_to: int
    points: int
    mean: float
    median: float
    close: float
    generic_mean: float
    datasheet_mean: float | None
    wanted: str
    ok: bool


def judge_profiles() -> list[Judged]:
    """Every profiled device and kind, judged."""
    return [judged for name in PROFILED for judged in _judge(name)]


def _judge(name: str) -> list[Judged]:
    import numpy as np

    from ridgeline.hardware import load_device
    from ridgeline.predict.calibrate.calibrate import errors, shares
    from ridgeline.predict.calibrate.choose import choose
    from ridgeline.predict.gpu.generic import constants_of, generic_constants
    from ridgeline.predict.gpu.kinds import kind as kind_of

    device, profiled = load_device(name), PROFILED[name]
    points = profiled_points(name)
    found = []
    for kind, count in shares({k: len(p) for k, p in points.items()}, profiled.fitted_to).items():
        rest = np.ones(len(points[kind]), bool)
        rest[choose(points[kind], count)] = False
        judged = points[kind].take(rest)
        own = errors(device, constants_of(device, kind), judged)
        generic = errors(device, generic_constants(device, kind), judged)
        roofline = kind_of(kind).roofline
        datasheet = None if roofline is None else _off(roofline(device, judged), judged.seconds)
        wanted, held = _wanted(kind, own.mean, own.close)
        found.append(
            Judged(
                device=name,
                kind=kind,
                source=profiled.source,
                fitted_to=count,
                points=own.points,
                mean=own.mean,
                median=own.median,
                close=own.close,
                generic_mean=generic.mean,
                datasheet_mean=datasheet,
                wanted=wanted,
                ok=held,
            )
        )
    return found


def profiled_points(name: str) -> dict[str, object]:
    """The measured points of a device by their kind, as :class:`ridgeline.predict.gpu.kinds.Points`."""
    from ridgeline.predict.calibrate.points import read_points

    return read_points(MEASURED / f"{kind}_{name}.csv.gz" for kind in PROFILED[name].kinds)


def _off(predicted, measured) -> float:
    """The mean absolute relative error."""
    return float(abs(predicted / measured - 1).mean())


def _wanted(kind: str, mean: float, close: float) -> tuple[str, bool]:
    if kind in LEAST_CLOSE:
        return f"close >= {LEAST_CLOSE[kind]:.0%}", close >= LEAST_CLOSE[kind]
    return f"mean <= {MOST_MEAN[kind]:.0%}", mean <= MOST_MEAN[kind]
