"""Contestants take turns: a process each, asked to run once, one after another, round after round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from benchmarks.peers.cases import Contestant
from benchmarks.peers.protocol import Task

ROOT = Path(__file__).parent.parent.parent
#: The package that each worker needs, and how to install it.
NEEDED = {
    "own": ("ridgeline", "pip install '.[run]'"),
    "memory": ("ridgeline", "pip install '.[run]'"),
    "llama_cpp": ("llama_cpp", "pip install '.[peers]'"),
    "openvino": ("optimum", "sh benchmarks/peers/openvino.sh FOLDER"),
    "transformers": ("transformers", "pip install '.[peers]'"),
}


class Failed(Exception):
    """A contestant is absent, cannot do its case, or broke; the message is one line."""


@dataclass(frozen=True)
class Turns:
    """What a contestant did: its worker's description of what it loaded, and the seconds of each round."""

    contestant: Contestant
    ready: dict[str, Any]
    seconds: tuple[float, ...]


def take_turns(
    contestants: Sequence[Contestant],
    rounds: int,
    threads: int,
    folder: Path,
    loaded: Callable[[], None] = lambda: None,
) -> list[Turns]:
    """Every contestant's turns, those left out that cannot take part, which is said with the reason.

    All load their models first; then ``loaded`` is called, and then the rounds begin. Between its turns a
    worker waits for input, and the threads of all peers here go to sleep within milliseconds.
    """
    with ExitStack() as stack:
        workers: list[Worker] = []
        for contestant in contestants:
            task = Task(contestant.case, threads, folder)
            try:
                workers.append(stack.enter_context(start(contestant, task)))
            except Failed as reason:
                print(f"  {contestant.name} is left out: {reason}", flush=True)
        loaded()
        seconds: list[list[float]] = [[] for _ in workers]
        for number in range(rounds):
            for worker, times in zip(workers, seconds):
                times.append(worker.run())
            print(f"  round {number + 1}: {', '.join(f'{times[-1]:.3f} s' for times in seconds)}", flush=True)
    return [Turns(w.contestant, w.ready, tuple(times)) for w, times in zip(workers, seconds)]


def interpreter(worker: str) -> str:
    """The Python that has the worker's package: what RIDGELINE_WORKER_PYTHON names, or ours.

    Raises Failed if there is none.
    """
    variable = f"RIDGELINE_{worker.upper()}_PYTHON"
    if variable in os.environ:
        return os.environ[variable]
    package, install = NEEDED[worker]
    if find_spec(package) is None:
        raise Failed(f"{package} is not installed: {install}, or let {variable} name a Python that has it")
    return sys.executable


@contextmanager
def start(contestant: Contestant, task: Task) -> Iterator[Worker]:
    """A contestant whose model is loaded; it ends with the context. Raises Failed if it cannot."""
    command = [interpreter(contestant.worker), "-m", f"benchmarks.peers.workers.{contestant.worker}"]
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        try:
            process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
        except OSError as error:
            raise Failed(f"{command[0]}: {error.strerror}") from None
        with process:
            try:
                yield Worker(contestant, process, errors, task)
            finally:
                process.kill()


class Worker:
    """A contestant's process; ``ready`` is its description of what it loaded."""

    def __init__(
        self, contestant: Contestant, process: subprocess.Popen[str], errors: IO[str], task: Task
    ) -> None:
        self.contestant, self._process, self._errors = contestant, process, errors
        self.ready = self._ask(task.to_json())

    def run(self) -> float:
        """Seconds of one run. Raises Failed, with the contestant's name, if the worker breaks."""
        try:
            return self._ask("")["seconds"]
        except Failed as reason:
            raise Failed(f"{self.contestant.name}: {reason}") from None

    def _ask(self, line: str) -> dict[str, Any]:
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise Failed(f"its process ended ({self._last_error()})")
        value = json.loads(answer)
        if "error" in value:
            raise Failed(value["error"])
        return value

    def _last_error(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        return (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]
