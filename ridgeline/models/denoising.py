"""What a diffusion Transformer is given at a step: noisy latents in patches, and what conditions them.

Sequences are packed as everywhere: the patches of all images (or videos) one after another, those of a video
frame by frame, those of a frame row by row. Guidance without a classifier runs every image twice, with its
condition and without: that is two sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ridgeline.errors import InputError
from ridgeline.ops.batch import Span, Spans, T
from ridgeline.ops.numbers import Number

if TYPE_CHECKING:
    from ridgeline.models.diffusion import DiffusionConfig
    from ridgeline.ops.count import Count


@dataclass(frozen=True)
class Grid:
    """An image in patches; a video has several ``frames`` of them."""

    rows: int
    columns: int
    frames: int = 1

    @property
    def places(self) -> int:
        """Patches of a frame."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        return self.frames * self.places


@dataclass(frozen=True)
class Spans3D:
    """The same rows cut into sequences in different ways, whichever attention they are for.

    ``images``: all patches of an image or video. ``frames``: those of a frame. ``tracks``: those of a place
    in all frames, where rows are ordered by place. ``text``: the rows of each text. ``cross``: images that
    read their texts. ``joint``: an image's rows and its text's; ``segments``: those two apart, in turn.
    """

    images: Spans
    frames: Spans
    tracks: Spans
    text: Spans | None = None
    cross: Spans | None = None
    joint: Spans | None = None
    segments: Spans | None = None


@dataclass(frozen=True)
class Denoising:
    """One step's input.

    - ``patches`` [rows, channels * patch²]: the latents, channel by channel within a patch.
    - ``positions`` [rows, width]: what is added for a patch's place.
    - ``times`` [sequences, time features]: each sequence's timestep, as sines and cosines.
    - ``labels`` [sequences]: numbers of classes; that after the last means none.
    - ``text`` [text rows, text width], ``pooled`` [sequences, pooled width]: the prompt, encoded.
    - ``sizes`` [2 sequences, time features], ``ratios`` [sequences, time features]: height and width of each
      image in pixels, and height over width, as sines and cosines.
    - ``by_place``, ``by_frame`` [rows]: the orders that bring a video's rows from frame by frame to place by
      place, and back; ``moments`` [rows, width]: what is added for a row's frame, ordered by place.
    """

    spans: Spans3D
    patches: T
    positions: T
    times: T
    labels: T | None = None
    text: T | None = None
    pooled: T | None = None
    sizes: T | None = None
    ratios: T | None = None
    by_place: T | None = None
    by_frame: T | None = None
    moments: T | None = None


def cut(
    config: DiffusionConfig,
    grid: Grid,
    sequences: Number,
    text: Number,
    make: Callable[[Sequence[Span], Number], Spans],
) -> Spans3D:
    """The spans of ``sequences`` alike, each of ``grid`` and ``text`` text tokens; ``make`` lays out some
    spans, one after another, that many times."""
    images = Span(grid.tokens)
    spans = {
        "images": make([images], sequences),
        "frames": make([Span(grid.places)], sequences * grid.frames),
        "tracks": make([Span(grid.frames)], sequences * grid.places),
    }
    if config.text_width:
        spans["text"] = make([Span(text)], sequences)
        # All rows see all of the text's: keys - rows are "past", and fewer than none where the text is short.
        spans["cross"] = make([Span(grid.tokens, past=text - grid.tokens)], sequences)
        spans["joint"] = make([Span(grid.tokens + text)], sequences)
        spans["segments"] = make([images, Span(text)], sequences)
    return Spans3D(**spans)


def shapes(config: DiffusionConfig, grid: Grid, sequences: Number, text: Number) -> dict[str, tuple]:
    """The shape of every tensor of :class:`Denoising` that the model reads."""
    rows = grid.tokens * sequences
    found: dict[str, tuple] = {
        "patches": (rows, config.in_channels * config.patch**2),
        "positions": (rows, config.width),
        "times": (sequences, config.time_features),
    }
    if config.classes:
        found["labels"] = (sequences,)
    if config.text_width:
        found["text"] = (text * sequences, config.text_width)
    if config.pooled_width:
        found["pooled"] = (sequences, config.pooled_width)
    if config.knows_size:
        found["sizes"] = (2 * sequences, config.time_features)
        found["ratios"] = (sequences, config.time_features)
    if config.has_tracks:
        found |= {"by_place": (rows,), "by_frame": (rows,)}
        if grid.frames > 1:
            found["moments"] = (rows, config.width)
    return found


#: What is looked up by: numbers of classes and of rows.
INDICES = frozenset({"labels", "by_place", "by_frame"})


def count_denoising(
    ops: Count, config: DiffusionConfig, grid: Grid, sequences: Number = 1, text: Number | None = None
) -> Denoising:
    """The input of a counted step; ``sequences`` and ``text`` may be NumPy arrays."""
    from ridgeline.ops.counted import counted_spans

    text = config.text_tokens if text is None else text
    spans = cut(
        config, grid, sequences, text, lambda spans, n: counted_spans([replace(s, count=n) for s in spans])
    )
    given = {
        name: ops.input(name, shape, "int64" if name in INDICES else ops.activations)
        for name, shape in shapes(config, grid, sequences, text).items()
    }
    return Denoising(spans, **given)


def grid_of(
    config: DiffusionConfig, height: int | None = None, width: int | None = None, frames: int | None = None
) -> Grid:
    """The patches of an image of ``height`` x ``width`` pixels, square if one is given, as the model was
    trained if none is.

    Raises InputError for a size that is no whole number of patches, or beyond what the model takes.
    """
    side = config.patch * config.downsampling
    if height is None:
        height, width = (side * config.downsampling for side in (config.sample, config.sample_columns))
    width = height if width is None else width
    frames = config.frames if frames is None else frames
    for name, value in (("image", height), ("image", width)):
        if not isinstance(value, int) or value < side or value % side:
            raise InputError(f"{name} must be a multiple of {side} pixels for {config.name}, not {value}")
    if not isinstance(frames, int) or frames < 1:
        raise InputError(f"frames must be a whole number from 1, not {frames}")
    if frames > 1 and config.frames == 1:
        raise InputError(f"{config.name} makes images, not videos: leave frames out")
    if (frames - 1) % config.frame_stride:
        raise InputError(f"frames must be 1 more than a multiple of {config.frame_stride}, not {frames}")
    grid = Grid(height // side, width // side, (frames - 1) // config.frame_stride + 1)
    if config.most_places and max(grid.rows, grid.columns) > config.most_places:
        most = config.most_places * side
        raise InputError(f"{config.name} takes {most} x {most} pixels at most, not {height} x {width}")
    return grid
