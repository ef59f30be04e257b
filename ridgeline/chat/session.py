"""A conversation, or a text that is being continued: its state, and what each command makes of it.

A session is a value: a change gives a new one, and a change that is refused leaves the old one as it was.
The whole conversation becomes the prompt of every answer; the engine finds the keys and values of the part
that did not change in its cache.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property

from ridgeline.chat.prompt import chat_ids, text_ids
from ridgeline.engine.sampling import SEEDS, Sampling
from ridgeline.errors import InputError
from ridgeline.weights.chat import ChatTemplate
from ridgeline.weights.tokenizer import Tokenizer

#: What ``/set`` may change, in the order in which it is shown.
OPTIONS = (*(o.name for o in fields(Sampling) if o.name != "logit_bias"), "max_tokens")


@dataclass(frozen=True)
class Turn:
    """What the user gave, and the answer to it: None while it is still to come."""

    given: str
    answer: str | None = None


@dataclass(frozen=True)
class Session:
    """A conversation under ``template``, or a text that is continued where ``template`` is None.

    ``window`` is the model's, in tokens, prompt and answer together. An answer has at most ``max_tokens``
    tokens; 0 goes to the end of the window. ``system`` is the system message, empty for none.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    window: int
    sampling: Sampling
    max_tokens: int = 0
    system: str = ""
    turns: tuple[Turn, ...] = ()

    # -- what the model is given ---------------------------------------------------------------------

    @cached_property
    def prompt(self) -> tuple[int, ...]:
        """The token ids that the next answer follows.

        Raises InputError if the template refuses the conversation, or if it is not valid Unicode.
        """
        if self.template is None:
            return text_ids(self.text, self.tokenizer)
        return chat_ids(self.messages, self.template, self.tokenizer)

    @property
    def room(self) -> int:
        """The tokens that the window leaves for the next answer; negative if the prompt is too long."""
        return self.window - len(self.prompt)

    @property
    def answer_tokens(self) -> int:
        """How many tokens the next answer may have."""
        return min(self.room, self.max_tokens or self.room)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The ``role`` and ``content`` of each message, the system's first."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.given})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": turn.answer})
        return messages

    @property
    def text(self) -> str:
        """All that was given and answered, as one text; what is given begins on a line of its own."""
        text = ""
        for turn in self.turns:
            new_line = "\n" if turn.given and text and not text.endswith("\n") else ""
            text += new_line + turn.given + (turn.answer or "")
        return text

    # -- what a turn and the commands change ---------------------------------------------------------

    def ask(self, given: str) -> Session:
        """With a turn that waits for its answer. Without a template it may be empty: the text goes on.

        Raises InputError if the window leaves no room for an answer.
        """
        return replace(self, turns=(*self.turns, Turn(given)))._with_room()

    def answer(self, text: str) -> Session:
        """With the answer to the turn that waits for it."""
        return replace(self, turns=(*self.turns[:-1], replace(self.turns[-1], answer=text)))

    def retry(self) -> Session:
        """Without the last answer, which is awaited again, from the next seed.

        Raises InputError if there is none, or if the window leaves no room for it any more.
        """
        if not self.turns:
            raise InputError("there is no answer yet to generate again: type something first")
        sampling = replace(self.sampling, seed=(self.sampling.seed + 1) % SEEDS)
        turns = (*self.turns[:-1], Turn(self.turns[-1].given))
        return replace(self, sampling=sampling, turns=turns)._with_room()

    def forget(self, oldest: str = "") -> Session:
        """Without any turns, or without as many of the oldest as ``oldest`` says; the rest stays.

        Raises InputError if that is not a number of turns that there are.
        """
        if not oldest:
            return replace(self, turns=())
        if not (oldest.isdecimal() and 1 <= int(oldest) <= len(self.turns)):
            raise InputError(
                f"/reset takes how many of the {len(self.turns)} turns to drop, or nothing for all"
            )
        return replace(self, turns=self.turns[int(oldest) :])

    def instruct(self, system: str) -> Session:
        """With another system message for the whole conversation, or none if it is empty.

        Raises InputError if the model has no template, or if its template or the window refuses the message.
        """
        if self.template is None:
            raise InputError(
                "this model has no chat template, so no system message: give it text to continue"
            )
        replace(self, system=system, turns=(Turn("Hello"),))._with_room()
        return replace(self, system=system)

    def set(self, name: str, value: str) -> Session:
        """With the option ``name`` of :data:`OPTIONS` at ``value``.

        Raises InputError if there is no such option or the value is not in its range.
        """
        if name not in OPTIONS:
            raise InputError(f"there is no option {name!r}: /set takes {', '.join(OPTIONS)}")
        number = _number(name, value)
        if name != "max_tokens":
            return replace(self, sampling=replace(self.sampling, **{name: number}))
        if not isinstance(number, int) or number < 0:
            raise InputError(
                f"max_tokens is {value}, expected a whole number of 0 (the whole window) or more"
            )
        return replace(self, max_tokens=number)

    # -- what is shown and saved ---------------------------------------------------------------------

    @property
    def settings(self) -> str:
        """The options and their values, in one line."""
        values = [getattr(self.sampling, name) for name in OPTIONS[:-1]] + [self.max_tokens]
        return ", ".join(f"{name} {value}" for name, value in zip(OPTIONS, values, strict=True))

    @property
    def transcript(self) -> str:
        """The conversation to read, each message under its role; without a template the text alone."""
        if self.template is None:
            return self.text
        return "\n".join(f"[{m['role']}]\n{m['content'].rstrip()}\n" for m in self.messages)

    def _with_room(self) -> Session:
        if self.room >= 1:
            return self
        taken = f"{len(self.prompt):,} of the window's {self.window:,} tokens"
        if len(self.turns) == 1:
            raise InputError(
                f"this takes {taken} and leaves none for an answer: nothing was added, shorten it"
            )
        raise InputError(
            f"the context is full: with this it takes {taken}, which leaves none for an answer. Nothing was"
            " added or dropped: /reset 1 drops the oldest turn, /reset all of them, /save FILE keeps a copy"
        )


def _number(name: str, value: str) -> int | float:
    try:
        return int(value)
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{name} is {value!r}, expected a number") from None
