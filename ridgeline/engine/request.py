"""A request: what somebody wants generated, once it is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ridgeline.engine.sampling import GREEDY, BeamSearch, Sampling
from ridgeline.errors import InputError
from ridgeline.models.model import refuse_diffusion

if TYPE_CHECKING:
    from ridgeline.engine.constrained import Grammar
    from ridgeline.models.model import ModelConfig

#: By a stop token or stop string, or by the last token allowed.
FinishReason = Literal["stop", "length"]


def refuse_encoder(config: ModelConfig) -> None:
    """Raises InputError if the model generates no text, before its weights are loaded for nothing."""
    refuse_diffusion(config)
    if not config.is_decoder:
        raise InputError(f"{config.name} is an encoder, which generates nothing: use a decoder")


def refuse_encoder_decoder(config: ModelConfig) -> None:
    """Raises InputError if an encoder reads the prompts: an engine's blocks hold what decoders keep."""
    if config.is_encoder_decoder:
        raise InputError(
            f"{config.name} is an encoder-decoder, which the engine does not batch: `ridgeline generate`"
            " and ridgeline.load(...).generate run it, and `ridgeline compare` predicts batches of it"
        )


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt of token ids, and what is wanted of it.

    ``samples`` outputs of at most ``max_tokens`` each are chosen as ``sampling`` says, the i-th with its
    seed + i; or, with ``beams``, those are the best that a beam search finds. One of ``stop_ids`` or of the
    texts ``stop`` ends an output. ``logprobs`` asks for the log-probability of every token and of that many
    of the likeliest (None: of none). Of requests that wait, one of ``priority`` p goes before one of
    priority 0 that came up to p minutes earlier. ``context`` is what the keys and values depend on beside the
    tokens, such as the length that dynamic RoPE is fixed at: prefixes are shared within one context. An
    output follows ``grammar``, if there is one, and ends where that is complete.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    samples: int = 1
    beams: BeamSearch | None = None
    logprobs: int | None = None
    priority: float = 0.0
    context: bytes = b""
    grammar: Grammar | None = None

    @property
    def longest(self) -> int:
        """The length in tokens that an output may reach, its prompt included."""
        return len(self.prompt) + self.max_tokens

    @property
    def cached_at_most(self) -> int:
        """The tokens that the cache must have room for: the last output is never fed back."""
        return self.longest - 1

    @property
    def width(self) -> int:
        """How many sequences must be in the cache at once: the beams of a search, else one."""
        return 1 if self.beams is None else self.beams.width

    def blocks_at_most(self, block_size: int) -> int:
        """The cache blocks without which the request could not be finished. Beams share the full blocks of
        the prompt; samples may come one after another."""
        most = -(-self.cached_at_most // block_size)
        shared = min(len(self.prompt), self.cached_at_most) // block_size
        return shared + self.width * (most - shared)
