"""What every family's model has in common, and who makes its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

from ridgeline.errors import InputError
from ridgeline.ops.batch import BLOCK_TOKENS, Batch, CacheSpec, Memory, Span, T
from ridgeline.ops.formats import get_format
from ridgeline.ops.layers import weights_of
from ridgeline.ops.protocol import Ops
from ridgeline.ops.records import Norm, Weight

if TYPE_CHECKING:
    from ridgeline.ops.count import Count


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, whatever its family; lengths in tokens, sizes in elements.

    ``window`` is the longest sequence it takes; ``format`` the storage format it ships in; ``tied``
    whether the output matrix is the embedding.
    """

    name: str
    family: str
    architecture: str
    format: str
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    window: int
    tied: bool

    @property
    def stored_format(self) -> str:
        """What the published weights are stored as: ``format``, or the quantised one of those that are
        multiplied."""
        return self.format

    @property
    def is_decoder(self) -> bool:
        """Whether it generates, and so keeps a key/value cache."""
        return True

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt and a decoder the encoder."""
        return False

    @property
    def is_diffusion(self) -> bool:
        """Whether it denoises latents, and so knows no tokens."""
        return False


def refuse_diffusion(config: ModelConfig) -> None:
    """Raises InputError for a model that has no tokens to be asked about."""
    if config.is_diffusion:
        raise InputError(
            f"{config.name} is a diffusion Transformer: it denoises images and knows no prompts or tokens; "
            "explain, report and check take it, with --image, and training, breakdown, dataflows and place do"
        )


def refuse_two_passes(config: ModelConfig) -> None:
    """Raises InputError for an encoder-decoder, where one pass is asked about."""
    if config.is_encoder_decoder:
        raise InputError(
            f"{config.name} is an encoder-decoder, whose request is two passes: a step of it stands beside "
            "what was encoded; explain and compare predict its requests, and generate runs them"
        )


@dataclass(frozen=True)
class Grouping:
    """Rows of a fused projection that go group by group: ``parts`` heads of queries, keys and values each, of
    ``dim`` rows a head. A weight has all queries first, then all keys, then all values."""

    parts: tuple[int, int, int]
    dim: int


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint: its name, the shape that it must have there, and the order of its rows if
    that is another than the weight's.

    More dimensions than the weight has are laid side by side: a convolution's kernel is a matrix.
    """

    name: str
    shape: tuple[int, ...]
    grouping: Grouping | None = None


#: The tensors of the expert of that number.
Each = Callable[[int], tuple[Source, ...]]


class WeightMaker(Protocol):
    """Supplies weights to a family's ``build``: declared, random, or loaded.

    Several sources are stacked along their first dimension. ``transposed`` marks a checkpoint
    that stores the matrix as [in, out].
    """

    def matrix(self, name: str, *sources: Source, transposed: bool = False) -> Weight:
        """The matrix of a linear layer, [out, in]."""

    def table(self, name: str, source: Source) -> Weight:
        """An embedding or output matrix, [vocab, width], or one that is both."""

    def experts(self, name: str, stacked: Source, each: Each) -> Weight:
        """The matrices of all experts, [experts, out, in]: one tensor, or the tensors of ``each`` expert,
        which are stacked along their first dimension too."""

    def vector(self, name: str, *sources: Source, fill: float) -> Weight:
        """A bias or a norm's weight; ``fill`` is its value in a random model."""


@dataclass(frozen=True)
class Model:
    """Base of a family's model: a tree of weights, and the one definition of its pass."""

    config: ModelConfig

    def forward(self, ops: Ops, batch: Batch) -> T:
        """Logits (or, of a headless encoder, hidden states) of the rows that want them."""
        raise NotImplementedError

    def whole(self, ops: Ops, batch: Batch) -> T:
        """A pass that uses every weight: :meth:`forward`, of an encoder-decoder behind its encoder."""
        return self.forward(ops, batch)

    def smallest_batch(self, ops: Count) -> Any:
        """The least that a counted pass can be run on."""
        cache = None
        if self.config.is_decoder:
            cache = ops.alloc_cache(self.cache_spec(self.plain_format), 0)
        return ops.batch([Span(1)], logits="all", cache=cache)

    def copied(self, tensor: str) -> Weight | None:
        """The weight that a checkpoint's tensor of that name repeats, beside tied embeddings."""
        return None

    def weights(self) -> Iterator[Weight]:
        """Every weight once; a tied one is met once."""
        seen: set[int] = set()
        for weight in weights_of(self):
            if id(weight) not in seen:
                seen.add(id(weight))
                yield weight

    def parameter_count(self) -> int:
        """Elements of all weights, tied ones once, buffers left out."""
        return sum(w.numel for w in self.weights() if w.trained)

    def active_parameters(self) -> int:
        """Those of its parameters that one token uses: of a mixture only the experts that it takes."""
        from ridgeline.models.active import active_parameters

        return active_parameters(self)

    def weight_bytes(self) -> float:
        """Bytes of the weights as stored, scales and padding included."""
        return sum(w.nbytes for w in self.weights())

    @property
    def plain_format(self) -> str:
        """The format of what is never quantised, such as norms; the cache's too, unless it is chosen."""
        return next(w.format for w in self.weights() if not get_format(w.format).is_quantised)

    def cache_spec(self, format: str, block_size: int = BLOCK_TOKENS) -> CacheSpec:
        """The key/value cache that this model needs."""
        c = self.config
        return CacheSpec(c.layers, c.kv_heads, c.head_dim, format, block_size)


@dataclass(frozen=True)
class EncoderDecoder(Model):
    """Base of a model whose decoder, :meth:`forward`, reads ``batch.memory``, what :meth:`encode` made of
    other sequences."""

    def encode(self, ops: Ops, batch: Batch) -> T:
        """The encoder's states of all rows. If ``batch.memory`` has a cache, the keys and values that the
        decoder's layers make of them are stored in it, where the spans of the batch say."""
        raise NotImplementedError

    def whole(self, ops: Ops, batch: Batch) -> T:
        """Encodes a batch and decodes the same one, every row beside the states of its sequence, as a
        training step does with targets as long as their sources."""
        states = self.encode(ops, replace(batch, memory=None))
        return self.forward(ops, replace(batch, memory=Memory(batch.spans, states)))

    def memory_spec(self, format: str, block_size: int = BLOCK_TOKENS) -> CacheSpec:
        """The cache of what the decoder reads of the encoder, filled once a sequence."""
        return self.cache_spec(format, block_size)


@dataclass(frozen=True)
class Declared:
    """Weights without data, in ``format``."""

    format: str

    def matrix(self, name: str, *sources: Source, transposed: bool = False) -> Weight:
        shape = matrix_shape(sources)
        return Weight(name, shape[::-1] if transposed else shape, self.format)

    def table(self, name: str, source: Source) -> Weight:
        return Weight(name, source.shape, self.format)

    def experts(self, name: str, stacked: Source, each: Each) -> Weight:
        return Weight(name, stacked.shape, self.format)

    def vector(self, name: str, *sources: Source, fill: float) -> Weight:
        return Weight(name, vector_shape(sources), self.format)


def matrix_shape(sources: tuple[Source, ...]) -> tuple[int, int]:
    """[out, in] of the matrix that the sources make, one below the other."""
    return (sum(s.shape[0] for s in sources), prod(sources[0].shape[1:]))


def vector_shape(sources: tuple[Source, ...]) -> tuple[int]:
    return (sum(prod(s.shape) for s in sources),)


def layer_norm(make: WeightMaker, name: str, source: str, width: int, eps: float) -> Norm:
    """A layer norm whose weight and bias are the checkpoint's ``source.weight`` and ``.bias``."""
    return Norm(
        "layer",
        make.vector(name, Source(f"{source}.weight", (width,)), fill=1.0),
        eps,
        make.vector(f"{name}.bias", Source(f"{source}.bias", (width,)), fill=0.0),
    )
