"""``ridgeline eval``: how well a model predicts a text, as perplexity and bits per byte.

What is scored: each document is read on its own, after the model's beginning token, which is given
and not scored. Every other token is scored exactly once: its nats are -ln p(token | tokens before
it). The document's end is not scored.

What a token is predicted from: the document is read in windows of W tokens that start S tokens
apart (the stride), and a window scores what no window before it did. So a token has all that comes
before it in the document as context, up to W tokens, and never fewer than W - S + 1 of them. This
is the strided evaluation that published perplexities of models with a fixed window use.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ridgeline.errors import InputError
from ridgeline.models.model import Model, ModelConfig, refuse_diffusion
from ridgeline.ops.batch import Span

if TYPE_CHECKING:
    import torch

    from ridgeline.loading import Loaded
    from ridgeline.ops.reference import Reference
    from ridgeline.ops.torch_batch import TorchCache
    from ridgeline.weights.tokenizer import Tokenizer

#: Tokens that are read together at most, unless the caller or the model's own window says otherwise.
WINDOW = 1024
#: Tokens of a pass: it bounds the logits in memory, to 150 MB in float32 with a vocabulary of 150,000.
CHUNK = 256
#: Beyond this many nats a token the perplexity is no float.
MOST_NATS = math.log(sys.float_info.max)


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicted the ``documents``; what is scored is said at the top of this module.

    ``format`` is that of the weights, which take ``weight_bytes``; ``window`` and ``stride`` are in tokens.
    ``tokens`` counts those that were scored, ``bytes`` the UTF-8 bytes of the text, ``nats`` is the sum over
    the tokens, and ``seconds`` the time of the model's passes.
    """

    model: str
    format: str
    weight_bytes: float
    documents: int
    window: int
    stride: int
    tokens: int
    bytes: int
    nats: float
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp(nats / tokens); comparable between models of one tokenizer only."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """nats / ln 2 / bytes; comparable between all models, whatever their tokenizers."""
        return self.nats / math.log(2) / self.bytes

    @property
    def tokens_per_second(self) -> float:
        """Scored tokens; windows overlap, so about window / stride times as many are computed."""
        return self.tokens / self.seconds


def evaluate(
    loaded: Loaded,
    texts: str | Sequence[str],
    *,
    window: int | None = None,
    stride: int | None = None,
    chunk: int = CHUNK,
    progress: Callable[[str, float], None] | None = None,
) -> Evaluation:
    """Perplexity and bits per byte of ``texts``, a document or several, in the format that the weights
    are loaded in.

    ``loaded`` is what :func:`ridgeline.load` returned. A document follows the tokenizer's beginning
    token; where there is none its own first token is given and not scored, while its bytes count.
    The rest is as for :func:`evaluate_tokens`.

    Raises InputError if the model has no tokenizer, and as :func:`evaluate_tokens` does.
    """
    name = loaded.config.name
    _require_decoder(loaded.config)
    if loaded.tokenizer is None:
        raise InputError(f"{name} has no tokenizer to read a text with: put its tokenizer.json in the folder")
    texts = [texts] if isinstance(texts, str) else texts
    return evaluate_tokens(
        loaded.model,
        loaded.ops,
        [_document(loaded.tokenizer, text) for text in texts],
        sum(len(text.encode()) for text in texts),
        window=window,
        stride=stride,
        chunk=chunk,
        progress=progress,
    )


def evaluate_tokens(
    model: Model,
    ops: Reference,
    documents: Sequence[Sequence[int]],
    text_bytes: int,
    *,
    window: int | None = None,
    stride: int | None = None,
    chunk: int = CHUNK,
    progress: Callable[[str, float], None] | None = None,
) -> Evaluation:
    """Perplexity and bits per byte of documents of token ids, whose first token is given and not scored.

    ``text_bytes`` is the size of the text that they spell. ``window`` is by default 1,024 tokens, or the
    model's window if that is shorter, and ``stride`` half of it. ``chunk`` tokens are computed at a time,
    which takes memory and time but decides nothing. ``progress`` is called with what is being done and
    the share that is done. ``ops`` is an executing reading.

    Raises InputError if the model is an encoder, a length is out of range, an id outside the vocabulary,
    or there is nothing to score; and if the loss is no finite perplexity (an overflow in fp16).
    """
    import torch

    config = model.config
    _require_decoder(config)
    window, stride = _lengths(config, window, stride)
    _whole("chunk", chunk, sys.maxsize)
    ids = [_checked(document, i, config) for i, document in enumerate(documents)]
    parts = [(document, part) for document in ids for part in windows(len(document), window, stride)]
    if not parts:
        raise InputError("the text is empty, so there is no token to score: give some text")

    nats, done, total = 0.0, 0, sum(part.rows for _, part in parts)
    cache = _cache(model, ops, max(part.rows for _, part in parts))
    begin = time.perf_counter()
    with torch.inference_mode():
        for document, part in parts:
            if progress is not None:
                progress(f"evaluating {config.name} in {config.format}", done / total)
            nats += _nats(model, ops, cache, document, part, chunk)
            done += part.rows
    seconds = time.perf_counter() - begin

    tokens = sum(part.stop - part.scored for _, part in parts)
    if not nats / tokens < MOST_NATS:  # not a number compares false
        raise InputError(f"{config.name} overflows in {config.format}: its loss is {nats}; try fp32 weights")
    return Evaluation(
        model=config.name,
        format=config.format,
        weight_bytes=model.weight_bytes(),
        documents=len(ids),
        window=window,
        stride=stride,
        tokens=tokens,
        bytes=text_bytes,
        nats=nats,
        seconds=seconds,
    )


@dataclass(frozen=True)
class Window:
    """The model reads a document's tokens from ``start`` up to ``stop - 1`` and predicts those from
    ``scored`` up to ``stop``, which are excluded each."""

    start: int
    scored: int
    stop: int

    @property
    def rows(self) -> int:
        """The tokens that are read."""
        return self.stop - 1 - self.start


def windows(tokens: int, window: int, stride: int) -> Iterator[Window]:
    """The windows that score every token of a document but its first once, each with the
    ``min(index, window - stride + 1)`` tokens before it or more; 1 <= stride <= window."""
    scored = 1
    for start in range(0, tokens - 1, stride):
        stop = min(start + window + 1, tokens)
        yield Window(start, scored, stop)
        scored = stop
        if stop == tokens:
            return


def read_text(path: Path) -> str:
    """The text of a file, byte for byte. Raises InputError if it is missing, empty or not UTF-8 text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a text file") from None
    if not data:
        raise InputError(f"{path} is empty: give a file with some text")
    if b"\0" in data:  # legal in UTF-8, but found in binary files and UTF-16 only
        raise InputError(f"{path} is binary, it holds zero bytes: give a text file in UTF-8")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}): convert it to UTF-8") from None


def _nats(
    model: Model, ops: Reference, cache: TorchCache, document: torch.Tensor, part: Window, chunk: int
) -> float:
    """The sum of a window's nats. The window is computed chunk by chunk on a cache, and only rows that
    predict a scored token get logits, which for a large vocabulary are most of the work and memory."""
    import torch

    table = tuple(range(cache.blocks))
    nats = 0.0
    for past in range(0, part.rows, chunk):
        rows = min(chunk, part.rows - past)
        first = part.start + past  # the token that row 0 reads; row r predicts the token first + r + 1
        wanted = min(max(part.scored - 1 - first, 0), rows)
        span = Span(rows, past, table=table, admitted=part.rows)
        ids = document[first : first + rows].tolist()
        logits = ops.run(model, ids, [span], logits=range(wanted, rows), cache=cache).float()
        targets = document[first + wanted + 1 : first + rows + 1].to(ops.device)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        nats += losses.double().sum().item()
    return nats


def _cache(model: Model, ops: Reference, tokens: int) -> TorchCache:
    spec = model.cache_spec(model.plain_format)
    return ops.alloc_cache(spec, -(-tokens // spec.block_size))


def _document(tokenizer: Tokenizer, text: str) -> list[int]:
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return begin + tokenizer.encode(text, add_special_tokens=False)


def _require_decoder(config: ModelConfig) -> None:
    refuse_diffusion(config)
    if not config.is_decoder:
        raise InputError(f"{config.name} is an encoder, which predicts no next token: use a decoder")
    if config.is_encoder_decoder:
        raise InputError(f"{config.name} is an encoder-decoder, which scores no plain text: use a decoder")


def _lengths(config: ModelConfig, window: int | None, stride: int | None) -> tuple[int, int]:
    window = min(WINDOW, config.window) if window is None else window
    _whole("window", window, config.window)
    stride = max(window // 2, 1) if stride is None else stride
    _whole("stride", stride, window)
    return window, stride


def _whole(name: str, value: Any, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InputError(f"{name} is {value!r}, expected a whole number of tokens from 1 to {most}")


def _checked(document: Sequence[int], number: int, config: ModelConfig) -> torch.Tensor:
    """The document as int64 [tokens]."""
    import torch

    ids = torch.as_tensor(document).long()
    outside = ids[(ids < 0) | (ids >= config.vocab)]
    if len(outside):
        raise InputError(
            f"documents[{number}] holds the token id {outside[0]}, expected 0 to {config.vocab - 1}"
        )
    return ids
