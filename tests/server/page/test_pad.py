"""The pad of a model without a chat template."""

from __future__ import annotations

import pytest

from tests.server.page.stub import Stub

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright for Python")
expect = sync_api.expect


def test_a_text_model_writes_on_where_the_caret_is(visit):
    v = visit(Stub(chat=False, pieces=(" one", " two")))
    v.entry.fill("before after")
    v.entry.evaluate("field => field.setSelectionRange(6, 6)")
    v.entry.press("Control+Enter")
    expect(v.entry).to_have_value("before one two after")
    expect(v.page.locator("pre .model")).to_have_text(" one two")
    expect(v.page.locator(".figures")).to_contain_text("2 tokens")
    assert v.stub.asked[0]["prompt"] == "before"
    assert v.entry.evaluate("field => field.selectionEnd") == len("before one two")
    v.entry.press_sequentially("!")
    expect(v.entry).to_have_value("before one two! after")
    v.page.reload()
    expect(v.page.locator("pre .model")).to_have_text(" one two")


def test_a_completion_can_be_undone_and_written_anew(visit):
    v = visit(Stub(chat=False, pieces=(" one",)))
    v.entry.fill("text")
    v.button("Complete").click()
    v.button("Again").click()
    expect(v.button("Again")).to_be_visible()
    expect(v.entry).to_have_value("text one")
    assert [asked["prompt"] for asked in v.stub.asked] == ["text", "text"]
    v.button("Undo").click()
    expect(v.entry).to_have_value("text")


def test_enter_is_a_new_line_on_the_pad(visit):
    v = visit(Stub(chat=False))
    v.entry.press_sequentially("a\nb")
    expect(v.entry).to_have_value("a\nb")
    assert v.stub.asked == []
