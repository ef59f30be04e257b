"""Small models of three families and their traces, for the tests of the count."""

from dataclasses import dataclass, replace

from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.layers import Layered
from ridgeline.ops.lowering import FUSED, NAIVE_ATTENTION, TORCH_CPU, UNFUSED
from ridgeline.ops.records import Weight

LOWERINGS = (FUSED, NAIVE_ATTENTION, UNFUSED, TORCH_CPU)
FAMILIES = (
    *("llama-3-8b", "qwen3-0.6b", "mistral-7b", "phi-4", "gemma-2-2b", "gemma-3-4b"),
    *("pythia-1.4b", "gpt2", "opt-125m", "mixtral-8x7b", "deepseek-v3", "bert-base"),
)


class Unrolled(Count):
    """A count that meets every layer: what loops stand for."""

    def repeat(self, layers, body, x):
        for layer in layers:
            x = body(layer, x)
        return x


def small(family, *, layers=3):
    """The built-in model, some thousand times smaller; windows shrink to 5 keys, and with two layers or more
    one of Gemma's sees all."""
    config = load_config(family)
    grouped = config.kv_heads < config.heads
    shape = {
        "vocab": 70,
        "width": 48,
        "layers": layers,
        "heads": 6,
        "kv_heads": 2 if grouped else 6,
        "head_dim": 10 if grouped else 8,
        "intermediate": 40 if grouped else 4 * 48,
        "window": 512,
    }
    if config.family.startswith("gemma"):
        full = config.windows.index(-1)  # the last of a period, so that every other layer slides
        kinds = [full if i % 2 else 0 for i in range(layers)]
        shape["windows"] = tuple(-1 if kind else 4 for kind in kinds)
        shape["ropes"] = tuple(replace(config.ropes[kind], dim=shape["head_dim"]) for kind in kinds)
    elif config.family == "gpt_neox":
        shape["rope"] = replace(config.rope, dim=4)  # of heads of 8
    elif config.family not in ("gpt2", "opt", "bert", "deepseek_v2", "deepseek_v3"):
        shape["windows"] = (4 if config.windows[0] >= 0 else -1,) * layers
        shape["rope"] = replace(config.rope, dim=shape["head_dim"])
    if config.family.startswith("deepseek"):
        shape |= {"kv_heads": 6, "head_dim": 16, "content": 10, "rotated": 6, "value": 8, "rank": 20}
        shape |= {"quantised": None, "q_rank": config.q_rank and 24, "rope": replace(config.rope, dim=6)}
        shape |= {"experts": 8, "chosen": 3, "expert_intermediate": 24, "dense": 1}
        shape |= {"groups": min(config.groups, 4), "open_groups": min(config.open_groups, 2)}
        return declare(replace(config, **shape))
    if config.family in ("mixtral", "qwen3_moe"):
        sparse = (*(True,) * (layers - 1), config.family == "mixtral")
        shape |= {"experts": 5, "chosen": 2, "expert_intermediate": 24, "sparse": sparse}
    return declare(replace(config, **shape))


def count(model, *spans, reading=Count, cached=False, logits="all", **options):
    """The trace of one step; a span may be given by its number of rows."""
    ops = reading(**options)
    cache = ops.alloc_cache(model.cache_spec("bf16", block_size=4), 0) if cached else None
    spans = [s if isinstance(s, Span) else Span(s) for s in spans]
    batch = ops.batch(spans, logits=logits, cache=cache)
    return ops.trace(model.whole(ops, batch))


def unrolled(model, *spans, **options):
    return count(model, *spans, reading=Unrolled, **options)


@dataclass(frozen=True)
class Dense(Layered):
    weight: Weight


def mlp(*widths):
    """Layers of a multilayer perceptron: widths of the input, the hidden layers and the output."""
    pairs = zip(widths[1:], widths)
    return tuple(Dense(i, Weight("dense", shape, "bf16")) for i, shape in enumerate(pairs))


def count_mlp(layers, rows, *, reading=Count, activation="relu", **options):
    """The trace of x -> act(W x) for each layer, from an input that wants no gradient."""
    ops = reading(**options)
    x = ops.input("x", (rows, layers[0].weight.shape[1]), "bf16")
    return ops.trace(
        ops.repeat(layers, lambda layer, x: ops.linear(x, layer.weight, activation=activation), x)
    )
