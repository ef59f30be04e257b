"""The model that a server serves, and what computes with it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from ridgeline.engine.engine import Engine
from ridgeline.models.model import refuse_diffusion
from ridgeline.server.errors import ApiError
from ridgeline.server.metrics import Metrics

if TYPE_CHECKING:
    from ridgeline.engine.speculation.speculator import Speculator
    from ridgeline.loading import Loaded
    from ridgeline.server.encoder import Encoder
    from ridgeline.weights.tokenizer import Tokenizer


@dataclass(frozen=True)
class Service:
    """A loaded model under the name that requests call it by, with an ``engine`` if it generates or an
    ``encoder`` if it embeds."""

    name: str
    loaded: Loaded
    engine: Engine | None
    encoder: Encoder | None
    metrics: Metrics
    started: float = field(default_factory=time.time)

    @classmethod
    def start(
        cls,
        loaded: Loaded,
        name: str,
        *,
        token_budget: int,
        sequences: int,
        cache_tokens: int | None,
        speculator: Speculator | None = None,
        cache_format: str | None = None,
    ) -> Service:
        """Serve ``loaded``; the options are those of :class:`~ridgeline.engine.engine.Engine`, of which an
        encoder takes the first.

        Raises InputError as that does, or as :class:`~ridgeline.server.encoder.Encoder`.
        """
        refuse_diffusion(loaded.config)
        if not loaded.config.is_decoder:
            from ridgeline.server.encoder import Encoder

            return cls(name, loaded, None, Encoder(loaded, token_budget), Metrics(None))
        engine = Engine(
            loaded,
            token_budget=token_budget,
            sequences=sequences,
            cache_tokens=cache_tokens,
            speculator=speculator,
            cache_format=cache_format,
        )
        return cls(name, loaded, engine, None, Metrics(engine))

    @property
    def is_alive(self) -> bool:
        """Whether requests can be computed."""
        return self.engine is None or self.engine.is_alive

    def close(self) -> None:
        """End the engine; whoever waits for it gets EngineClosed."""
        if self.engine is not None:
            self.engine.close()

    # -- what an endpoint asks for, or else an ApiError ------------------------------------------------

    def check_name(self, model: str | None) -> None:
        if model is not None and model != self.name:
            raise ApiError(
                f"the model {model!r} does not exist: this server has {self.name!r}",
                status=404,
                param="model",
                code="model_not_found",
            )

    def need_engine(self) -> Engine:
        if self.engine is None:
            raise ApiError(
                f"{self.name} is an encoder, which generates nothing: use /v1/embeddings", param="model"
            )
        return self.engine

    def need_encoder(self) -> Encoder:
        if self.encoder is None:
            raise ApiError(f"{self.name} generates text and embeds none: serve an encoder", param="model")
        return self.encoder

    def need_tokenizer(self) -> Tokenizer:
        if self.loaded.tokenizer is None:
            raise ApiError(f"{self.name} has no tokenizer: give token ids", param="model")
        return self.loaded.tokenizer


def _service_of(request: Request) -> Service:
    return request.app.state.service


#: An endpoint's parameter of this type is the service.
ServiceOf = Annotated[Service, Depends(_service_of)]
