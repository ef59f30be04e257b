"""The chat at a pipe and at a terminal, with a tiny model."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from ridgeline.chat.session import Session, Turn
from ridgeline.chat.terminal import Terminal, chat
from ridgeline.engine.result import Token
from ridgeline.engine.sampling import GREEDY
from ridgeline.errors import InputError
from ridgeline.loading import load

CHAT = (sys.executable, "-m", "ridgeline.cli", "chat")


def environment(tmp_path):
    return {**os.environ, "RIDGELINE_CACHE": str(tmp_path / "cache"), "TERM": "xterm", "COLUMNS": "200"}


def piped(*arguments, given, tmp_path):
    """What the command prints of the answers, and its notes, when it is given text through a pipe."""
    done = subprocess.run(
        [*CHAT, *map(str, arguments)],
        input=given,
        capture_output=True,
        env=environment(tmp_path),
        timeout=60,
        cwd=tmp_path,
    )
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.fixture
def terminal(tokenizer):
    """A terminal without a template, whose model answers with one character a token."""
    session = Session(tokenizer, None, window=100, sampling=GREEDY)
    return Terminal("model", spell("answer"), session, interactive=True)


def spell(text, then=None):
    """A stream of the characters of ``text`` that raises ``then`` at its end."""

    def stream(prompt, *, max_tokens, sampling):
        result = None if then else SimpleNamespace(finish_reason="length")
        for place, char in enumerate(text, 1):
            yield Token(0, 0, char, result if place == len(text) else None)
        if then:
            raise then

    return stream


# -- through a pipe ----------------------------------------------------------------------------------


def test_a_pipe_gets_the_answers_plain_and_the_end_of_input_ends_it(model, tmp_path):
    code, answers, notes = piped(model, "--max-tokens", 5, given=b"Hello\n/retry\nBye", tmp_path=tmp_path)
    assert code == 0, notes
    [answer] = load(model).generate(
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", max_tokens=5
    )
    assert answers.startswith(answer.text.encode())
    assert len(re.findall(r"5 tokens: .* tokens/s; context \d+ of 4,096\.\nEnded by max_tokens", notes)) == 3
    assert "will be the same" in notes  # of the retry, since the model is greedy
    assert "\x1b" not in notes
    assert "> " not in notes
    assert not (tmp_path / "cache").exists()  # no history of a pipe


def test_a_refusal_is_one_line_and_the_chat_goes_on(model, tmp_path):
    given = b"/nope\n/set warmth 1\n/set top_p 7\n/save\n/reset 2\ncaf\xe9\n/save a.txt\n/save a.txt\nHello\n"
    code, _, notes = piped(model, "--max-tokens", 3, given=given, tmp_path=tmp_path)
    assert code == 0
    said = notes.partition("tokens.\n")[2].splitlines()
    for line, words in zip(
        said,
        (
            "no command /nope",
            "no option 'warmth'",
            "top_p is 7",
            "/save needs",
            "/reset takes",
            "not valid Unicode",
            "Saved 0 turns in a.txt",
            "a.txt exists already",
            "3 tokens",
            "Ended by max_tokens",
        ),
        strict=True,
    ):
        assert words in line


def test_lines_can_be_joined_and_pasted_and_saved(model, tmp_path):
    (model / "chat_template.jinja").unlink()
    given = b"/set max_tokens 2\none\\\ntwo\n/paste\nthree \\\n\tfour\n\n/save text\n/quit\nnever\n"
    code, _, notes = piped(model, given=given, tmp_path=tmp_path)
    assert code == 0
    assert "continues your text" in notes
    text = (tmp_path / "text").read_text()
    assert text.startswith("one\ntwo")
    assert "\nthree \\\n\tfour" in text
    assert "never" not in text


def test_what_cannot_chat_is_refused(model):
    with pytest.raises(InputError, match="max_tokens is -1"):
        chat(load(model), GREEDY, max_tokens=-1)
    (model / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer to chat with"):
        chat(load(model), GREEDY)


# -- one line after another --------------------------------------------------------------------------


def test_what_looks_like_a_command_is_one_only_after_a_slash_and_a_letter(terminal):
    terminal.take("/* a comment in C")
    terminal.take(" /usr/bin/python")
    assert [turn.given for turn in terminal.session.turns] == ["/* a comment in C", " /usr/bin/python"]
    with pytest.raises(InputError, match="no command /usr/bin/python"):
        terminal.take("/usr/bin/python")


def test_an_empty_line_continues_a_text_that_there_is(terminal, capsys):
    terminal.take("")
    assert terminal.session.turns == ()
    terminal.take("a")
    terminal.take("")
    assert terminal.session.text == "aansweranswer"
    assert "Enter continues" in capsys.readouterr().err


def test_an_empty_line_says_nothing_to_a_conversation(terminal, template):
    terminal.session = Session(terminal.session.tokenizer, template, window=100, sampling=GREEDY)
    terminal.take("  ")
    assert terminal.session.turns == ()


def test_a_stopped_answer_keeps_what_was_made(terminal, capsys):
    terminal.generate = spell("ans", then=KeyboardInterrupt)
    terminal.take("a")
    assert terminal.session.turns == (Turn("a", "ans"),)
    assert "context 4 of 100.\nStopped.\n" in capsys.readouterr().err


def test_an_answer_stopped_before_its_first_token_changes_nothing(terminal, capsys):
    terminal.take("a")
    before = terminal.session
    terminal.generate = spell("", then=KeyboardInterrupt)
    terminal.take("b")
    terminal.take("/retry")
    assert terminal.session == before
    assert capsys.readouterr().err.count("nothing was added") == 2


def test_a_full_context_is_said_and_loses_nothing(terminal, capsys):
    terminal.generate = spell("y" * 90)
    terminal.take("x" * 10)
    assert "context 100 of 100.\nThe context is full" in capsys.readouterr().err
    before = terminal.session
    with pytest.raises(InputError, match="context is full"):
        terminal.take("more")
    assert terminal.session == before
    terminal.take("/reset")
    terminal.take("more")
    assert terminal.session.text.startswith("more")


def test_help_lists_every_command(terminal, capsys):
    terminal.take("/help")
    listed = capsys.readouterr().err
    assert all(f"/{name}" in listed for name in terminal.commands)


# -- at a terminal -----------------------------------------------------------------------------------


class Screen:
    """A process at a pseudo-terminal of its own."""

    def __init__(self, command, env):
        self.process, self.fd = pty.fork()
        if not self.process:
            # Tests that run in the background inherit a SIGINT that is ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execve(command[0], command, env)
        self.text = ""

    def wait_for(self, words, seconds=60):
        """Read until ``words`` appear after what was waited for before."""
        end = time.monotonic() + seconds
        while words not in self.text:
            assert self.read(end - time.monotonic()), f"{words!r} did not come after {self.text[-2000:]!r}"
        self.text = self.text.partition(words)[2]

    def read(self, seconds=60):
        """Whether anything came; it waits for that."""
        ready, _, _ = select.select([self.fd], [], [], max(seconds, 0))
        if ready:
            self.text += os.read(self.fd, 65536).decode(errors="replace")
        return bool(ready)

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def exit_code(self, seconds=60):
        """Wait for the end; a process that doesn't come to it is killed, and its code is -9."""
        killer = threading.Timer(seconds, os.kill, (self.process, signal.SIGKILL))
        killer.start()
        with suppress(OSError):  # Linux's way to say that the terminal went with the process
            while os.read(self.fd, 65536):
                pass
        status = os.waitpid(self.process, 0)[1]
        killer.cancel()
        return os.waitstatus_to_exitcode(status)


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(model, tmp_path):
    # To this the greedy model goes on for 12,000 tokens at least, which take seconds.
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 20}))
    screen = Screen([*CHAT, str(model), "--temperature", "0"], environment(tmp_path))
    screen.wait_for("> ")
    screen.type("Tell\n")
    screen.wait_for("Tell\r\n")
    while len(screen.text) < 100:  # the answer has begun
        assert screen.read()
    screen.type("\x03")
    screen.wait_for("Stopped.")
    screen.wait_for("> ")
    screen.type("half a li")
    screen.wait_for("half a li")  # readline reads by now: before that it would miss the key
    time.sleep(0.2)
    screen.type("\x03")
    screen.wait_for("Ctrl-D or /quit leaves.")
    screen.type("/reset\n")
    screen.wait_for("Forgot 1 turn; 0 turns left.")
    screen.wait_for("> ")  # a terminal that nobody reads yet would keep the key as a zero
    screen.type("\x04")
    assert screen.exit_code() == 0
    assert (tmp_path / "cache" / "chat-history").read_text().split() == ["Tell", "/reset"]
