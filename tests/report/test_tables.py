"""What the tables say of results that lack a part, and that a refusal comes before any output."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from ridgeline.analysis.explain import explain
from ridgeline.analysis.memory_now import MemoryReading
from ridgeline.errors import InputError
from ridgeline.report.tables import progress, show_check, show_explanation, show_stream


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def said(console: Console) -> str:
    return console.file.getvalue()


def test_a_request_of_one_token_has_no_pace(console, cpu):
    show_explanation(console, explain("smollm2-135m", cpu, prompt=64, output=1))
    assert "first token after" in said(console)
    assert "then one every" not in said(console)


def test_a_longer_request_has_one(console, decoder):
    show_explanation(console, decoder)
    assert "then one every" in said(console)


def test_the_command_that_checks_it_is_shown_where_one_does(console, decoder, measured_cpu):
    show_explanation(console, decoder)
    assert "Check it" not in said(console)
    show_explanation(console, explain("smollm2-135m", measured_cpu, prompt=64, output=2))
    assert "Check it: ridgeline check smollm2-135m --weights random --prompt 64 --context 65\n" in said(
        console
    )


def test_a_refused_request_shows_nothing(console):
    class Refusing:
        def stream(self, prompt, **options):
            raise InputError("max_tokens is 0")

    with pytest.raises(InputError):
        show_stream(console, Refusing(), "def", max_tokens=0)
    assert said(console) == ""


def test_progress_is_for_terminals_only(console):
    with progress(console) as report:
        report("loading", 0.5)
    assert said(console) == ""


def test_progress_is_shown_on_a_terminal():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with progress(console) as report:
        report("loading", 0.5)
    assert "loading" in said(console)


def with_memory(found, *readings):
    phases = zip(found.phases, readings, strict=True)
    return replace(found, phases=tuple(replace(phase, memory=memory) for phase, memory in phases))


def test_a_check_says_what_memorys_rate_it_goes_by_and_where_it_moved(console, cpu, checked):
    found = checked(explain("smollm2-135m", cpu, prompt=64, output=2))
    still, moved = MemoryReading(5e10, 4.8e10, 4.7e10, False), MemoryReading(5e10, 4.8e10, 8e10, True)
    show_check(console, with_memory(found, still, moved))
    words = " ".join(said(console).split())
    assert "when the machine was measured it was 50 GB/s" in words
    assert "48, 47 GB/s" in words
    assert "48, 80 GB/s" in words
    assert words.count("Memory moved while") == 1
    assert "Memory moved while decode" in words


def test_a_check_by_the_file_as_it_is_says_so(console, cpu, checked):
    show_check(console, checked(explain("smollm2-135m", cpu, prompt=64, output=2)))
    assert "as fast as when the machine was measured" in " ".join(said(console).split())
