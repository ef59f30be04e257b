"""Well-known figures of papers and model cards: parameters, KV cache, training compute.

Names that are only round, such as the 70B of Llama-3-70B, are not figures and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial

from ridgeline.hardware import load_device
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.trace import Trace, op_class
from ridgeline.validation.figures import Figure
from ridgeline.validation.passes import builtin

GPT2 = "Radford et al. 2019, GPT-2"
GPT3 = "Brown et al. 2020, arXiv:2005.14165, GPT-3"
LLAMA3 = "Llama Team 2024, arXiv:2407.21783, Llama 3"
GEMMA2 = "Gemma Team 2024, arXiv:2408.00118, Gemma 2"
GEMMA3 = "Gemma Team 2025, arXiv:2503.19786, Gemma 3"
PHI3 = "Abdin et al. 2024, arXiv:2404.14219, Phi-3"
T5 = "Raffel et al. 2020, arXiv:1910.10683, T5"
MEGATRON = "Narayanan et al. 2021, arXiv:2104.04473, Megatron-LM"

# -- parameters -----------------------------------------------------------------------------------

RETRACTED = "the authors' repository, openai/gpt-2, corrects the count"
CUT = "the card cuts digits off the checkpoint's count"

#: Source, section, model, printed parameters, and where they are wrong the right ones with why.
#: BERT's 110M and 340M are round to the ten millions.
# fmt: off
PARAMETERS = (
    ("Devlin et al. 2018, arXiv:1810.04805, BERT", "section 3", "bert-base", "11e1M"),
    ("Devlin et al. 2018, arXiv:1810.04805, BERT", "section 3", "bert-large", "34e1M"),
    (GPT2, "table 2", "gpt2", "117M", "124M", RETRACTED),
    (GPT2, "table 2", "gpt2-medium", "345M", "355M", RETRACTED),
    (GPT2, "table 2", "gpt2-large", "762M", "774M", RETRACTED),
    (GPT2, "table 2", "gpt2-xl", "1542M", "1558M", RETRACTED),
    (GPT3, "table D.1", "gpt3-175b", "174.6B"),
    ("Zhang et al. 2022, arXiv:2205.01068, OPT", "table 1", "opt-125m", "125M"),
    ("Zhang et al. 2022, arXiv:2205.01068, OPT", "table 1", "opt-1.3b", "1.3B"),
    ("Zhang et al. 2022, arXiv:2205.01068, OPT", "table 1", "opt-6.7b", "6.7B"),
    ("Zhang et al. 2022, arXiv:2205.01068, OPT", "table 1", "opt-13b", "13B"),
    ("Zhang et al. 2022, arXiv:2205.01068, OPT", "table 1", "opt-175b", "175B"),
    ("Touvron et al. 2023, arXiv:2302.13971, LLaMA", "table 2, same shape", "llama-2-7b", "6.7B"),
    ("Touvron et al. 2023, arXiv:2302.13971, LLaMA", "table 2, same shape", "llama-2-13b", "13.0B"),
    ("Llama 3.2 model card", "model information", "llama-3.2-1b", "1.23B", "1.24B", CUT),
    ("Llama 3.2 model card", "model information", "llama-3.2-3b", "3.21B"),
    ("Qwen2.5 model cards", "number of parameters", "qwen2.5-0.5b", "0.49B"),
    ("Qwen2.5 model cards", "number of parameters", "qwen2.5-1.5b", "1.54B"),
    ("Qwen2.5 model cards", "number of parameters", "qwen2.5-3b", "3.09B"),
    ("Qwen2.5 model cards", "number of parameters", "qwen2.5-7b", "7.61B", "7.62B", CUT),
    ("Qwen2.5 model cards", "number of parameters", "qwen2.5-14b", "14.7B", "14.8B", CUT),
    ("Qwen2.5 model cards", "number of parameters", "qwen2.5-32b", "32.5B", "32.8B",
     "the checkpoint holds 32.76B"),
    ("Qwen2.5 model cards", "number of parameters", "qwen2.5-72b", "72.7B"),
    ("Qwen3 model cards", "number of parameters", "qwen3-0.6b", "0.6B"),
    ("Qwen3 model cards", "number of parameters", "qwen3-1.7b", "1.7B"),
    ("Qwen3 model cards", "number of parameters", "qwen3-4b", "4.0B"),
    ("Qwen3 model cards", "number of parameters", "qwen3-8b", "8.2B"),
    ("Qwen3 model cards", "number of parameters", "qwen3-14b", "14.8B"),
    ("Qwen3 model cards", "number of parameters", "qwen3-32b", "32.8B"),
    ("Zhang et al. 2024, arXiv:2401.02385, TinyLlama", "abstract", "tinyllama-1.1b", "1.1B"),
    (PHI3, "section 2", "phi-3-mini", "3.8B"),
    (T5, "section 3.7", "t5-small", "6e1M"),
    (T5, "section 3.7", "t5-base", "22e1M"),
    (T5, "section 3.7", "t5-large", "77e1M", "74e1M", "the released checkpoint holds 737.7M"),
    (T5, "section 3.7", "t5-3b", "2.8B", "2.9B", "the paper cuts digits off"),
    (T5, "section 3.7", "t5-11b", "11B"),
)

#: Parameters beside the embedding, as the reports print them; Gemma 3's are those of the text part.
WITHOUT_EMBEDDING = (
    (GEMMA2, "table 2", "gemma-2-2b", "2024517888"),
    (GEMMA2, "table 2", "gemma-2-9b", "8324201984"),
    (GEMMA2, "table 2", "gemma-2-27b", "26047480320"),
    (GEMMA3, "table 1", "gemma-3-1b", "698M"),
    (GEMMA3, "table 1", "gemma-3-4b", "3209M"),
    (GEMMA3, "table 1", "gemma-3-12b", "10759M"),
    (GEMMA3, "table 1", "gemma-3-27b", "25600M"),
)
# fmt: on

#: What the letter after a printed number of parameters stands for.
SCALE = {"M": 1e6, "B": 1e9}


def parameters(model: str, unit: float = 1) -> float:
    return builtin(model).parameter_count() / unit


def parameter_figures() -> Iterator[Figure]:
    for source, section, model, printed, *erratum in PARAMETERS:
        letter = printed[-1]
        right, note = (erratum[0].removesuffix(letter), erratum[1]) if erratum else (None, "")
        compute = partial(parameters, model, SCALE[letter])
        unit = f"{letter} parameters"
        yield Figure(source, section, model, unit, printed.removesuffix(letter), compute, note, right)


def without_embedding(model: str, unit: float) -> float:
    built = builtin(model)
    return (built.parameter_count() - built.embedding.numel) / unit


def without_embedding_figures() -> Iterator[Figure]:
    for source, section, model, printed in WITHOUT_EMBEDDING:
        digits = printed.removesuffix("M")
        unit = "parameters" if digits == printed else "M parameters"
        compute = partial(without_embedding, model, SCALE["M"] if digits != printed else 1)
        yield Figure(source, section, f"{model}, without the embedding", unit, digits, compute)


# -- the key/value cache --------------------------------------------------------------------------


def kv_bytes(model: str, tokens: int = 1) -> float:
    """Bytes of keys and values in 16 bits."""
    return tokens * builtin(model).cache_spec("fp16").bytes_per_token


VLLM = "Kwon et al. 2023, arXiv:2309.06180, PagedAttention"
KV_FIGURES = (
    Figure(VLLM, "section 3", "opt-13b, KV cache a token", "KiB", "800", lambda: kv_bytes("opt-13b") / 2**10),
    Figure(
        VLLM,
        "section 3",
        "opt-13b, KV cache of 2048 tokens",
        "GiB",
        "1.6",
        lambda: kv_bytes("opt-13b", 2048) / 2**30,
    ),
    Figure(
        "NVIDIA 2023, Mastering LLM Techniques: Inference Optimization",
        "KV caching",
        "llama-2-7b, KV cache of 4096 tokens",
        "GiB",
        "2",
        lambda: kv_bytes("llama-2-7b", 4096) / 2**30,
        "512 KiB a token",
    ),
    Figure(
        "llm-d, guide to tiered prefix caches",
        "storage",
        "llama-3-70b, KV cache a token",
        "KiB",
        "320",
        lambda: kv_bytes("llama-3-70b") / 2**10,
        "printed of Llama-3.3-70B, whose shape is the same; 8 of 64 heads keep keys and values",
    ),
)


# -- training compute -----------------------------------------------------------------------------


@cache
def training_pass(model: str, length: int) -> Trace:
    """Forward and backward over one sequence, logits at every position."""
    ops = Count(activations="bf16", train=True)
    batch = ops.batch([Span(length)], logits="all")
    return ops.trace(builtin(model).forward(ops, batch)).backward()


def forward_flops(model: str, length: int) -> float:
    """FLOPs a token of the linear layers; the publications leave out attention's own products."""
    return linear_flops(training_pass(model, length).forward) / length


def training_flops(model: str, length: int) -> float:
    return linear_flops(training_pass(model, length)) / length


def linear_flops(trace: Trace) -> float:
    return sum(op.flops.matrix * op.repeat for op in trace.ops if op_class(op.kind) == "linear")


def total_flops(model: str, length: int, tokens: float) -> float:
    return training_flops(model, length) * tokens


def days_with_recomputation(model: str, length: int, *, tokens: float, gpus: int, rate: float) -> float:
    """Days to train at ``rate`` FLOP/s a GPU, each layer's forward pass run twice."""
    flops = (training_flops(model, length) + forward_flops(model, length)) * tokens
    return flops / (gpus * rate) / 86400


def percent_of_peak(device: str, rate: float) -> float:
    return 100 * rate / load_device(device).matrix_rate("bf16")


GPT3_TOKENS = 300e9
COMPUTE_FIGURES = (
    Figure(
        GPT3,
        "table D.1",
        "gpt3-175b, forward pass",
        "FLOP/parameter/token",
        "2.0",
        lambda: forward_flops("gpt3-175b", 2048) / parameters("gpt3-175b"),
    ),
    Figure(
        GPT3,
        "table D.1",
        "gpt3-175b, forward and backward",
        "FLOP/parameter/token",
        "6.0",
        lambda: training_flops("gpt3-175b", 2048) / parameters("gpt3-175b"),
    ),
    Figure(
        GPT3,
        "table D.1",
        "gpt3-175b, training on 300e9 tokens",
        "FLOP",
        "3.14e23",
        partial(total_flops, "gpt3-175b", 2048, GPT3_TOKENS),
        "attention's own products would add 1.6 % at 2048 tokens",
    ),
    Figure(
        LLAMA3,
        "section 1",
        "llama-3-405b, training on 15.6e12 tokens",
        "FLOP",
        "3.8e25",
        partial(total_flops, "llama-3-405b", 8192, 15.6e12),
    ),
    Figure(
        MEGATRON,
        "section 5.1",
        "gpt3-175b, training on 300e9 tokens with 1024 A100 at 140 TFLOP/s",
        "days",
        "34",
        partial(days_with_recomputation, "gpt3-175b", 2048, tokens=GPT3_TOKENS, gpus=1024, rate=140e12),
        "activations are recomputed: 8 FLOPs a parameter and token",
    ),
    Figure(
        MEGATRON,
        "table 1",
        "163 TFLOP/s on an A100",
        "% of peak",
        "52",
        partial(percent_of_peak, "a100-80gb", 163e12),
    ),
    Figure(
        LLAMA3,
        "table 4",
        "430 TFLOP/s on an H100",
        "% of peak",
        "43",
        partial(percent_of_peak, "h100-sxm", 430e12),
    ),
)


FIGURES = sorted(
    (*parameter_figures(), *without_embedding_figures(), *KV_FIGURES, *COMPUTE_FIGURES),
    key=lambda figure: figure.source,
)
