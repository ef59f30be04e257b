"""Every command that advice prints is one that runs."""

from __future__ import annotations

import shlex
from functools import cache

import pytest
import typer

from ridgeline.analysis.advice import advise
from ridgeline.cli import app, main

#: What runs a model rather than predicting it.
EXECUTE = ("bench", "generate", "serve")
WORKLOADS = {
    "llama-3.1-8b": {"on": "h100-sxm", "prompt": 4096, "output": 4, "draft": "llama-3.2-1b"},
    "gemma-3-1b": {"on": "phone-ufs-4.0", "prompt": 3000, "output": 4},
    "deepseek-v2-lite": {"on": "a100-80gb", "prompt": 64, "output": 4},
    "t5-small": {"on": "h100-sxm", "prompt": 64, "output": 4},
    "bert-base": {"on": "t4", "prompt": 64},
    "demo": {"on": "generic-cpu", "prompt": 64, "output": 8},
}

#: Those whose analyses take seconds each.
LARGE = ("llama-3.1-8b", "gemma-3-1b", "deepseek-v2-lite", "demo")


@cache
def commands(model):
    """The words behind ``ridgeline`` of every command that is printed for the workload."""
    found = advise(model, **WORKLOADS[model])
    return [shlex.split(s.command)[1:] for s in found.suggestions]


@pytest.mark.parametrize("model", WORKLOADS)
def test_every_command_is_one_that_the_command_line_takes(model):
    group = typer.main.get_command(app)
    for name, *words in commands(model):
        command = group.commands[name]
        given = command.make_context(name, list(words)).params
        assert given["models" if name == "compare" else "model"] == model


@pytest.mark.parametrize(
    "model", ["t5-small", "bert-base", *(pytest.param(m, marks=pytest.mark.slow) for m in LARGE)]
)
def test_every_analysis_that_is_named_answers(model, capsys, monkeypatch):
    analyses = {tuple(words) for words in commands(model) if words[0] not in EXECUTE}
    for words in sorted(analyses):
        monkeypatch.setattr("sys.argv", ["ridgeline", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code, capsys.readouterr().err) == (0, "")


def test_what_has_weights_is_run_and_what_has_none_is_analysed():
    of_demo = {words[0] for words in commands("demo")}
    assert {"generate", "serve", "bench"} <= of_demo
    assert not any(words[0] == "generate" for words in commands("llama-3.1-8b"))
    assert not any(words[0] in EXECUTE for words in commands("t5-small"))  # the engine does not batch it


@pytest.mark.slow
def test_the_demos_commands_run(capsys, monkeypatch):
    for words in commands("demo"):
        if words[0] == "serve":
            continue
        monkeypatch.setattr("sys.argv", ["ridgeline", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        capsys.readouterr()
