"""Reading diffusers' configs: which class is which family, and what is refused by name."""

import json

import pytest

from ridgeline.errors import InputError
from ridgeline.models import builtin_names, declare, load_config, read_config
from ridgeline.models.denoising import Grid, grid_of
from ridgeline.models.products import products
from ridgeline.models.registry import BUILTIN

DIT = {"_class_name": "DiTTransformer2DModel"}
PIXART = {"_class_name": "PixArtTransformer2DModel", "caption_channels": 4096, "sample_size": 64}
SD3 = {"_class_name": "SD3Transformer2DModel", "caption_projection_dim": 1152}
LATTE = json.loads((BUILTIN / "latte-1.json").read_text())
COGVIDEOX = {"_class_name": "CogVideoXTransformer3DModel"}


def test_a_field_that_is_left_out_or_null_has_the_default_of_the_class():
    assert read_config({**DIT, "num_layers": None}, "x").layers == 28
    assert declare(read_config({**DIT, "out_channels": 8}, "x")).parameter_count() == 674_834_720


@pytest.mark.parametrize(("norm", "family"), [("ada_norm_zero", "dit"), ("ada_norm_single", "pixart")])
def test_the_class_that_dit_and_pixart_once_shared_is_told_by_its_norm(norm, family):
    raw = {**(DIT if family == "dit" else PIXART), "_class_name": "Transformer2DModel", "norm_type": norm}
    assert read_config(raw, "x").family == family


@pytest.mark.parametrize("norm", [None, "layer_norm"])
def test_the_shared_class_with_another_norm_is_refused(norm):
    with pytest.raises(InputError, match=r"class 'Transformer2DModel' of diffusers is not supported"):
        read_config({"_class_name": "Transformer2DModel", "norm_type": norm}, "x")


def test_an_unknown_class_is_refused_with_those_that_are_known():
    with pytest.raises(InputError, match=r"'UNet2DConditionModel' of diffusers.*DiTTransformer2DModel"):
        read_config({"_class_name": "UNet2DConditionModel"}, "x")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({**DIT, "activation_fn": "geglu"}, "activation_fn 'geglu' is not supported"),
        ({**DIT, "norm_type": "ada_norm"}, "norm_type='ada_norm' is not supported"),
        ({**DIT, "norm_elementwise_affine": True}, "norm_elementwise_affine=True is not supported"),
        ({**DIT, "attention_bias": False}, "attention_bias=False is not supported"),
        ({**DIT, "cross_attention_dim": 768}, "unknown field 'cross_attention_dim'=768"),
        ({**DIT, "num_layers": 0}, "field 'num_layers' must be from 1"),
        ({**PIXART, "caption_channels": None}, "field 'caption_channels' is missing"),
        ({**PIXART, "cross_attention_dim": 768}, "cross_attention_dim=768 is not supported"),
        ({**SD3, "caption_projection_dim": 100}, "caption_projection_dim=100 must be 1152"),
        ({**SD3, "qk_norm": "layer_norm"}, "qk_norm 'layer_norm' is not supported"),
        ({**SD3, "dual_attention_layers": [18]}, "dual_attention_layers must be numbers of layers"),
        ({**LATTE, "activation_fn": None}, "activation_fn 'geglu' is not supported"),
        ({**LATTE, "attention_bias": None}, "attention_bias=False is not supported"),
        ({**COGVIDEOX, "use_rotary_positional_embeddings": True}, "unknown field 'use_rotary"),
        ({**COGVIDEOX, "patch_size_t": 2}, "unknown field 'patch_size_t'=2"),
        ({**COGVIDEOX, "freq_shift": 1}, "freq_shift=1 is not supported"),
    ],
)
def test_what_would_change_the_computation_is_refused_by_name(raw, message):
    with pytest.raises(InputError, match=message):
        read_config(raw, "x")


def test_every_built_in_diffusion_transformer_is_read_and_has_neither_vocabulary_nor_cache():
    configs = [load_config(name) for name in builtin_names()]
    diffusion = [config for config in configs if config.is_diffusion]
    assert {config.family for config in diffusion} == {"dit", "pixart", "sd3", "latte", "cogvideox"}
    assert all(config.vocab == 0 and not config.is_decoder for config in diffusion)


def test_everything_but_tables_and_vectors_is_multiplied_and_so_packed():
    model = declare(load_config("dit-s-2"))
    multiplied = {weight.name for weight, gated in products(model) if not gated}
    matrices = {weight.name for weight in model.weights() if len(weight.shape) == 2}
    assert matrices - multiplied == {"labels"}
    assert {w.format for w in declare(load_config("dit-s-2"), "int8").weights()} == {"int8", "bf16"}


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [
        ("dit-xl-2", {}, Grid(16, 16)),
        ("dit-xl-2", {"height": 512}, Grid(32, 32)),
        ("sd3-medium", {"height": 768, "width": 1344}, Grid(48, 84)),
        ("latte-1", {"height": 256}, Grid(16, 16, 16)),
        ("cogvideox-2b", {}, Grid(30, 45, 13)),
        ("cogvideox-2b", {"frames": 9}, Grid(30, 45, 3)),
    ],
)
def test_an_image_in_patches(name, size, grid):
    assert grid_of(load_config(name), **size) == grid


def test_frames_that_are_no_whole_number_of_latent_ones_are_refused():
    with pytest.raises(InputError, match="frames must be 1 more than a multiple of 4, not 48"):
        grid_of(load_config("cogvideox-2b"), frames=48)
