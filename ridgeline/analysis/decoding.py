"""``ridgeline decoding``: what each technique of decoding does to the time of a token, as it is turned up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ridgeline.analysis.advice.plan import Plan, Workbench
from ridgeline.analysis.arguments import config_of, device_of, whole_number
from ridgeline.analysis.setting import settle
from ridgeline.engine.speculation.length import expected_tokens
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models import ModelConfig
from ridgeline.models.model import refuse_diffusion
from ridgeline.ops.formats import get_format

BATCHES = tuple(2**n for n in range(9))
ACCEPTANCES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
#: A draft's pass over one of the target's: none for look-up in the text.
COSTS = (0.0, 0.05, 0.1, 0.2)
MOST_DRAFTED = 16
#: Shares of the weights that memory may lack.
LACKING = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
FORMATS = ("int8", "int4-g32", "int4-g128")
WINDOW, SINKS = 1024, 4


@dataclass(frozen=True)
class CachePoint:
    """Seconds of a request whose output has ``output`` tokens, with a KV cache and without one."""

    output: int
    cached_seconds: float
    uncached_seconds: float


@dataclass(frozen=True)
class BatchPoint:
    """A step of ``batch`` sequences: seconds, tokens a second, whether it can run at all, and what it has to
    read from storage."""

    batch: int
    step_seconds: float
    tokens_per_second: float
    fits: bool
    streamed_bytes: float


@dataclass(frozen=True)
class SpeculationPoint:
    """The draft length that gains most, and what it gains, if a proposed token is accepted with probability
    ``acceptance`` and a draft's pass costs ``cost`` of the target's. 0 tokens gain nothing."""

    acceptance: float
    cost: float
    tokens: int
    gain: float


@dataclass(frozen=True)
class OffloadPoint:
    """A pass when memory lacks ``lacking`` of the weights: those bytes come from storage every time. With
    speculation several tokens share a pass."""

    lacking: float
    streamed_bytes: float
    tpot_seconds: float
    speculative_tpot_seconds: float


@dataclass(frozen=True)
class FormatPoint:
    """Weights of ``bits`` each, scales included: seconds a token, and bytes."""

    weights: str
    bits: float
    tpot_seconds: float
    weight_bytes: float


@dataclass(frozen=True)
class ContextPoint:
    """A step behind ``context`` tokens: all of them read, or the first SINKS and the last WINDOW only, with
    the bytes of the cache that each keeps."""

    context: int
    full_seconds: float
    streaming_seconds: float
    full_bytes: float
    streaming_bytes: float


@dataclass(frozen=True)
class Decoding:
    """What :func:`decoding` found; ``offloading`` is empty where the device has no storage, ``contexts`` of
    an encoder-decoder, which reads all of its prompt at every step."""

    model: str
    device: str
    device_title: str
    prompt: int
    output: int
    cache: tuple[CachePoint, ...]
    batches: tuple[BatchPoint, ...]
    speculation: tuple[SpeculationPoint, ...]
    offloading: tuple[OffloadPoint, ...]
    formats: tuple[FormatPoint, ...]
    contexts: tuple[ContextPoint, ...]


def decoding(
    model: str | ModelConfig,
    on: str | Device,
    *,
    prompt: int = 512,
    output: int = 128,
    weights: str | None = None,
    acceptance: float = 0.7,
) -> Decoding:
    """Sweeps over outputs, batches, acceptance, memory, weight formats and contexts, one at a time around a
    request of ``prompt`` and ``output`` tokens. ``acceptance`` is that of speculation beside offloading.

    Raises InputError for anything unknown, an encoder, numbers out of range, and a request beyond the window.
    """
    config = config_of(model)
    device = device_of(on)
    refuse_diffusion(config)
    if not config.is_decoder:
        raise InputError(
            f"{config.name} is an encoder: it decodes nothing; `explain`, `compare` and `advise` take it"
        )
    for name, value, least in (("prompt", prompt, 1), ("output", output, 2)):
        whole_number(name, value, least)
    if prompt + output > config.window:
        raise InputError(f"{config.name} takes {config.window} tokens at most, not {prompt} + {output}")
    if not 0 <= acceptance <= 1:
        raise InputError(f"acceptance must be from 0 to 1, not {acceptance!r}")
    bench = Workbench(config, device, prompt, output)
    plan = Plan(weights=weights)
    return Decoding(
        model=config.name,
        device=device.name,
        device_title=device.title,
        prompt=prompt,
        output=output,
        cache=tuple(_cache(bench, plan)),
        batches=tuple(_batches(bench, plan)),
        speculation=tuple(_speculation(bench, plan)),
        offloading=tuple(_offloading(bench, plan, acceptance)),
        formats=tuple(_formats(bench)),
        contexts=tuple(_contexts(bench, plan)),
    )


def _cache(bench: Workbench, plan: Plan) -> Iterator[CachePoint]:
    """Without a cache a token's work grows with the sequence, so that of all tokens with its square."""
    output = 16
    while bench.prompt + output <= min(bench.config.window, 64 * bench.prompt):
        work = replace(bench, output=output)
        with_cache, without = (work.outcome(replace(plan, keeps_cache=keeps)) for keeps in (True, False))
        yield CachePoint(output, with_cache.total_seconds, without.total_seconds)
        output *= 2


def _batches(bench: Workbench, plan: Plan) -> Iterator[BatchPoint]:
    for batch in BATCHES:
        found = bench.outcome(replace(plan, batch=batch))
        step = found.tpot_seconds
        yield BatchPoint(batch, step, batch / step, found.fits, found.streamed_bytes)


def _speculation(bench: Workbench, plan: Plan) -> Iterator[SpeculationPoint]:
    """A pass that verifies k tokens has k + 1 rows, which on this device take longer than one."""
    import numpy

    setting = settle(bench.config, bench.device, plan.weights)
    proposed = numpy.arange(MOST_DRAFTED + 1)
    longest = bench.config.window - bench.prompt - MOST_DRAFTED  # of the output, with all proposals behind it
    prompt, given = bench.prompt + min(longest - 1, 0), max(min(bench.output // 2, longest), 1)
    passes = setting.next(prompt, given, 1, 1 + proposed).seconds
    for acceptance in ACCEPTANCES:
        tokens = numpy.array([expected_tokens(acceptance, int(k)) for k in proposed])
        for cost in COSTS:
            gains = tokens * passes[0] / (passes + proposed * cost * passes[0])
            best = int(gains.argmax())
            yield SpeculationPoint(acceptance, cost, best, float(gains[best]))


def _offloading(bench: Workbench, plan: Plan, acceptance: float) -> Iterator[OffloadPoint]:
    """T >= max(C, (W - R) / B): a pass takes its computation, or reading what is not resident, if longer."""
    storage = bench.device.storage_bandwidth
    if storage is None:
        return
    setting = settle(bench.config, bench.device, plan.weights)
    middle = max(bench.output // 2, 1)
    proposed = min(4, bench.config.window - bench.prompt - middle)
    one, several = (float(setting.next(bench.prompt, middle, 1, 1 + k).seconds) for k in (0, proposed))
    for lacking in LACKING:
        streamed = lacking * setting.model.weight_bytes()
        plain = max(one, streamed / storage)
        shared = max(several, streamed / storage) / expected_tokens(acceptance, proposed)
        yield OffloadPoint(lacking, streamed, plain, shared)


def _formats(bench: Workbench) -> Iterator[FormatPoint]:
    for name in dict.fromkeys((bench.config.format, *FORMATS)):
        try:
            found = bench.outcome(Plan(weights=name))
            setting = settle(bench.config, bench.device, name)
        except InputError:  # a measured machine without tables of this format
            continue
        bits = 8 * get_format(name).nbytes((1, 4096)) / 4096
        yield FormatPoint(name, bits, found.tpot_seconds, setting.model.weight_bytes())


def _contexts(bench: Workbench, plan: Plan) -> Iterator[ContextPoint]:
    if bench.config.is_encoder_decoder:  # it reads all of its prompt at every step
        return
    setting = settle(bench.config, bench.device, plan.weights)
    token = setting.cache_bytes_per_token
    context = 1024
    while context < bench.config.window:
        kept = min(context, SINKS + WINDOW)
        full, short = (float(setting.next(n, 1).seconds) for n in (context, kept))
        yield ContextPoint(context, full, short, context * token, kept * token)
        context *= 2
