"""The built-in configs: right as facts, and counted exactly as transformers' own classes count them.

Nothing is shrunk or extrapolated: on the meta device even the 405B model is built and run whole
in about a second. GPT-3 and the documents' 52B model are built with GPT-2's class.
"""

import json

import pytest

from ridgeline.models import builtin_names, declare, load_config
from ridgeline.models.registry import BUILTIN
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.count_pairs import Pairs

TOKENS = 64

#: Parameters of the published checkpoints, tied weights once: the totals that the models'
#: pages on the Hugging Face hub give; for GPT-2, OPT, BERT and T5 what their checkpoints load as.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3-405b": 405_853_388_800,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "phi-3-mini": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "pythia-1.4b": 1_414_647_808,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt-neox-20b": 20_554_567_680,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "flan-t5-xxl": 11_135_332_352,
    "opt-1.3b": 1_315_758_080,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "bert-base": 109_514_298,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "deepseek-v2-lite": 15_706_484_224,
}

#: Models whose size is published as a round figure only. The documents give the 52B model's
#: width (8192), depth (64) and total (52e9); 64 heads of 128, 8,192 positions and a vocabulary
#: of 65,536 are our choice, and bring the total to 52.15e9. DeepSeek-V3's page gives a total that includes a
#: layer for predicting further ahead; its paper's does not.
ROUND_FIGURES = {
    "opt-125m": 125e6,
    "opt-6.7b": 6.7e9,
    "opt-13b": 13e9,
    "opt-175b": 175e9,
    "gpt3-175b": 175e9,
    "documents-52b": 52e9,
    "qwen3-0.6b": 0.6e9,
    "qwen3-1.7b": 1.7e9,
    "bert-large": 336e6,
    # Of the text part alone, without the vision encoder: the sums of the report's table 1.
    "gemma-3-4b": 675e6 + 3_209e6,
    "gemma-3-12b": 1_012e6 + 10_759e6,
    "gemma-3-27b": 1_416e6 + 25_600e6,
    "deepseek-v3": 671e9,
}


def twin_of(name):
    """transformers' own class for the config, whole, without data."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    raw = json.loads((BUILTIN / f"{name}.json").read_text())
    config = transformers.AutoConfig.for_model(**raw)
    # Without data no token can be sent to its experts: their weights are gathered for every token instead.
    config._experts_implementation = "batched_mm"
    with torch.device("meta"):
        model = getattr(transformers, raw["architectures"][0])(config).eval()
        if config.is_encoder_decoder and raw.get("tie_word_embeddings") is False:
            # transformers 5 ties T5's head whatever the config says, until a checkpoint brings its own.
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    return model


#: Diffusion Transformers are held against diffusers (test_diffusion.py).
NAMES = tuple(name for name in builtin_names() if not load_config(name).is_diffusion)


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def twin(name):
    return twin_of(name)


def test_every_built_in_config_has_a_published_size():
    assert set(NAMES) == PUBLISHED.keys() | ROUND_FIGURES.keys()


@pytest.mark.parametrize(("model", "parameters"), PUBLISHED.items())
def test_the_parameters_are_those_of_the_published_checkpoint(model, parameters):
    assert declare(load_config(model)).parameter_count() == parameters


@pytest.mark.parametrize(("model", "parameters"), ROUND_FIGURES.items())
def test_the_parameters_are_near_the_published_round_figure(model, parameters):
    assert declare(load_config(model)).parameter_count() == pytest.approx(parameters, rel=0.015)


def test_the_parameter_count_is_that_of_transformers(name, twin):
    parameters = sum(p.numel() for p in twin.parameters())  # a tied weight is listed once
    assert declare(load_config(name)).parameter_count() == parameters


def test_the_matrix_flops_are_those_that_pytorch_counts(name, twin):
    """One sequence, logits at every position, the full square of query-key pairs."""
    assert matrix_flops(name) == flops_counted_by_pytorch(twin)


def matrix_flops(name):
    ops = Count(pairs=Pairs.SQUARE)
    batch = ops.batch([Span(rows=TOKENS)], logits="all")
    return ops.trace(declare(load_config(name)).whole(ops, batch)).flops.matrix


def flops_counted_by_pytorch(model):
    """The matrix products of one pass; the mask is handed over ready, since transformers'
    own preparation of it looks at values, which the meta device does not have."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    positions = torch.zeros(1, TOKENS, dtype=torch.long, device="meta")
    mask = torch.zeros(1, 1, TOKENS, TOKENS, device="meta")
    inputs = {"input_ids": positions, "position_ids": positions, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        del inputs["position_ids"]
        inputs |= {"decoder_input_ids": positions, "decoder_attention_mask": mask}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()
