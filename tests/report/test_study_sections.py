"""The report's tabs on dataflows and training."""

import re
from dataclasses import replace

import pytest

from ridgeline.analysis.explain import explain
from ridgeline.hardware import OnChip, load_device
from ridgeline.models import load_config
from ridgeline.report import write_report
from ridgeline.report.studies import Studies, study
from ridgeline.report.study_sections import PAINTS, dataflows_section, training_section


@pytest.fixture(scope="module")
def studies():
    found = explain("gpt2", "a100", prompt=512, batch=2)
    return study(found, load_config("gpt2"), load_device("a100"))


def test_both_are_studied_around_the_explanations_workload(studies):
    assert (studies.dataflows.shape.queries, studies.dataflows.shape.batch) == (512, 2)
    assert (studies.training.workload.length, studies.training.workload.batch) == (512, 2)


def test_a_device_without_scratch_memory_has_no_dataflows():
    device = replace(load_device("a100"), on_chip=OnChip(cache=4e7))
    found = study(explain("gpt2", device, prompt=64), load_config("gpt2"), device)
    assert found.dataflows is None
    assert found.training is not None


def test_the_dataflows_have_a_row_each_and_the_drawn_ones_a_line(studies):
    html = dataflows_section(studies.dataflows)
    for outcome in studies.dataflows.outcomes:
        assert f'<th scope="row">{outcome.name}</th>' in html
    for name in PAINTS:
        assert html.count(f'"name":"{name}"') == 2
    assert "ridgeline dataflows gpt2 --on a100-80gb --prompt 512 --batch 2" in html


def test_training_shows_phases_memory_and_policies(studies):
    html = training_section(studies.training)
    rows = re.findall(r'<th scope="row">([^<]+)</th>', html)
    for name in ("forward", "backward", "optimizer", "states", "activations", "none", "selective", "full"):
        assert name in rows
    assert "ridgeline training gpt2 --on a100-80gb --batch 2 --length 512" in html


def test_the_page_has_a_tab_for_each(studies, tmp_path):
    found = explain("gpt2", "a100", prompt=512, batch=2)
    both = Studies(dataflows=studies.dataflows, training=studies.training)
    page = write_report(tmp_path / "page.html", found, load_device("a100"), studies=both).read_text("utf-8")
    titles = re.findall(r'role="tab"[^>]*>([^<]+)<', page)
    assert titles == ["Overview", "Operators", "Memory", "Dataflows", "Training", "Basis"]
