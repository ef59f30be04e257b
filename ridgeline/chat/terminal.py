"""The terminal of a chat: reads lines and commands, prints answers as they are made.

Answers go to stdout, all else to stderr. On a terminal, lines are edited and kept in a history file; with
stdin from a pipe there is neither prompt nor editing, and the end of the input ends the chat.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.chat.session import Session
from ridgeline.errors import InputError
from ridgeline.hardware.files import cache_folder
from ridgeline.report.units import seconds

if TYPE_CHECKING:
    from ridgeline.engine.result import Token
    from ridgeline.engine.sampling import Sampling
    from ridgeline.engine.speculation.speculator import Speculator
    from ridgeline.loading import Loaded

#: Tokens of an answer where neither the user nor the model's folder says: a text has no end of its own.
CONTINUATION_TOKENS = 128
HISTORY_LINES = 1000

HELP = (
    ("/retry", "drop the last answer and generate it again from the next seed"),
    ("/reset [N]", "forget the conversation, or only its N oldest turns"),
    ("/system TEXT", "set the system message; no TEXT removes it"),
    ("/set [NAME VALUE]", "set an option, such as temperature 0.5, or show them all"),
    ("/save FILE", "write the conversation to a new file"),
    ("/paste", "take several lines, up to an empty one"),
    ("/quit", "leave; so does Ctrl-D"),
    ("/help", "show this"),
)
HINT = "A line that ends in \\ goes on in the next; a space before a / makes it text; Ctrl-C stops an answer."

#: A command begins with a slash and a letter, so that a comment in C is text.
_COMMAND = re.compile(r"/(?P<name>[A-Za-z]\S*)\s*(?P<argument>.*)", re.DOTALL)


def chat(
    loaded: Loaded,
    sampling: Sampling,
    *,
    max_tokens: int | None = None,
    speculator: Speculator | None = None,
    cache_format: str | None = None,
) -> None:
    """Talk with ``loaded`` on this process's terminal, or on its stdin and stdout, until the user leaves.

    ``max_tokens`` bounds an answer; None takes what the model's folder suggests, else the rest of the window
    for a conversation and :data:`CONTINUATION_TOKENS` for a text that is continued. A ``speculator`` drafts.
    ``cache_format`` is as the engine has it.

    Raises InputError if the model generates nothing or has no tokenizer, or for ``max_tokens`` below 0.
    """
    loaded.requests()  # refuses an encoder
    if loaded.tokenizer is None:
        raise InputError(
            f"{loaded.config.name} has no tokenizer to chat with: ridgeline generate takes token ids"
        )
    session = Session(loaded.tokenizer, loaded.chat_template, loaded.config.window, sampling)
    if max_tokens is None:
        max_tokens = loaded.generation.max_new_tokens or (0 if loaded.chat_template else CONTINUATION_TOKENS)
    session = session.set("max_tokens", str(max_tokens))
    sys.stdin.reconfigure(errors="surrogateescape")  # the tokenizer refuses what is not UTF-8, in one line
    from ridgeline.engine.engine import Engine

    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    # The engine's cache keeps the conversation, so that an answer computes only what is new in it.
    with (
        Engine(loaded, sequences=1, speculator=speculator, cache_format=cache_format) as engine,
        _line_editing(cache_folder() / "chat-history") if interactive else nullcontext(),
    ):
        Terminal(loaded.config.name, engine.tokens, session, interactive=interactive).run()


class Terminal:
    """The loop around a session: ``interactive`` with a prompt and Ctrl-C to stop, otherwise for a pipe.

    ``generate`` gives the tokens that the model, called ``name``, makes of a prompt.
    """

    def __init__(
        self, name: str, generate: Callable[..., Iterable[Token]], session: Session, *, interactive: bool
    ) -> None:
        self.name = name
        self.generate = generate
        self.session = session
        self.interactive = interactive
        self.left = False
        self.notes = Console(stderr=True, highlight=False, soft_wrap=not interactive)
        self.commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "reset": self._reset,
            "retry": self._retry,
            "system": self._system,
            "set": self._set,
            "save": self._save,
            "paste": self._paste,
            "quit": self._quit,
        }

    def run(self) -> None:
        """Take lines until the user leaves or the input ends; a refusal is one line and changes nothing."""
        self._say_what_this_is()
        while not self.left:
            try:
                self.take(self._read())
            except EOFError:
                return
            except InputError as error:
                self._note(str(error), "red")
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self.notes.print()
                self._note("Ctrl-D or /quit leaves.")

    def take(self, given: str) -> None:
        """Carry out a command, or answer what was given. Raises InputError if it is refused."""
        command = _COMMAND.fullmatch(given)
        if command is not None:
            name = command["name"]
            if name not in self.commands:
                raise InputError(
                    f"there is no command /{name}: /help lists them, a space before the / makes it text"
                )
            self.commands[name](command["argument"].strip())
        elif given.strip() or (self.session.template is None and self.session.text):
            self._answer(self.session.ask(given))

    # -- reading -------------------------------------------------------------------------------------

    def _read(self) -> str:
        """A line, or several of which all but the last end in a backslash. Raises EOFError at the end."""
        try:
            given = self._line("> ")
        except EOFError:
            if self.interactive:
                self.notes.print()  # the shell's prompt begins on a line of its own
            raise
        while given.endswith("\\"):
            given = given[:-1] + "\n"
            with suppress(EOFError):
                given += self._line("... ")
        return given

    def _line(self, prompt: str) -> str:
        return input(prompt if self.interactive else "")

    # -- commands ------------------------------------------------------------------------------------

    def _help(self, _: str) -> None:
        table = Table.grid(padding=(0, 2))
        for usage, what in HELP:
            table.add_row(Text(usage, style="bold"), what)
        self.notes.print(table)
        self.notes.print(HINT)

    def _reset(self, oldest: str) -> None:
        before = len(self.session.turns)
        self.session = self.session.forget(oldest)
        left = len(self.session.turns)
        self._note(f"Forgot {_turns(before - left)}; {_turns(left)} left.")

    def _retry(self, _: str) -> None:
        session = self.session.retry()
        if session.sampling.greedy:
            self._note("Greedy, so the answer will be the same: /set temperature 0.8 samples.")
        self._answer(session)

    def _system(self, text: str) -> None:
        self.session = self.session.instruct(text)
        self._note("The system message is set." if text else "There is no system message now.")

    def _set(self, argument: str) -> None:
        if argument:
            name, _, value = argument.partition(" ")
            self.session = self.session.set(name, value.strip())
        self._note(self.session.settings)

    def _save(self, name: str) -> None:
        if not name:
            raise InputError("/save needs the name of a file: /save chat.txt")
        file = Path(name).expanduser()
        try:
            with file.open("x", encoding="utf-8") as opened:
                opened.write(self.session.transcript)
        except FileExistsError:
            raise InputError(f"{file} exists already and was left as it is: choose another name") from None
        except OSError as error:
            raise InputError(f"{file} cannot be written ({error.strerror}): choose another place") from None
        self._note(f"Saved {_turns(len(self.session.turns))} in {file}.")

    def _paste(self, _: str) -> None:
        if self.interactive:
            self._note("Paste or type; an empty line ends it.")
        lines = []
        with suppress(EOFError):
            while line := self._line(""):
                lines.append(line)
        if lines:
            self._answer(self.session.ask("\n".join(lines)))

    def _quit(self, _: str) -> None:
        self.left = True

    # -- answering -----------------------------------------------------------------------------------

    def _answer(self, session: Session) -> None:
        """Print the answer that ``session`` waits for, then its pace; Ctrl-C keeps what was made so far."""
        if self.interactive and session.template is None:
            last_line = session.text.rpartition("\n")[2]
            Console(highlight=False).print(Text(last_line, style="bold"), end="", soft_wrap=True)
        asked = perf_counter()
        tokens, came = [], []
        try:
            for token in self.generate(
                session.prompt, max_tokens=session.answer_tokens, sampling=session.sampling
            ):
                came.append(perf_counter())
                tokens.append(token)
                print(token.text, end="", flush=True)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
        text = "".join(token.text for token in tokens)
        if not text.endswith("\n"):
            print(flush=True)
        if not tokens:
            self._note("Stopped before the first token: nothing was added.")
            return
        self.session = session.answer(text)
        used = f"context {len(session.prompt) + len(tokens):,} of {session.window:,}"
        self._note(f"{_pace(asked, came)}; {used}.")
        if ending := _ending(session, tokens):
            self._note(ending)
        if self.interactive:
            self.notes.print()

    def _say_what_this_is(self) -> None:
        kind = "a conversation" if self.session.template else "no chat template, so it continues your text"
        self.notes.print(
            Text.assemble((self.name, "bold"), f": {kind}; window {self.session.window:,} tokens.")
        )
        if self.interactive:
            self._note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")

    def _note(self, text: str, style: str = "dim") -> None:
        self.notes.print(Text(text, style=style))


def _pace(asked: float, came: Sequence[float]) -> str:
    """How fast the tokens came, of times by ``perf_counter``; printing them counts too."""
    first = f"{len(came):,} token{'s' * (len(came) > 1)}: the first after {seconds(came[0] - asked)}"
    if len(came) == 1:
        return first
    return f"{first}, then {(len(came) - 1) / (came[-1] - came[0]):,.1f} tokens/s"


def _ending(session: Session, tokens: Sequence[Token]) -> str:
    """What ended the answer, and what to do about it; nothing if the model did."""
    result = tokens[-1].result
    if result is None:
        return "Stopped."
    if result.finish_reason == "stop":
        return ""
    if len(tokens) == session.room:
        return "The context is full: /reset 1 drops the oldest turn, /reset all, /save FILE keeps a copy."
    way_out = "/set max_tokens 0 lifts it" if session.template else "Enter continues"
    return f"Ended by max_tokens; {way_out}."


def _turns(number: int) -> str:
    return f"{number} turn{'s' * (number != 1)}"


@contextmanager
def _line_editing(history: Path) -> Iterator[None]:
    """Editing of lines and a history that outlasts the process; a Python without readline has neither."""
    try:
        import readline
    except ImportError:
        yield
        return
    readline.parse_and_bind("set enable-bracketed-paste on")  # what is pasted comes as one text
    readline.set_history_length(HISTORY_LINES)
    with suppress(OSError):
        readline.read_history_file(history)
    try:
        yield
    finally:
        with suppress(OSError):  # a folder that cannot be written to costs the history, not the chat
            history.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history)
