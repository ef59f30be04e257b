"""The counted passes that figures are read from."""

from __future__ import annotations

from functools import cache

from ridgeline.models import Model, declare, load_config, read_config
from ridgeline.models.denoising import Grid, count_denoising
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.kernel import Kernel
from ridgeline.ops.lowering import UNFUSED, Lowering
from ridgeline.ops.numbers import Number
from ridgeline.ops.trace import Trace


@cache
def builtin(name: str) -> Model:
    """A built-in config's model, without data."""
    return declare(load_config(name))


def plain_decoder(name: str, *, width: int, intermediate: int, heads: int, layers: int, vocab: int) -> Model:
    """A decoder whose MLP has two matrices, as the documents assume: GPT-2's pass at any size."""
    return declare(
        read_config(
            {
                "model_type": "gpt2",
                "n_embd": width,
                "n_inner": intermediate,
                "n_head": heads,
                "n_layer": layers,
                "vocab_size": vocab,
                "torch_dtype": "float16",
            },
            name,
        )
    )


def step(model: Model, *, rows: Number, keys: Number, sequences: Number = 1) -> Trace:
    """One step of ``sequences`` alike: ``rows`` new tokens that attend to ``keys`` in all.

    By the conventions of the documents: fp16, every part a kernel of its own, the full square of
    query-key pairs, a cache that is not rounded up to blocks.
    """
    ops = Count(activations="fp16", lowering=UNFUSED, pairs=Pairs.SQUARE)
    cache = None
    if model.config.is_decoder:
        cache = ops.alloc_cache(model.cache_spec("fp16", block_size=1), blocks=keys * sequences)
    batch = ops.batch([Span(rows, keys - rows, sequences)], cache=cache)
    return ops.trace(model.forward(ops, batch))


def denoising_step(model: Model, grid: Grid, *, text: Number | None = None) -> Trace:
    """One pass of a diffusion Transformer over one image or video, by the documents' conventions."""
    ops = Count(activations="fp16", lowering=UNFUSED)
    return ops.trace(model.forward(ops, count_denoising(ops, model.config, grid, 1, text)))


def part(trace: Trace, operator: str, kind: str) -> Kernel:
    """The part of that kind of the operator of that name, as one layer runs it."""
    return next(p for op in trace.ops if op.name == operator for p in op.parts if p.kind == kind)


def intensity(kernel: Kernel) -> Number:
    """Arithmetic intensity in FLOPs an element read or written."""
    return kernel.flops.matrix / kernel.elements


def matrix_flops(trace: Trace, operators: frozenset[str]) -> Number:
    """FLOPs of the matrix products of the operators of these names, all layers."""
    return sum(op.flops.matrix * op.repeat for op in trace.ops if op.name in operators)


#: Long enough that what grows with the square of the length outweighs all else.
LONG = 2**15


def long_step(*, length: int = LONG, sequences: int = 1) -> Trace:
    """Llama-2-7B over whole sequences."""
    return step(builtin("llama-2-7b"), rows=length, keys=length, sequences=sequences)


def memory_growth(lowering: Lowering) -> float:
    """Activation memory at twice the length over that at the length, attention as lowered."""
    half, full = (long_step(length=n).lowered(lowering).memory().activations for n in (LONG, 2 * LONG))
    return full / half


def batched_attention_intensity() -> float:
    """Arithmetic intensity of Q K^T over 64 sequences, over that of one."""
    one, many = (intensity(part(long_step(sequences=n), "attention", "scores")) for n in (1, 64))
    return many / one
