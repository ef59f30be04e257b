"""Log-probabilities of tokens in the two forms that OpenAI's API has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ridgeline.engine.result import Logprobs
from ridgeline.server.responses import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from ridgeline.weights.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenTexts:
    """Tokens as text, one by one; ``token_id:N`` where the model has no tokenizer."""

    tokenizer: Tokenizer | None

    def text(self, token: int) -> str:
        """As it reads after another token: decoders drop the space before a text's first word. A token that
        holds a part of a character is U+FFFD."""
        if self.tokenizer is None:
            return f"token_id:{token}"
        alone = self.tokenizer.decode([token], skip_special_tokens=False)
        twice = self.tokenizer.decode([token, token], skip_special_tokens=False)
        return twice[len(alone) :] if twice.startswith(alone) else alone

    def for_completion(
        self, ids: Sequence[int], logprobs: Sequence[Logprobs], begin: int = 0
    ) -> CompletionLogprobs:
        """Of generated ``ids``, the first of which stands at character ``begin``."""
        texts = [self.text(token) for token in ids]
        offsets = [begin + sum(map(len, texts[:place])) for place in range(len(texts))]
        return CompletionLogprobs(
            tokens=texts,
            token_logprobs=[found.chosen for found in logprobs],
            # Of tokens with the same text the likeliest stands: it comes first.
            top_logprobs=[{self.text(t): p for t, p in reversed(found.top)} for found in logprobs],
            text_offset=offsets,
        )

    def for_chat(self, ids: Sequence[int], logprobs: Sequence[Logprobs]) -> ChatLogprobs:
        return ChatLogprobs(
            content=[
                TokenLogprob(**self._entry(token, found.chosen), top_logprobs=self._top(found))
                for token, found in zip(ids, logprobs, strict=True)
            ]
        )

    def _top(self, found: Logprobs) -> list[TopLogprob]:
        return [TopLogprob(**self._entry(token, logprob)) for token, logprob in found.top]

    def _entry(self, token: int, logprob: float) -> dict:
        text = self.text(token)
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
