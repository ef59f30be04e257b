"""``ridgeline compare``: models, devices and settings side by side, with what a million tokens cost.

A point is one batch that runs alone: all prompts at once, then one token of each sequence a step until the
outputs are there. So its throughput is that of static batches; a server that mixes the two is simulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ridgeline.analysis.arguments import config_of, device_of, whole_number
from ridgeline.analysis.setting import Setting, settle
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models import ModelConfig
from ridgeline.models.model import refuse_diffusion

#: Points of one comparison at most: more would only fill memory.
MOST_POINTS = 200_000
#: Batch sizes that are tried where none are given.
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Point:
    """One workload in one setting. ``tpot_seconds`` is None where no token follows the first;
    ``tokens_per_second`` counts output tokens (an encoder's: input tokens), prompts not included;
    ``dollars_per_million`` of them is None where the device has no price."""

    model: str
    device: str
    weights: str
    cache: str
    prompt: int
    output: int
    batch: int
    ttft_seconds: float
    tpot_seconds: float | None
    total_seconds: float
    tokens_per_second: float
    memory_bytes: float
    fits: bool
    dollars_per_million: float | None


@dataclass(frozen=True)
class Limits:
    """The longest that a first token, and each one after it, may take, in seconds."""

    ttft: float | None = None
    tpot: float | None = None

    def __post_init__(self) -> None:
        for name, limit in (("ttft", self.ttft), ("tpot", self.tpot)):
            if limit is not None and not 0 < limit < float("inf"):
                raise InputError(f"the limit of {name} must be a positive number of seconds, not {limit!r}")

    def broken_by(self, point: Point) -> str | None:
        """Which limit the point breaks, in words."""
        if not point.fits:
            return "does not fit in memory"
        if self.ttft is not None and point.ttft_seconds > self.ttft:
            return "its first token comes too late"
        if self.tpot is not None and (point.tpot_seconds or 0.0) > self.tpot:
            return "its tokens take too long"
        return None


@dataclass(frozen=True)
class Best:
    """The batch with the highest throughput that a setting reaches within the limits. Where none does,
    ``broken`` says what the smallest batch breaks, and ``point`` is that one."""

    point: Point
    broken: str | None


@dataclass(frozen=True)
class Comparison:
    """All points, and settings that have none, each with the reason."""

    points: tuple[Point, ...]
    refused: tuple[str, ...]
    limits: Limits

    @property
    def best(self) -> tuple[Best, ...]:
        """The best batch of every setting and workload, in their order."""
        groups: dict[tuple[Any, ...], list[Point]] = {}
        for p in self.points:
            groups.setdefault((p.model, p.device, p.weights, p.cache, p.prompt, p.output), []).append(p)
        return tuple(self._best(points) for points in groups.values())

    def _best(self, points: Sequence[Point]) -> Best:
        allowed = [p for p in points if self.limits.broken_by(p) is None]
        if allowed:
            return Best(max(allowed, key=lambda p: p.tokens_per_second), None)
        least = min(points, key=lambda p: p.batch)
        return Best(least, self.limits.broken_by(least))


def compare(
    models: Sequence[str | ModelConfig],
    devices: Sequence[str | Device],
    *,
    weights: Sequence[str | None] = (None,),
    caches: Sequence[str | None] = (None,),
    prompts: Sequence[int] = (512,),
    outputs: Sequence[int] = (128,),
    batches: Sequence[int] = BATCHES,
    limits: Limits | None = None,
) -> Comparison:
    """Every model on every device in every format, at every prompt, output and batch size.

    ``weights`` and ``caches`` are storage formats, None the model's own. A setting that the model or the
    device refuses (a length beyond its window, a format that a machine was not measured with) is listed as
    refused, with the reason.

    Raises InputError for an unknown model, device or format, numbers below 1, and too many points.
    """
    limits = limits or Limits()
    for name, numbers, least in (("prompt", prompts, 1), ("output", outputs, 0), ("batch", batches, 1)):
        for n in numbers:
            whole_number(name, n, least)
    configs = [config_of(m) for m in models]
    for config in configs:
        refuse_diffusion(config)
    hardware = [device_of(d) for d in devices]
    settings = list(product(configs, hardware, weights, caches))
    count = len(settings) * len(prompts) * len(outputs) * len(batches)
    if not 0 < count <= MOST_POINTS:
        raise InputError(f"{count:,} points to compare: give 1 to {MOST_POINTS:,} of them")
    points: list[Point] = []
    refused: dict[str, None] = {}
    for config, device, weight, cache in settings:
        lengths, reasons = _lengths(config, prompts, outputs)
        refused.update(dict.fromkeys(reasons))
        if not lengths:
            continue
        try:
            setting = settle(config, device, weight, cache if config.is_decoder else None)
            points += _points(setting, [(*length, b) for length in lengths for b in batches])
        except InputError as error:
            refused[f"{config.name} on {device.name}: {error}"] = None
    return Comparison(tuple(points), tuple(refused), limits)


def _lengths(
    config: ModelConfig, prompts: Sequence[int], outputs: Sequence[int]
) -> tuple[list[tuple[int, int]], list[str]]:
    """The pairs of prompt and output that the model takes, and why it takes no other."""
    outputs = outputs if config.is_decoder else (0,)
    lengths, reasons = [], []
    for prompt, output in product(prompts, outputs):
        if prompt + output <= config.window:
            lengths.append((prompt, output))
        else:
            reasons.append(f"{config.name} takes {config.window} tokens at most, not {prompt} + {output}")
    return lengths, reasons


def _points(setting: Setting, workloads: Sequence[tuple[int, int, int]]) -> Iterator[Point]:
    """One array over all workloads, each of prompt, output and batch."""
    import numpy

    prompt, output, batch = numpy.array(workloads).T
    ttft = _array(setting.first(prompt, batch).seconds, prompt)
    steps = numpy.maximum(output - 1, 0)
    tpot = numpy.zeros(len(prompt))
    if steps.any():
        tpot = setting.mean_next(prompt, steps, batch)
    total = ttft + steps * tpot
    tokens = numpy.where(output > 0, output, prompt) * batch
    memory = (
        setting.model.weight_bytes()
        + setting.cache_bytes(prompt, output, batch)
        + setting.activation_bytes(prompt, batch)
    )
    price = setting.device.price_per_hour
    for i, (n, out, b) in enumerate(workloads):
        rate = float(tokens[i] / total[i])
        yield Point(
            model=setting.config.name,
            device=setting.device.name,
            weights=setting.weights,
            cache=setting.cache if setting.config.is_decoder else "",
            prompt=n,
            output=out,
            batch=b,
            ttft_seconds=float(ttft[i]),
            tpot_seconds=float(tpot[i]) if out > 1 else None,
            total_seconds=float(total[i]),
            tokens_per_second=rate,
            memory_bytes=float(memory[i]),
            fits=bool(memory[i] <= setting.device.memory_bytes),
            dollars_per_million=None if price is None else price / 3600 / rate * 1e6,
        )


def _array(x: Any, like: Any) -> Any:
    import numpy

    return numpy.broadcast_to(numpy.asarray(x, dtype=float), like.shape)
