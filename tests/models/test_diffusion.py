"""Diffusion Transformers compute what diffusers' classes compute, with as many parameters and FLOPs."""

import json
import re

import pytest
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    DiTTransformer2DModel,
    LatteTransformer3DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
)
from torch.utils.flop_counter import FlopCounterMode

from ridgeline.analysis.denoising import trace_denoising
from ridgeline.errors import InputError
from ridgeline.models import builtin_names, declare, load_config
from ridgeline.models.denoising import Grid, grid_of
from ridgeline.models.registry import BUILTIN
from ridgeline.ops.cpu import Cpu
from ridgeline.ops.reference import Reference
from ridgeline.ops.torch_cpu import TorchCpu
from ridgeline.ops.torch_denoising import denoising, unpatchify
from ridgeline.weights.load import load_model
from ridgeline.weights.pack import load_packed

SMALL = {"num_attention_heads": 3, "attention_head_dim": 16, "num_layers": 3, "sample_size": 8}
SINGLE = {"cross_attention_dim": 48, "caption_channels": 20, "out_channels": 8}
MMDIT = {
    **SMALL,
    "joint_attention_dim": 20,
    "caption_projection_dim": 48,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 16,
}
LATTE = {
    **SMALL,
    **SINGLE,
    "patch_size": 2,
    "in_channels": 4,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "video_length": 5,
}
COGVIDEOX = {
    "num_attention_heads": 3,
    "attention_head_dim": 16,
    "num_layers": 3,
    "sample_height": 8,
    "sample_width": 12,
    "sample_frames": 9,
    "time_embed_dim": 24,
    "text_embed_dim": 20,
    "max_text_seq_length": 7,
}
#: Class, config, and the height and width of an image in pixels: larger than what the model knows.
CASES = {
    "dit": (DiTTransformer2DModel, {**SMALL, "out_channels": 8, "num_embeds_ada_norm": 10}, (96, 96)),
    "dit, patches of 4": (
        DiTTransformer2DModel,
        {**SMALL, "patch_size": 4, "num_embeds_ada_norm": 5},
        (64, 64),
    ),
    "pixart": (PixArtTransformer2DModel, {**SMALL, **SINGLE}, (96, 64)),
    "pixart, 1024": (
        PixArtTransformer2DModel,
        {**SMALL, **SINGLE, "use_additional_conditions": True},
        (96, 64),
    ),
    "sd3": (SD3Transformer2DModel, MMDIT, (96, 64)),
    "sd3.5": (SD3Transformer2DModel, {**MMDIT, "qk_norm": "rms_norm"}, (64, 96)),
    "sd3.5-medium": (
        SD3Transformer2DModel,
        {**MMDIT, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
        (96, 64),
    ),
    "latte": (LatteTransformer3DModel, LATTE, (64, 96)),
    "cogvideox": (CogVideoXTransformer3DModel, COGVIDEOX, (96, 64)),
}
SEQUENCES, TEXT = 2, 7
#: How far apart the results may lie, of about 1: diffusers computes positions in float32.
TOLERANCE = 5e-6


class Twin:
    """A small model of diffusers with random weights, its folder, and an input for it."""

    def __init__(self, case, folder):
        kind, config, (height, width) = CASES[case]
        torch.manual_seed(0)
        self.model = kind(**config).eval()
        self._draw()
        self.model.save_pretrained(folder)
        self.folder, self.config = folder, load_config(folder)
        self.grid = grid_of(self.config, height, width)
        c, side = self.config, self.config.patch
        size = (self.grid.frames, self.grid.rows * side, self.grid.columns * side)
        self.latents = torch.randn(SEQUENCES, c.in_channels, *size, dtype=torch.float64)
        self.times = torch.tensor([17, 903])
        self.conditions = {}
        if c.classes:
            self.conditions["labels"] = torch.tensor([3, c.classes])
        if c.text_width:
            self.conditions["text"] = torch.randn(SEQUENCES, TEXT, c.text_width, dtype=torch.float64)
        if c.pooled_width:
            self.conditions["pooled"] = torch.randn(SEQUENCES, c.pooled_width, dtype=torch.float64)

    @torch.no_grad()
    def _draw(self):
        """Weights from N(0, 0.05), those of norms around 1, the embedders of DiT's blocks all alike, as
        published ones are."""
        for name, parameter in self.model.named_parameters():
            of_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.normal_(1.0 if of_norm else 0.0, 0.05)
            if (copy := re.fullmatch(r"transformer_blocks\.\d+\.(norm1\.emb\..+)", name)) is not None:
                parameter.copy_(self.model.get_parameter(f"transformer_blocks.0.{copy.group(1)}"))

    def batch(self, dtype):
        given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.conditions.items()}
        return denoising(self.config, self.grid, self.latents.to(dtype), self.times, **given)

    @torch.no_grad()
    def theirs(self):
        names = {
            "labels": "class_labels",
            "text": "encoder_hidden_states",
            "pooled": "pooled_projections",
        }
        given = {names[name]: value for name, value in self.conditions.items()}
        if self.config.knows_size:
            size = torch.tensor([[96.0, 64.0]] * SEQUENCES)
            given["added_cond_kwargs"] = {"resolution": size, "aspect_ratio": size[:, :1] / size[:, 1:]}
        video = self.config.frames > 1
        latents = self.latents if video else self.latents[:, :, 0]
        frames_first = self.config.family == "cogvideox"
        latents = latents.transpose(1, 2) if frames_first else latents
        sample = self.model.double()(hidden_states=latents, timestep=self.times, **given).sample
        sample = sample.transpose(1, 2) if frames_first else sample
        return sample if video else sample[:, :, None]

    def latents_of(self, patches):
        return unpatchify(patches, self.grid, self.config.patch, channels_first=self.config.channels_first)


@pytest.fixture(scope="module", params=CASES)
def twin(request, tmp_path_factory):
    return Twin(request.param, tmp_path_factory.mktemp("model"))


def test_every_reading_gives_what_diffusers_gives(twin):
    expected = twin.theirs()
    plain, packed = (
        load_model(twin.config, twin.folder, "fp32"),
        load_packed(twin.config, twin.folder, "fp32"),
    )
    for ops, model in (
        (Reference(torch.float64), plain),
        (TorchCpu(torch.float32), plain),
        (Cpu("fp32"), packed),
    ):
        with torch.inference_mode():
            ours = twin.latents_of(ops.denoise(model, twin.batch(ops.dtype)))
        assert (ours - expected).abs().max() < TOLERANCE
    assert expected.abs().max() > 0.5


def test_bf16_weights_and_products_stay_near(twin):
    packed = load_packed(twin.config, twin.folder, "bf16")
    with torch.inference_mode():
        ours = twin.latents_of(Cpu("bf16").denoise(packed, twin.batch(torch.float32)))
    assert (ours - twin.theirs()).abs().max() < 0.02


def copies(config):
    """Parameters and multiply-adds a sequence of the embedders that diffusers has in every block of DiT."""
    if config.family != "dit":
        return 0, 0
    matrices = 256 * config.width + config.width**2
    return matrices + 2 * config.width + (config.classes + 1) * config.width, matrices


def on_meta(name):
    raw = json.loads((BUILTIN / f"{name}.json").read_text())
    kinds = {kind.__name__: kind for kind, *_ in CASES.values()}
    with torch.device("meta"):
        return kinds[raw.pop("_class_name")](**raw)


DIFFUSION = tuple(name for name in builtin_names() if load_config(name).is_diffusion)


@pytest.mark.parametrize("name", DIFFUSION)
def test_the_parameter_count_is_that_of_diffusers(name):
    config = load_config(name)
    theirs = sum(p.numel() for p in on_meta(name).parameters())
    each, _ = copies(config)
    assert declare(config).parameter_count() == theirs - (config.layers - 1) * each


def test_the_matrix_flops_are_those_that_pytorch_counts_of_diffusers(twin):
    """diffusers makes DiT's condition anew in every block and once more at the end, and Latte's keys and
    values of the text anew for every frame; here both are made once."""
    config = twin.config
    with FlopCounterMode(display=False) as counter:
        twin.theirs()
    ours = trace_denoising(declare(config), twin.grid, SEQUENCES, TEXT).flops.matrix
    _, embedder = copies(config)
    again = config.layers * embedder * SEQUENCES
    if config.family == "latte":
        again = config.layers * (twin.grid.frames - 1) * SEQUENCES * TEXT * 2 * config.width**2
    attention = attention_flops(twin)  # PyTorch counts none of it on a CPU
    assert ours == counter.get_total_flops() - 2 * again + attention


def attention_flops(twin):
    """Both products of every query with every key that it sees, by hand."""
    config, grid = twin.config, twin.grid
    pairs = {
        "dit": [grid.tokens**2],
        "pixart": [grid.tokens**2, grid.tokens * TEXT],
        "sd3": [(grid.tokens + TEXT) ** 2],
        "cogvideox": [(grid.tokens + TEXT) ** 2],
        "latte": [grid.frames * grid.places**2, grid.places * grid.frames**2, grid.tokens * TEXT],
    }
    again = len(getattr(config, "dual_layers", ())) * grid.tokens**2
    return 4 * config.width * SEQUENCES * (config.layers * sum(pairs[config.family]) + again)


# -- what is easily forgotten ---------------------------------------------------------------------------


def test_every_block_is_modulated_by_six_vectors_of_its_own():
    config = load_config("dit-xl-2")
    trace = trace_denoising(declare(config), Grid(16, 16), 4)
    (modulation,) = [op for op in trace.ops if op.name == "modulation"]
    assert modulation.repeat == 28
    assert modulation.flops.matrix == 2 * 4 * 1152 * 6 * 1152  # of four sequences, whatever their length
    modulated = [op for op in trace.ops for part in op.parts if part.kind == "modulate"]
    gated = [op for op in trace.ops for part in op.parts if part.kind == "gate"]
    assert [op.name for op in modulated] == ["input_norm", "post_norm", "final_norm"]
    assert [op.name for op in gated] == ["attention.out", "mlp.down"]


@pytest.mark.parametrize("name", DIFFUSION)
def test_the_mlp_has_two_matrices_and_no_gate(name):
    model = declare(load_config(name))
    shapes = {w.name: w.shape for w in model.weights()}
    up, down = (next(s for n, s in shapes.items() if n.endswith(f"mlp.{m}")) for m in ("up", "down"))
    assert up == (4 * model.config.width, model.config.width)
    assert down == up[::-1]


@pytest.mark.parametrize("name", DIFFUSION)
def test_norms_have_no_weights_of_their_own_but_those_of_heads(name):
    config = load_config(name)
    if config.family == "cogvideox":  # its norms do, and the condition scales and shifts what they give
        assert {"input_norm", "post_norm.bias"} <= {w.name for w in declare(config).weights()}
        return
    streams = ("attention", "text.attention") if config.normed_heads else ()
    streams += ("dual.attention",) if name == "sd3.5-medium" else ()
    expected = {f"{stream}.{which}_norm" for stream in streams for which in ("query", "key")}
    assert {w.name for w in declare(config).weights() if "norm" in w.name} == expected


def test_a_video_has_no_cache_and_attends_within_frames_then_within_places():
    config = load_config("latte-1")
    trace = trace_denoising(declare(config), Grid(4, 6, frames=16), 2, 10)
    rows = {op.name: op.parts[0].sequences[0] for op in trace.ops if op.kind == "attend"}
    assert (rows["spatial.attention"].rows, rows["spatial.attention"].count) == (24, 2 * 16)
    assert (rows["temporal.attention"].rows, rows["temporal.attention"].count) == (16, 2 * 24)
    assert (rows["cross"].rows, rows["cross"].count) == (24 * 16, 2)
    assert trace.memory().cache == 0


def test_embedders_that_differ_between_blocks_are_refused(tmp_path):
    model = DiTTransformer2DModel(**{**SMALL, "num_embeds_ada_norm": 10})  # every block draws its own
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"norm1\.emb\..*differs from 'transformer_blocks\.0\."):
        load_model(load_config(tmp_path), tmp_path)
