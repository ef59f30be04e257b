"""A denoising step's input as tensors, and images as patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ridgeline.models.denoising import Denoising, Grid, cut
from ridgeline.ops.batch import Span
from ridgeline.ops.torch_batch import TorchSpans

if TYPE_CHECKING:
    from ridgeline.models.diffusion import DiffusionConfig

#: The longest period of the sines of time and place.
LONGEST = 10_000
#: Timesteps of these models' noise go to here.
TRAINED_STEPS = 1000


def patchify(latents: torch.Tensor, patch: int) -> torch.Tensor:
    """Latents [sequences, channels, frames, height, width] as rows of patches, a frame after the other:
    [rows, channels * patch²], channel by channel within a patch."""
    n, channels, frames, height, width = latents.shape
    cut_up = latents.reshape(n, channels, frames, height // patch, patch, width // patch, patch)
    return cut_up.permute(0, 2, 3, 5, 1, 4, 6).reshape(-1, channels * patch * patch)


def unpatchify(
    patches: torch.Tensor, grid: Grid, patch: int, *, channels_first: bool = False
) -> torch.Tensor:
    """What a model predicts of each patch, [rows, patch² * channels], channels last or first, as latents
    [sequences, channels, frames, height, width]."""
    channels = patches.shape[1] // patch**2
    inner = (channels, patch, patch) if channels_first else (patch, patch, channels)
    cut_up = patches.view(-1, grid.frames, grid.rows, grid.columns, *inner)
    latents = cut_up.permute(0, 4, 1, 2, 5, 3, 6) if channels_first else cut_up.permute(0, 6, 1, 2, 4, 3, 5)
    return latents.reshape(*latents.shape[:3], grid.rows * patch, grid.columns * patch)


def denoising(
    config: DiffusionConfig,
    grid: Grid,
    latents: torch.Tensor,
    times: torch.Tensor,
    *,
    labels: torch.Tensor | None = None,
    text: torch.Tensor | None = None,
    pooled: torch.Tensor | None = None,
) -> Denoising:
    """The input of a step.

    - ``latents``: [sequences, channels, frames, height, width]; ``times``: [sequences], of 0 to 1000.
    - ``labels``: [sequences]; ``text``: [sequences, tokens, text width]; ``pooled``: [sequences, its width].
    """
    dtype, sequences = latents.dtype, len(latents)
    tokens = 0 if text is None else text.shape[1]
    spans = cut(config, grid, sequences, tokens, _laid_out)
    batch = Denoising(
        spans,
        patchify(latents, config.patch),
        positions(config, grid).to(dtype).repeat(sequences, 1),
        time_features(times, config.time_features, config.time_shift).to(dtype),
        labels,
        None if text is None else text.flatten(0, 1),
        pooled,
    )
    if config.knows_size:
        side = config.patch * config.downsampling
        pixels = torch.tensor([grid.rows * side, grid.columns * side]).repeat(sequences)
        ratios = torch.full((sequences,), grid.rows / grid.columns)
        features = (time_features(x, config.time_features, 0).to(dtype) for x in (pixels, ratios))
        return replace(batch, sizes=next(features), ratios=next(features))
    if not config.has_tracks:
        return batch
    order = torch.arange(grid.tokens * sequences).view(sequences, grid.frames, grid.places)
    by_place = order.transpose(1, 2).flatten()
    moments = None
    if grid.frames > 1:
        rows = sines(torch.arange(grid.frames), config.width)
        moments = rows.to(dtype).repeat(sequences * grid.places, 1)
    return replace(batch, by_place=by_place, by_frame=by_place.argsort(), moments=moments)


def random_denoising(
    config: DiffusionConfig, grid: Grid, sequences: int, text: int, dtype: torch.dtype, seed: int = 0
) -> Denoising:
    """A step of noise: same seed, same step."""
    generator = torch.Generator().manual_seed(seed)
    side = config.patch
    size = (sequences, config.in_channels, grid.frames, grid.rows * side, grid.columns * side)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    given = {}
    if config.classes:
        given["labels"] = torch.randint(config.classes + 1, (sequences,), generator=generator)
    if config.text_width:
        given["text"] = noise(sequences, text, config.text_width)
    if config.pooled_width:
        given["pooled"] = noise(sequences, config.pooled_width)
    times = torch.rand(sequences, generator=generator) * TRAINED_STEPS
    return denoising(config, grid, noise(*size), times, **given)


def _laid_out(spans: Sequence[Span], count: int) -> TorchSpans:
    return TorchSpans(tuple(spans) * count, torch.device("cpu"))


def positions(config: DiffusionConfig, grid: Grid) -> torch.Tensor:
    """What is added for each patch of an image or video, [tokens, width], float64: sines of its column in the
    first half, of its row in the second; where frames are told apart here, too, those of its frame in the
    first quarter, and the others in the rest.

    Places are measured on the grid that the model was trained on, so that a larger image lies closer, unless
    frames are measured too; a model with a table up to ``most_places`` a side takes the middle of it.
    """
    together = config.frames > 1 and not config.has_tracks
    trained = config.sample // config.patch

    def along(n: int) -> torch.Tensor:
        whole = config.most_places or n
        first = (whole - n) // 2
        scale = 1.0 if together else whole / trained
        return torch.arange(first, first + n, dtype=torch.float64) / scale / config.stretch

    of_frames = config.width // 4 if together else 0
    column, row = (sines(along(n), (config.width - of_frames) // 2) for n in (grid.columns, grid.rows))
    both = torch.cat([column.repeat(grid.rows, 1), row.repeat_interleave(grid.columns, 0)], dim=1)
    every = both.repeat(grid.frames, 1)
    if not together:
        return every
    frames = sines(torch.arange(grid.frames), of_frames).repeat_interleave(grid.places, 0)
    return torch.cat([frames, every], dim=1)


def sines(places: torch.Tensor, width: int) -> torch.Tensor:
    """Sines, then cosines of ``places`` [n] at falling frequencies: [n, width], float64."""
    half = width // 2
    frequency = LONGEST ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = places.double()[:, None] * frequency
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def time_features(times: torch.Tensor, features: int, shift: int) -> torch.Tensor:
    """Cosines, then sines of each timestep: [sequences, features], float64."""
    half = features // 2
    exponents = torch.arange(half, dtype=torch.float64) / (half - shift)
    angles = times.double()[:, None] * torch.exp(-math.log(LONGEST) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)
