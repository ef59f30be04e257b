"""Filling a model's weights with tensors: from a checkpoint, or at random for measuring without files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ridgeline.errors import InputError
from ridgeline.models.model import (
    Each,
    Grouping,
    Model,
    ModelConfig,
    Source,
    matrix_shape,
    vector_shape,
)
from ridgeline.models.registry import build
from ridgeline.ops.records import Weight
from ridgeline.ops.torch_batch import FORMAT_NAME, TORCH_DTYPE
from ridgeline.weights.checkpoint import Checkpoint

#: What a checkpoint of the bare trunk leaves out of its tensors' names, by family.
TRUNK_PREFIX = {
    "gpt2": "transformer.",
    "falcon": "transformer.",
    "gpt_neox": "gpt_neox.",
    "bert": "bert.",
}
DEFAULT_TRUNK_PREFIX = "model."

#: Tensors that checkpoints carry and that nothing reads: buffers that are recomputed, heads of
#: other tasks than the one that is run, the bias that an untied BERT leaves unused, and one of T5's first
#: checkpoints.
NOT_READ = re.compile(
    r"rotary_emb\.inv_freq$|\.(attn|attention)\.(masked_)?bias$|position_ids$|seq_relationship\."
    r"|(^|\.)pooler\.dense\.|^cls\.predictions\.bias$|^pos_embed\.pos_embed$"
    r"|\.EncDecAttention\.relative_attention_bias\.weight$"
)
#: What the tensors of a layer are called in families that have layers to spare.
LAYER = re.compile(r"model\.layers\.(\d+)\.")
#: Tensors that repeat another where the embeddings are tied, and the model's field that they repeat.
TIED_COPIES = {
    "lm_head.weight": "head",
    "embed_out.weight": "head",
    "cls.predictions.decoder.weight": "head",
    "cls.predictions.decoder.bias": "head_bias",
}
#: Under these names, an encoder-decoder's one embedding may be stored again, or instead.
EMBEDDING_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
#: Under these names, a tied embedding may be stored in the place of its own.
TIED_HEADS = tuple(name for name, field in TIED_COPIES.items() if field == "head")

#: What a weight may be stored as; anything else is quantised, and needs scales to be read.
FLOATS = ("float64", "float32", "bfloat16", "float16")

#: Spread of random weights: what most of these families were initialised with.
RANDOM_STD = 0.02
#: Random values are drawn once and laid end to end. An odd length keeps rows from repeating.
RANDOM_TILE = (1 << 22) - 3


def load_model(
    config: ModelConfig,
    folder: Path,
    format: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Model:
    """The model with the weights of ``folder``'s safetensors.

    A tensor that needs no change is a view of the memory-mapped file; stacked, transposed or
    converted ones are copied once. ``format`` converts all weights to fp32, bf16 or fp16;
    ``progress`` is called with the parameters of each weight that is ready.

    Raises InputError for a missing, surplus, truncated, misshapen or quantised tensor.
    """
    maker = CheckpointMaker(config, folder, torch_dtype(format or config.format), progress)
    model = build(config, maker)
    maker.refuse_surplus(model)
    return model


def random_model(
    config: ModelConfig,
    format: str | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Model:
    """The model with random weights: N(0, 0.02) matrices, norms 1, biases 0; same seed, same model."""
    return build(config, RandomMaker(torch_dtype(format or config.format), seed, progress))


def torch_dtype(format: str) -> torch.dtype:
    """The dtype of tensors stored as ``format``. Raises InputError if a tensor can't be."""
    if format not in TORCH_DTYPE:
        raise InputError(f"a tensor has no format '{format}'; choose one of: {', '.join(TORCH_DTYPE)}")
    return TORCH_DTYPE[format]


class CheckpointMaker:
    """Makes weights from a folder's safetensors; see :func:`load_model`.

    ``dtype`` None keeps bfloat16 as it is and makes float32 of everything else, which loses nothing that
    packing would keep.
    """

    def __init__(
        self,
        config: ModelConfig,
        folder: Path,
        dtype: torch.dtype | None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.config = config
        self.checkpoint = Checkpoint.open(folder)
        self.dtype = dtype
        self.progress = progress
        self.read: set[str] = set()
        #: The tensors of a weight by its name: of layers' weights, those of the last layer.
        self.tensors: dict[str, list[str]] = {}

    def matrix(self, name: str, *sources: Source, transposed: bool = False) -> Weight:
        return self._weight(
            name, [self._find(source) for source in sources], 2, transposed, sources[0].grouping
        )

    def table(self, name: str, source: Source) -> Weight:
        stand_ins: tuple[str, ...] = ()
        if name == "head":
            stand_ins = TIED_HEADS  # GPT-NeoX's has had two names
        if name == "embedding":
            stand_ins = (*self._embedding_copies(), *(TIED_HEADS if self.config.tied else ()))
        return self._weight(name, [self._find(source, stand_ins)], 2)

    def _embedding_copies(self) -> tuple[str, ...]:
        return EMBEDDING_COPIES if self.config.is_encoder_decoder else ()

    def experts(self, name: str, stacked: Source, each: Each) -> Weight:
        if any(spelling in self.checkpoint for spelling in self._spellings(stacked.name)):
            return self._weight(name, [self._find(stacked)], 3)
        stored = [self._find(source) for i in range(stacked.shape[0]) for source in each(i)]
        flat = self._weight(name, stored, 2)
        return replace(flat, shape=stacked.shape, data=flat.data.view(stacked.shape))

    def vector(self, name: str, *sources: Source, fill: float) -> Weight:
        return self._weight(name, [self._find(source) for source in sources], 1, grouping=sources[0].grouping)

    def refuse_surplus(self, model: Model) -> None:
        """A tensor that the pass never reads means that config and weights do not match."""
        for name in self.checkpoint.names():
            if name in self.read or NOT_READ.search(name) or self._is_spare(name):
                continue
            if name in self._embedding_copies():
                self._expect_copy(name, model.embedding)
                continue
            tied = getattr(model, TIED_COPIES.get(name, ""), None) if self.config.tied else None
            original = model.copied(name) if tied is None else tied
            if original is None:
                raise InputError(
                    f"{self.checkpoint.info(name).file}: tensor '{name}' has no place in a "
                    f"{self.config.family} model with this config; do config.json and the weights belong "
                    "together?"
                )
            self._expect_copy(name, original)

    def _is_spare(self, name: str) -> bool:
        """Whether the tensor is one of the layers behind the main model's, which predict further ahead."""
        layer = LAYER.match(name)
        spare = getattr(self.config, "spare_layers", 0)
        return layer is not None and 0 <= int(layer[1]) - self.config.layers < spare

    def _expect_copy(self, name: str, original: Weight) -> None:
        info = self.checkpoint.expect(name, original.shape)
        dtype = self.dtype or torch.float32
        # A few rows at a time, since a conversion takes memory.
        copy, tied = (self.checkpoint.tensor(n).split(64) for n in (name, *self.tensors[original.name]))
        if not all(torch.equal(a.to(dtype), b.to(dtype)) for a, b in zip(copy, tied)):
            way_out = "set tie_word_embeddings to false if it is meant to"
            if name not in TIED_COPIES:
                way_out = "a model whose copies differ is not supported"
            first = self.tensors[original.name][0]
            raise InputError(
                f"{info.file}: tensor '{name}' differs from '{first}', which it repeats; {way_out}"
            )

    def _find(self, source: Source, stand_ins: tuple[str, ...] = ()) -> str:
        """The checkpoint's name of the tensor, which is there and can be read."""
        spellings = (*self._spellings(source.name), *stand_ins)
        name = next((n for n in spellings if n in self.checkpoint), source.name)
        info = self.checkpoint.expect(name, source.shape)
        if info.dtype not in FLOATS:
            raise InputError(
                f"{info.file}: tensor '{name}' is stored as {info.dtype}, expected one of "
                f"{', '.join(FLOATS)}: quantised weights cannot be loaded yet"
            )
        self.read.add(name)
        return name

    def _spellings(self, name: str) -> tuple[str, ...]:
        """The name as today's transformers writes it, without or with the trunk's prefix, and
        each with the older names of a layer norm's parameters and the newer ones of a mixture."""
        prefix = TRUNK_PREFIX.get(self.config.family, DEFAULT_TRUNK_PREFIX)
        bare = name.removeprefix(prefix)
        today = (name, bare, prefix + bare)
        return (
            *today,
            *(_old_norm(spelling) for spelling in today),
            *(spelling.replace(".block_sparse_moe.", ".mlp.") for spelling in today),
        )

    def _weight(
        self,
        name: str,
        stored: list[str],
        dims: int,
        transposed: bool = False,
        grouping: Grouping | None = None,
    ) -> Weight:
        """The weight of ``dims`` dimensions that the tensors make, one below the other."""
        self.tensors[name] = stored
        found = (self.checkpoint.tensor(n) for n in stored)
        flat = [t.flatten(dims - 1) if t.dim() > dims else t for t in found]
        tensors = [t.T for t in flat] if transposed else flat
        if grouping is not None:
            tensors = [_in_order(tensor, grouping) for tensor in tensors]
        rows = sum(t.shape[0] for t in tensors)
        first, dtype = tensors[0], self.dtype
        if dtype is None:
            dtype = torch.bfloat16 if all(t.dtype == torch.bfloat16 for t in tensors) else torch.float32
        if len(tensors) == 1 and first.dtype == dtype and first.is_contiguous():
            data = first
        else:
            data = torch.empty((rows, *first.shape[1:]), dtype=dtype)
            start = 0
            for tensor in tensors:
                data[start : start + tensor.shape[0]].copy_(tensor)
                start += tensor.shape[0]
        return _made(name, data, self.progress)


def _in_order(tensor: torch.Tensor, grouping: Grouping) -> torch.Tensor:
    groups = tensor.unflatten(0, (-1, sum(grouping.parts), grouping.dim))
    return torch.cat([part.flatten(0, 2) for part in groups.split(grouping.parts, dim=1)])


def _made(name: str, data: torch.Tensor, progress: Callable[[int], None] | None) -> Weight:
    if progress is not None:
        progress(data.numel())
    return Weight(name, tuple(data.shape), FORMAT_NAME[data.dtype], data)


def _old_norm(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


class RandomMaker:
    """Makes random weights; see :func:`random_model`."""

    def __init__(
        self, dtype: torch.dtype, seed: int = 0, progress: Callable[[int], None] | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tile = torch.empty(RANDOM_TILE).normal_(0.0, RANDOM_STD, generator=generator).to(dtype)
        self.place = 0
        self.progress = progress

    def matrix(self, name: str, *sources: Source, transposed: bool = False) -> Weight:
        shape = matrix_shape(sources)
        return _made(name, self._draw(shape[::-1] if transposed else shape), self.progress)

    def table(self, name: str, source: Source) -> Weight:
        return _made(name, self._draw(source.shape), self.progress)

    def experts(self, name: str, stacked: Source, each: Each) -> Weight:
        return _made(name, self._draw(stacked.shape), self.progress)

    def vector(self, name: str, *sources: Source, fill: float) -> Weight:
        return _made(name, torch.full(vector_shape(sources), fill, dtype=self.tile.dtype), self.progress)

    def _draw(self, shape: tuple[int, ...]) -> torch.Tensor:
        data = torch.empty(shape, dtype=self.tile.dtype)
        flat, start = data.view(-1), 0
        while start < flat.numel():
            n = min(flat.numel() - start, RANDOM_TILE - self.place)
            flat[start : start + n] = self.tile[self.place : self.place + n]
            start, self.place = start + n, (self.place + n) % RANDOM_TILE
        return data
