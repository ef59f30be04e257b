"""Embeddings of texts by an encoder: pooled hidden states of the last layer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ridgeline.errors import InputError
from ridgeline.loading import Loaded
from ridgeline.models.bert import Encoder as EncoderModel
from ridgeline.models.model import Model
from ridgeline.ops.batch import Batch, Span, T
from ridgeline.ops.protocol import Ops
from ridgeline.weights.files import read_optional_json

Pooling = Literal["mean", "cls"]

#: How a folder in the form of sentence-transformers names what we do, in 1_Pooling/config.json.
_POOLINGS: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


@dataclass(frozen=True)
class _HiddenStates(Model):
    """An encoder's pass up to its last hidden states, without the head or pooler behind them."""

    encoder: EncoderModel

    def forward(self, ops: Ops, batch: Batch) -> T:
        return self.encoder.encode(ops, batch)


class Encoder:
    """Embeds with a loaded encoder, at most ``token_budget`` tokens in a pass, but always whole texts.

    An embedding is the mean of a text's last hidden states, special tokens included, or the first of them
    (``cls``) where the folder's ``1_Pooling/config.json`` says so, scaled to length 1: what
    sentence-transformers gives, and the length that OpenAI's have.

    Raises InputError if the folder asks for another pooling.
    """

    def __init__(self, loaded: Loaded, token_budget: int) -> None:
        self.pooling = _pooling(loaded.folder)
        self._loaded = loaded
        self._model = _HiddenStates(loaded.config, loaded.model)
        self._budget = token_budget
        #: Held by whoever computes, so that requests take turns, pass by pass.
        self.turn = asyncio.Lock()

    def ids(self, text: str | Sequence[int], name: str) -> list[int]:
        """The token ids of a text, or those given.

        Raises InputError, with ``name`` for the text, if they are none, not in the vocabulary or more than
        the window, or if the model has no tokenizer for a text.
        """
        config, tokenizer = self._loaded.config, self._loaded.tokenizer
        if isinstance(text, str):
            if tokenizer is None:
                raise InputError(f"{name} is text, and the model has no tokenizer: give token ids")
            text = tokenizer.encode(text)
        if not text:
            raise InputError(f"{name} is empty: give some text")
        if len(text) > config.window:
            raise InputError(
                f"{name} has {len(text)} tokens and the model's window is {config.window}: shorten it"
            )
        if max(text) >= config.vocab:
            raise InputError(f"{name} holds the token id {max(text)}, expected 0 to {config.vocab - 1}")
        return list(text)

    def batches(self, texts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """The token ids of the texts in their order, in as many passes as they take."""
        batch: list[Sequence[int]] = []
        for text in texts:
            if batch and sum(map(len, batch)) + len(text) > self._budget:
                yield batch
                batch = []
            batch.append(text)
        yield batch

    @torch.inference_mode()
    def embed(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Embeddings of token ids, in one pass: [texts, width], float32, on the CPU."""
        ids = [token for text in texts for token in text]
        spans = [Span(len(text)) for text in texts]
        hidden = self._loaded.ops.run(self._model, ids, spans, logits="all").float().cpu()
        pooled = [
            rows[0] if self.pooling == "cls" else rows.mean(0)
            for rows in hidden.split([len(t) for t in texts])
        ]
        return torch.nn.functional.normalize(torch.stack(pooled))


def _pooling(folder: Path | None) -> Pooling:
    file = None if folder is None else folder / "1_Pooling" / "config.json"
    modes: dict[str, Any] = {} if file is None else read_optional_json(file)
    asked = [name for name, on in modes.items() if name.startswith("pooling_mode_") and on]
    if not asked:
        return "mean"
    if len(asked) > 1 or asked[0] not in _POOLINGS:
        raise InputError(f"{file} asks for {' and '.join(asked)}: only {' or '.join(_POOLINGS)} is done here")
    return _POOLINGS[asked[0]]
