"""Small diffusion Transformers of every family, and their traces."""

from ridgeline.models import declare, read_config
from ridgeline.models.denoising import Grid, count_denoising
from ridgeline.ops.count import Count

WIDE = {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 4, "sample_size": 8}
TEXTED = {**WIDE, "cross_attention_dim": 48, "caption_channels": 20, "out_channels": 8, "patch_size": 2}
MMDIT = {
    **WIDE,
    "joint_attention_dim": 20,
    "caption_projection_dim": 48,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 16,
}
LATTE = {
    **TEXTED,
    "in_channels": 4,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "attention_bias": True,
    "video_length": 3,
}
COGVIDEOX = {
    **{name: value for name, value in WIDE.items() if name != "sample_size"},
    "sample_height": 8,
    "sample_width": 12,
    "sample_frames": 9,
    "time_embed_dim": 24,
    "text_embed_dim": 20,
    "max_text_seq_length": 7,
}
CONFIGS = {
    "dit": ("DiTTransformer2DModel", {**WIDE, "num_embeds_ada_norm": 10}),
    "pixart": ("PixArtTransformer2DModel", TEXTED),
    "pixart, 1024": ("PixArtTransformer2DModel", {**TEXTED, "use_additional_conditions": True}),
    "sd3": ("SD3Transformer2DModel", MMDIT),
    "sd3.5": ("SD3Transformer2DModel", {**MMDIT, "qk_norm": "rms_norm"}),
    "sd3.5-medium": (
        "SD3Transformer2DModel",
        {**MMDIT, "qk_norm": "rms_norm", "dual_attention_layers": [0, 1]},
    ),
    "latte": ("LatteTransformer3DModel", LATTE),
    "cogvideox": ("CogVideoXTransformer3DModel", COGVIDEOX),
}
SEQUENCES, TEXT = 2, 5


def config_of(name):
    kind, fields = CONFIGS[name]
    return read_config({"_class_name": kind, **fields, "dtype": "float32"}, name)


def grid_for(config):
    return Grid(2, 3, 3 if config.frames > 1 else 1)


def count_diffusion(name, *, reading=Count, sequences=SEQUENCES, **options):
    """The trace of one step over images of 2 x 3 patches."""
    config = config_of(name)
    ops = reading(**{"activations": "fp32", **options})
    batch = count_denoising(ops, config, grid_for(config), sequences, TEXT)
    return ops.trace(declare(config).forward(ops, batch))
