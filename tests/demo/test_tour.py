"""The tour: every step shows what it found, and the page is there at the end."""

import io
from html import escape

import pytest
from rich.console import Console

from ridgeline.analysis import check
from ridgeline.demo import tour as module
from ridgeline.demo.tour import PROMPT, PROMPT_TOKENS, SEED, TEMPERATURE, tour
from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.hardware.measure import Plan
from ridgeline.hardware.timing import Schedule

#: Large enough to have every figure, and no larger.
TINY = Plan(
    schedule=Schedule(rounds=2, seconds=0.1, calls=1),
    rows=(1, 4),
    widths=(32, 64),
    squares=(64, 128),
    attend_rows=(4, 16),
    attend_keys=256,
    storage_bytes=0,
)


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    """What was printed, what the tour returned, and this machine as it left it."""
    folder = tmp_path_factory.mktemp("tour")
    console = Console(file=io.StringIO(), width=120, highlight=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIDGELINE_CACHE", str(folder / "cache"))
        patch.setattr(check, "ROUND_SECONDS", 0.0)
        patch.setattr(check, "ROUNDS", 2)
        found = tour(console, folder / "pages" / "report.html", plan=TINY)
        stored = load_device("this")
    return console.file.getvalue(), found, stored


def test_every_step_is_printed_in_its_order(toured):
    printed, found, _ = toured
    shown = (
        "1/5  What this machine can do",
        "matrix products, bf16",
        f"2/5  The demo model writes Python, at temperature {TEMPERATURE} and seed {SEED}",
        PROMPT,
        "tokens: the first after",
        "3/5  Where its time should go",
        "prefill: operator",
        "decode: operator",
        "4/5  Prediction held against measurement",
        f"prefill at {PROMPT_TOKENS}: operator",
        f"decode at {PROMPT_TOKENS + 1}: operator",
        "5/5  The same as a page",
        found.report.name,
    )
    position = 0
    for text in shown:
        position = printed.index(text, position)


def test_the_machine_is_stored_as_it_was_measured(toured):
    _, found, stored = toured
    assert stored.levels == found.measurement.device.levels


def test_what_was_predicted_is_what_was_checked(toured):
    _, found, _ = toured
    predicted = [(p.name, p.context, p.seconds) for p in found.explanation.phases]
    assert predicted == [(p.name, p.context, pytest.approx(p.predicted)) for p in found.check.phases]
    assert [p.context for p in found.check.phases] == [PROMPT_TOKENS, PROMPT_TOKENS + 1]


def test_the_page_is_written_with_the_text_on_it(toured):
    _, found, _ = toured
    assert escape(PROMPT + found.text) in found.report.read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "measure", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(InputError, match=str(tmp_path)):
        tour(Console(file=io.StringIO()), tmp_path)


def test_a_hardware_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "measure", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(InputError, match=r"this-machine\.toml"):
        tour(Console(file=io.StringIO()), tmp_path / "report.html")
