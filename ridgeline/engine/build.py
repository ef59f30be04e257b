"""Putting an engine's parts together for a model: cache, blocks, scheduler, runner."""

from __future__ import annotations

from ridgeline.engine.blocks import BlockPool
from ridgeline.engine.clock import RealClock
from ridgeline.engine.core import Core
from ridgeline.engine.plan import Limits
from ridgeline.engine.request import refuse_encoder_decoder
from ridgeline.engine.runner import ModelRunner
from ridgeline.engine.scheduler import Scheduler
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.errors import InputError
from ridgeline.models.model import Model
from ridgeline.ops.native_cache import NativeCache
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_batch import TorchCache
from ridgeline.weights.tokenizer import Tokenizer

#: Of the memory that a model's weights leave, the share that a cache takes unless told otherwise.
CACHE_SHARE = 0.5


def build_core(
    model: Model,
    ops: Reference,
    tokenizer: Tokenizer | None,
    limits: Limits,
    blocks: int,
    block_size: int,
    speculator: Speculator | None = None,
    sequences: int | None = None,
    cache_format: str | None = None,
) -> Core:
    """A core that runs ``model`` on the executing reading ``ops``, with a cache of so many blocks, in
    ``cache_format``, or that of the weights which are never quantised. Steps of so many ``sequences`` are
    prepared, by default of as many as the limits allow.

    Raises InputError if memory does not hold the cache, and for an encoder-decoder.
    """
    cache = make_cache(model, ops, blocks, block_size, cache_format)
    most = limits.seats if sequences is None else max(1, min(limits.seats, sequences))
    ops.prepare(model, cache, most, 1 if speculator is None else 1 + speculator.most)
    scheduler = Scheduler(BlockPool(blocks, block_size), limits, RealClock())
    return Core(scheduler, ModelRunner(model, ops, cache), tokenizer, speculator)


def default_blocks(
    model: Model, ops: Reference, sequences: int, block_size: int, cache_format: str | None = None
) -> int:
    """As many as ``sequences`` whole windows take, or as fit in CACHE_SHARE of the memory that is left where
    ``ops`` computes."""
    spec = model.cache_spec(cache_format or model.plain_format, block_size)
    block_bytes = block_size * spec.bytes_per_token
    free = ops.free_bytes(model)
    windows = sequences * -(-model.config.window // block_size)
    return max(1, min(windows, int(CACHE_SHARE * free / block_bytes)))


def make_cache(
    model: Model, ops: Reference, blocks: int, block_size: int, cache_format: str | None = None
) -> NativeCache | TorchCache:
    """A cache of so many blocks for ``model``. Raises InputError if memory does not hold it, for a format
    that the reading doesn't keep, and for an encoder-decoder, which needs another one beside it."""
    refuse_encoder_decoder(model.config)
    spec = model.cache_spec(cache_format or model.plain_format, block_size)
    try:
        return ops.alloc_cache(spec, blocks)
    except (RuntimeError, TypeError):  # what PyTorch raises of sizes beyond memory, and beyond 64 bits
        raise InputError(
            f"memory does not hold a cache of {blocks * block_size} tokens: lower cache_tokens or max_tokens"
        ) from None
