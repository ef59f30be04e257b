"""``ridgeline.simulate``: how a model on a device would serve requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ridgeline.analysis.arguments import config_of, device_of
from ridgeline.analysis.setting import settle
from ridgeline.analysis.step import default_lowering, predict_step, trace_step
from ridgeline.analysis.step_cost import StepCost
from ridgeline.engine.arrivals import Arrival
from ridgeline.engine.blocks import BlockPool
from ridgeline.engine.checks import at_least_one
from ridgeline.engine.metrics import Serving, summarise_recorded
from ridgeline.engine.plan import Limits
from ridgeline.engine.request import refuse_encoder, refuse_encoder_decoder
from ridgeline.engine.simulate import Simulation
from ridgeline.engine.simulate import simulate as run
from ridgeline.errors import InputError
from ridgeline.hardware.device import Device
from ridgeline.models.model import Model, ModelConfig
from ridgeline.ops.batch import BLOCK_TOKENS, Span
from ridgeline.predict.tiers import Tier, tier_of

#: Of a device's memory, the share that an engine takes: vLLM's default, which leaves some to the driver.
MEMORY_SHARE = 0.9
#: Cache blocks that can be simulated, each of which takes some 50 bytes here.
MOST_BLOCKS = 2**24


@dataclass(frozen=True)
class EngineLimits:
    """What the simulated engine may do: tokens in its cache, in blocks of ``block_size``; tokens and
    sequences of a step; blocks that a newcomer leaves free for every sequence that runs."""

    kv_tokens: int
    batched_tokens: int
    sequences: int
    block_size: int
    headroom: int


@dataclass(frozen=True)
class SimulatedServing:
    """What :func:`simulate` found; ``tier`` is what the steps' times stand on, ``basis`` names where each
    part of the device's figures comes from. ``recorded`` is how a real run served the same requests, None
    where nobody recorded it."""

    model: str
    device: str
    device_title: str
    weight_format: str
    cache_format: str
    limits: EngineLimits
    simulation: Simulation
    tier: str
    basis: Mapping[str, str]
    assumptions: tuple[str, ...]
    recorded: Serving | None = None


def simulate(
    model: str | ModelConfig,
    on: str | Device,
    arrivals: Sequence[Arrival],
    *,
    weights: str | None = None,
    cache: str | None = None,
    kv_tokens: int | None = None,
    batched_tokens: int = 2048,
    sequences: int = 256,
    block_size: int = BLOCK_TOKENS,
    headroom: int = 1,
    tier: str | None = None,
) -> SimulatedServing:
    """Serve ``arrivals`` with the engine's scheduler in simulated time, every step as long as predicted.

    ``weights`` and ``cache`` are storage formats. The limits are those of
    :class:`~ridgeline.engine.scheduler.Limits`; ``kv_tokens`` are by default as many as fit in 90 % of the
    device's memory beside weights and activations. ``tier`` is what steps' times stand on, by default the
    best that the device has.

    Raises InputError for anything unknown, an encoder, numbers below 1, a model that does not fit, and a
    request that does not fit the model's window or the cache.
    """
    config = config_of(model)
    device = device_of(on)
    refuse_encoder(config)
    refuse_encoder_decoder(config)
    if not arrivals:
        raise InputError("there is no request to simulate: give at least one")
    _check_window(config, arrivals)
    setting = settle(config, device, weights, cache)
    built, cache_format = setting.model, setting.cache
    scheduling = Limits(at_least_one("batched_tokens", batched_tokens), sequences, headroom=headroom)
    at_least_one("block_size", block_size)
    if kv_tokens is None:
        fit = _tokens_that_fit(built, device, cache_format, batched_tokens)
        kv_tokens = min(fit, MOST_BLOCKS * block_size)
    blocks = max(1, at_least_one("kv_tokens", kv_tokens) // block_size)
    if blocks > MOST_BLOCKS:
        raise InputError(
            f"kv_tokens is {kv_tokens}, which is {blocks} blocks: at most {MOST_BLOCKS} can be simulated, so"
            " lower it, or raise the block size"
        )
    chosen = tier_of(device, tier)
    cost = StepCost(built, device, cache_format, tier=chosen)
    found = run(arrivals, BlockPool(blocks, block_size), scheduling, cost)
    sections = predict_step(built, device, [Span(1, 1)], cache_format=cache_format, tier=chosen).basis
    return SimulatedServing(
        model=config.name,
        device=device.name,
        device_title=device.title,
        weight_format=setting.weights,
        cache_format=cache_format,
        limits=EngineLimits(kv_tokens, batched_tokens, sequences, block_size, headroom),
        simulation=found,
        basis={section: str(source) for section, source in sections.items()},
        tier=str(chosen),
        assumptions=tuple(_assumptions(built, chosen)),
        recorded=summarise_recorded(arrivals),
    )


def _check_window(config: ModelConfig, arrivals: Sequence[Arrival]) -> None:
    for number, arrival in enumerate(arrivals, 1):
        if arrival.prompt + arrival.output > config.window:
            raise InputError(
                f"request {number} has {arrival.prompt} + {arrival.output} tokens, and {config.name} takes "
                f"{config.window} at most: leave it out, or shorten it"
            )


def _tokens_that_fit(model: Model, device: Device, cache_format: str, batched_tokens: int) -> int:
    rows = min(batched_tokens, model.config.window)
    step = trace_step(model, [Span(rows)], cache_format=cache_format, lowering=default_lowering(device))
    free = MEMORY_SHARE * device.memory_bytes - model.weight_bytes() - step.memory().activations
    token_bytes = model.cache_spec(cache_format).bytes_per_token
    if free < token_bytes:
        raise InputError(
            f"{model.config.name} leaves no room for a cache on {device.name}: choose smaller weights "
            "(--weights), a larger device, or give --kv-tokens"
        )
    return int(free / token_bytes)


def _assumptions(model: Model, tier: Tier) -> Iterator[str]:
    yield "outputs are as long as the requests say, and prompts have no prefix in common"
    if model.active_parameters() < model.parameter_count():
        yield "experts are chosen uniformly, whatever other tokens choose"
    if tier is Tier.MEASURED:
        yield "tokens are chosen greedily, and nobody makes text of them"
    else:
        yield "a step begins when the one before ends: no time passes between them"
        if tier is not Tier.DATASHEET:
            yield "activations and rotations are kernels of their own; sampling takes no time"
        if tier is Tier.DATASHEET:
            yield "every kernel reaches the device's rates: an optimistic estimate, not a forecast"
