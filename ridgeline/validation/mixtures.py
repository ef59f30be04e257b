"""Published figures of mixtures of experts and of latent attention: parameters, cache, training compute.

What counts as an active parameter differs: Mistral and Qwen count the embedding and the output matrix,
DeepSeek leaves out the embedding, of which a token reads one row.
"""

from __future__ import annotations

from functools import partial

from ridgeline.models import declare, load_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.lowering import UNFUSED
from ridgeline.validation.figures import Figure
from ridgeline.validation.passes import builtin

MISTRAL = "Mistral AI 2023, Mixtral of experts"
MISTRAL_22B = "Mistral AI 2024, Cheaper, Better, Faster, Stronger"
QWEN_MOE = "Qwen Team 2024, Qwen1.5-MoE"
QWEN3 = "Qwen3 model cards"
V2 = "DeepSeek-AI 2024, arXiv:2405.04434, DeepSeek-V2"
V3 = "DeepSeek-AI 2024, arXiv:2412.19437, DeepSeek-V3"
INSIGHTS = "Zhao et al. 2025, arXiv:2505.09343, Insights into DeepSeek-V3"

WITH_EMBEDDING = "embedding and output matrix included"
WITHOUT_EMBEDDING = "the input embedding left out"
CUT = "the printed figure cuts digits off"


def total(model: str) -> float:
    return builtin(model).parameter_count() / 1e9


def active(model: str) -> float:
    """Billions of parameters that a token uses, embedding and output matrix included."""
    return builtin(model).active_parameters() / 1e9


def active_without_embedding(model: str) -> float:
    built = builtin(model)
    return (built.active_parameters() - built.embedding.numel) / 1e9


def cache_elements(model: str) -> float:
    """Elements of the cache a token and layer."""
    built = builtin(model)
    return built.cache_spec("bf16").elements_per_token / built.config.layers


def kilobytes(model: str) -> float:
    """Cache of a token in 16 bits."""
    return builtin(model).cache_spec("bf16").bytes_per_token / 1e3


def training_gigaflops(model: str, length: int) -> float:
    """Matrix operations of a forward and backward pass, a token of a sequence of ``length``; nothing is
    computed again."""
    ops = Count(activations="bf16", lowering=UNFUSED, train=True)
    batch = ops.batch([Span(length)], logits="all")
    built = declare(load_config(model), "bf16")  # not the format it is published in
    return ops.trace(built.forward(ops, batch)).backward().flops.matrix / length / 1e9


#: Source, section, model, total and active parameters in billions as printed, and of the latter the right
#: ones where digits were cut off.
_SIZES = (
    (MISTRAL, "announcement", "mixtral-8x7b", "46.7", active, "12.9"),
    (MISTRAL_22B, "announcement", "mixtral-8x22b", "141", active, "39"),
    (QWEN_MOE, "announcement", "qwen1.5-moe-a2.7b", "14.3", active, "2.7"),
    (QWEN3, "model overview", "qwen3-30b-a3b", "30.5", active, "3.3", "3.4"),
    (QWEN3, "model overview", "qwen3-235b-a22b", "235", active, "22"),
    (V2, "appendix B", "deepseek-v2-lite", "15.7", active_without_embedding, "2.4", "2.5"),
    (V3, "abstract", "deepseek-v3", "671", active_without_embedding, "37"),
)


def _size_figures():
    for source, section, model, printed, count, chosen, *right in _SIZES:
        unit = "B parameters"
        yield Figure(source, section, model, unit, printed, partial(total, model))
        note = WITH_EMBEDDING if count is active else WITHOUT_EMBEDDING
        yield Figure(
            source,
            section,
            f"{model}, active",
            unit,
            chosen,
            partial(count, model),
            f"{note}; {CUT}" if right else note,
            right[0] if right else None,
        )


FIGURES = (
    *_size_figures(),
    Figure(
        V2,
        "table 1",
        "deepseek-v2-lite, latent cache a token and layer",
        "elements of a head",
        "4.5",
        lambda: cache_elements("deepseek-v2-lite") / builtin("deepseek-v2-lite").config.content,
        "a latent of 4 heads' size and a rotated key of half of one",
    ),
    Figure(
        V2,
        "section 2.1.4",
        "deepseek-v2-lite, grouped heads whose cache is as large",
        "groups",
        "2.25",
        lambda: cache_elements("deepseek-v2-lite") / (2 * builtin("deepseek-v2-lite").config.content),
    ),
    *(
        Figure(INSIGHTS, "table 1", f"{model}, cache a token", "kB", printed, partial(kilobytes, model))
        for model, printed in (
            ("deepseek-v3", "70.272"),
            ("qwen2.5-72b", "327.680"),
            ("llama-3-405b", "516.096"),
        )
    ),
    Figure(
        INSIGHTS,
        "table 2",
        "deepseek-v3, training at 4096 tokens",
        "GFLOP/token",
        "250",
        partial(training_gigaflops, "deepseek-v3", 4096),
        "only the query-key pairs that the mask lets through, in the expanded form",
    ),
)
