"""The page in a browser: tabs, sorting and sliders, by mouse and by key, wide and narrow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ridgeline.analysis.explain import explain
from ridgeline.hardware import load_device
from ridgeline.models import load_config
from ridgeline.report import write_report
from ridgeline.report.studies import study

SIZES = {"wide": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 800}}


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    found = explain("llama-3-8b", on="h100", prompt=512, batch=8)
    device = load_device("h100")
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, found, device, studies=study(found, load_config("llama-3-8b"), device))
    return path.as_uri()


@pytest.fixture(params=SIZES)
def page(request, browser: Any, address: str) -> Iterator[Any]:
    context = browser.new_context(viewport=SIZES[request.param])
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda asked: complaints.append(asked.url) if asked.url.startswith("http") else None)
    page.goto(address)
    yield page
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()


def open_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def card(page: Any, label: str) -> str:
    return page.locator("#sweep-cards > div", has_text=label).locator("dd.value").inner_text()


def test_one_panel_shows_at_a_time_and_arrows_move_on(page):
    assert page.locator("[role=tabpanel]:visible").count() == 1
    open_tab(page, "Overview")
    page.keyboard.press("ArrowRight")
    assert page.locator("[role=tabpanel]:visible").get_attribute("id") == "panel-operators"
    assert page.locator("#roofline-chart .main-svg").count() > 0
    page.keyboard.press("End")
    assert page.locator("[role=tabpanel]:visible").get_attribute("id") == "panel-sources"


def test_sliders_change_what_is_predicted(page):
    open_tab(page, "Sweeps")
    before = card(page, "Time of a token")
    expected = explain("llama-3-8b", on="h100", prompt=512, batch=8).phases[1].seconds
    assert float(before.split()[0]) == pytest.approx(1e3 * expected, rel=1e-2)
    slider = page.locator("#sweep-bits")
    slider.focus()
    page.keyboard.press("End")
    assert page.locator("#sweep-bits-value").inner_text() == "4.12 (int4-g128)"
    quantised = explain("llama-3-8b", on="h100", prompt=512, batch=8, weights="int4-g128").phases[1].seconds
    assert float(card(page, "Time of a token").split()[0]) == pytest.approx(1e3 * quantised, rel=1e-2)
    page.locator("#sweep-batch").focus()
    page.keyboard.press("End")
    assert page.locator("#sweep-batch-value").inner_text() == "256"
    page.locator("#sweep-context").focus()
    page.keyboard.press("End")
    assert "does not fit" in page.locator("#sweep-cards").inner_text()
    assert page.locator("#sweep-time .main-svg").count() > 0


def test_a_column_sorts_both_ways(page):
    open_tab(page, "Operators")
    table = page.locator("table.sortable").first
    head = table.get_by_role("button", name="predicted")
    values = lambda: [float(v) for v in table.locator("td:nth-child(7)").evaluate_all(  # noqa: E731
        "cells => cells.map(c => c.dataset.value)")]  # fmt: skip
    head.click()
    assert values() == sorted(values(), reverse=True)
    head.click()
    assert values() == sorted(values())


def test_a_figure_tells_what_it_stands_on(page):
    open_tab(page, "Operators")
    told = page.locator("table.sortable").first.locator("td:nth-child(7) [data-basis]")
    assert "gemm calibrated" in told.first.get_attribute("data-basis")


def test_a_chart_is_saved_as_a_picture(page):
    open_tab(page, "Operators")
    with page.expect_download() as download:
        page.locator("#panel-operators").get_by_role("button", name="Save as PNG").click()
    assert download.value.suggested_filename == "roofline-chart.png"
    assert download.value.path().read_bytes().startswith(b"\x89PNG")


def test_the_headline_figures_tell_what_they_stand_on(page):
    open_tab(page, "Overview")
    told = page.locator(".cards [data-basis]").evaluate_all("cards => cards.map(c => c.dataset.basis)")
    assert len(told) == 5
    assert sum("gemm calibrated" in basis for basis in told) == 4


def test_the_address_names_the_tab(page, address):
    open_tab(page, "Memory")
    assert page.url == f"{address}#storage"
