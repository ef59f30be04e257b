"""A conversation with a model that has a chat template."""

from __future__ import annotations

import re

import pytest

from tests.server.page.stub import Stub

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright for Python")
expect = sync_api.expect


def test_an_answer_streams_and_ends_with_its_figures(visit):
    v = visit(Stub(hold_after=2))
    v.ask("How many?")
    expect(v.page.locator(".answer")).to_have_text("Four tokens")
    expect(v.button("Stop")).to_be_visible()
    expect(v.entry).to_have_value("")
    v.stub.go.set()
    expect(v.page.locator(".answer")).to_have_text("Four tokens, well spoken.")
    figures = v.page.locator(".figures")
    expect(figures).to_have_text(
        re.compile(r"4 tokens.*tokens/s.*first after .*s.*ended at the length limit")
    )
    expect(v.button("Send")).to_be_visible()
    [asked] = v.stub.asked
    assert asked["messages"] == [{"role": "user", "content": "How many?"}]
    assert asked["model"] == "stub-8m"
    assert asked["stream"] is True


def test_an_answer_can_be_copied(visit):
    v = visit(permissions=["clipboard-read", "clipboard-write"])
    v.ask()
    v.button("Copy").click()
    expect(v.button("Copied")).to_be_visible()
    assert v.page.evaluate("() => navigator.clipboard.readText()") == "Four tokens, well spoken."


def test_a_question_goes_with_the_conversation_before_it(visit):
    v = visit()
    v.ask("First?")
    expect(v.button("Again")).to_be_visible()
    v.ask("Second?")
    expect(v.page.locator(".figures")).to_have_count(2)
    assert [m["content"] for m in v.stub.asked[1]["messages"]] == [
        "First?",
        "Four tokens, well spoken.",
        "Second?",
    ]


def test_what_the_model_writes_is_text_and_code_but_never_markup(visit):
    v = visit(
        Stub(pieces=("<img src=x onerror=alert(1)> ", "<b>bold</b>\n\n```py\n", "if a < b:\n    &amp;\n```"))
    )
    v.ask()
    answer = v.page.locator(".answer")
    expect(answer.locator("p")).to_have_text("<img src=x onerror=alert(1)> <b>bold</b>")
    expect(answer.locator("pre")).to_have_text("if a < b:\n    &amp;")
    assert answer.locator("img, b").count() == 0


@pytest.mark.parametrize("way", ["the button", "Escape"])
def test_an_answer_can_be_stopped(visit, way):
    v = visit(Stub(hold_after=2))
    v.ask()
    expect(v.page.locator(".answer")).to_have_text("Four tokens")
    v.button("Stop").click() if way == "the button" else v.page.keyboard.press("Escape")
    expect(v.page.locator(".figures")).to_contain_text("about 2 tokens")
    expect(v.page.locator(".figures")).to_contain_text("stopped")
    assert v.stub.left.wait(5), "the request was not aborted"


def test_a_refusal_is_shown_in_place_and_can_be_tried_again(visit):
    v = visit(Stub(refusal=(400, "the prompt is too long: shorten it")))
    v.ask("Once more?")
    alert = v.page.get_by_role("alert")
    expect(alert).to_contain_text("the prompt is too long: shorten it")
    v.stub.refusal = None
    v.button("Try again").click()
    expect(v.page.locator(".answer")).to_have_text("Four tokens, well spoken.")
    expect(alert).to_have_count(0)
    assert v.stub.asked[0]["messages"] == v.stub.asked[1]["messages"]


def test_a_failure_on_the_way_keeps_what_was_written(visit):
    v = visit(Stub(failure="the engine has stopped"))
    v.ask()
    expect(v.page.get_by_role("alert")).to_contain_text("the engine has stopped")
    expect(v.page.locator(".answer")).to_have_text("Four tokens")


def test_a_conversation_survives_a_reload_until_it_is_cleared(visit):
    v = visit()
    v.ask("Will it last?")
    expect(v.button("Again")).to_be_visible()
    v.page.reload()
    expect(v.page.locator(".question")).to_have_text("Will it last?")
    expect(v.page.locator(".answer")).to_have_text("Four tokens, well spoken.")
    v.button("Clear").click()
    expect(v.page.locator(".question")).to_have_count(0)
    v.button("Undo clear").click()
    expect(v.page.locator(".question")).to_have_count(1)
    v.button("Clear").click()
    v.page.reload()
    v.page.wait_for_selector("#entry")
    assert v.page.locator(".question").count() == 0


def test_an_answer_that_a_reload_broke_off_says_so(visit):
    v = visit(Stub(hold_after=2))
    v.ask()
    expect(v.page.locator(".answer")).to_have_text("Four tokens")
    v.page.reload()
    expect(v.page.locator(".answer")).to_have_text("Four tokens")
    expect(v.page.locator("article")).to_contain_text(
        "The connection broke off before the answer was complete."
    )


def test_settings_go_with_every_request_and_faults_are_named(visit):
    v = visit()
    v.button("Settings").click()
    v.page.get_by_label("Temperature").fill("0.7")
    v.page.get_by_label("Top-p").fill("1.7")
    v.ask()
    expect(v.page.get_by_role("alert")).to_have_text("Top-p is a number, 0 to 1.")
    assert v.stub.asked == []
    v.page.get_by_label("Top-p").fill("")
    v.page.get_by_label("Seed").fill("7")
    v.entry.press("Enter")
    expect(v.button("Again")).to_be_visible()
    [asked] = v.stub.asked
    assert (asked["temperature"], asked["seed"]) == (0.7, 7)
    assert "top_p" not in asked
