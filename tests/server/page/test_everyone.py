"""The page by keyboard, by ear, on a phone, in the dark."""

from __future__ import annotations

import pytest

from tests.server.page.stub import Stub

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright for Python")
expect = sync_api.expect

PHONE = {"width": 390, "height": 844}
#: Every element that can have the focus, and whether something names it.
UNNAMED = """() => [...document.querySelectorAll('button, input, textarea, a, [role=meter], [role=img]')]
  .filter(e => !(e.innerText?.trim() || e.getAttribute('aria-label') || e.labels?.length))
  .map(e => e.outerHTML)"""
#: WCAG's contrast of two colours, given as custom properties.
CONTRAST = """([a, b]) => {
  const style = getComputedStyle(document.documentElement);
  const luminance = name => {
    const hex = style.getPropertyValue(name).trim().slice(1).replace(/^(.)(.)(.)$/, '$1$1$2$2$3$3');
    const [r, g, b] = [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16) / 255)
      .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [darker, lighter] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (lighter + 0.05) / (darker + 0.05);
}"""


def test_all_can_be_done_by_keyboard(visit):
    v = visit()
    expect(v.entry).to_be_focused()
    v.page.keyboard.press("Shift+Tab")
    v.page.keyboard.press("Shift+Tab")
    expect(v.page.get_by_role("link", name="Skip to the text field")).to_be_focused()
    v.page.keyboard.press("Enter")
    expect(v.entry).to_be_focused()
    v.page.keyboard.type("One")
    v.page.keyboard.press("Shift+Enter")
    v.page.keyboard.type("two")
    v.page.keyboard.press("Enter")
    expect(v.button("Again")).to_be_visible()
    assert v.stub.asked[0]["messages"][0]["content"] == "One\ntwo"
    expect(v.entry).to_be_focused()
    for name in ("Settings", "Clear"):
        v.page.keyboard.press("Tab")
        expect(v.button(name)).to_be_focused()
        assert v.button(name).evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    v.page.keyboard.press("Enter")
    expect(v.page.locator("article")).to_have_count(0)
    expect(v.entry).to_be_focused()
    v.page.keyboard.type("Three")
    for _ in ("Settings", "Undo clear", "Send"):
        v.page.keyboard.press("Tab")
    v.page.keyboard.press("Enter")
    expect(v.page.locator(".question")).to_have_text("Three")
    expect(v.button("Send")).to_be_focused()


@pytest.mark.parametrize("chat", [True, False])
def test_everything_has_a_name(visit, chat):
    v = visit(Stub(chat=chat))
    v.button("Settings").click()
    assert v.page.evaluate(UNNAMED) == []


def test_a_screen_reader_is_told_whole_sentences(visit):
    v = visit(Stub(pieces=("It is", " four. And", " that", " is all."), hold_after=3))
    spoken = v.page.get_by_role("log")
    expect(spoken).to_have_attribute("aria-live", "polite")
    v.ask()
    expect(spoken.locator("p")).to_have_text(["It is four."])
    v.stub.go.set()
    expect(spoken.locator("p")).to_have_text(["It is four.", "And that is all."])


@pytest.mark.parametrize("chat", [True, False])
def test_a_phone_needs_no_sideways_scrolling(visit, chat):
    long = "x" * 400
    v = visit(Stub(chat=chat, pieces=(f"{long}\n", f"```\n{long}\n```")), viewport=PHONE)
    assert v.overflow() <= 0
    v.entry.fill(long)
    v.button("Send" if chat else "Complete").click()
    expect(v.button("Again")).to_be_visible()
    assert v.overflow() <= 0
    v.button("Settings").click()
    assert v.overflow() <= 0
    summary = v.page.locator("aside button")
    expect(summary).to_contain_text("3 running")
    expect(v.page.get_by_role("heading", name="Roofline")).to_be_hidden()
    summary.click()
    expect(v.page.get_by_role("heading", name="Roofline")).to_be_visible()
    assert v.overflow() <= 0
    expect(v.button("Send" if chat else "Complete")).to_be_in_viewport()


def test_light_and_dark_follow_the_system_and_are_readable(visit):
    grounds = []
    for scheme in ("light", "dark"):
        v = visit(color_scheme=scheme)
        grounds.append(v.page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
        pairs = [(ink, ground) for ink in ("--text", "--muted") for ground in ("--background", "--panel")]
        for pair in (*pairs, ("--bad", "--bad-ground"), ("--text", "--written")):
            assert v.page.evaluate(CONTRAST, list(pair)) >= 4.5, (scheme, pair)
    assert len(set(grounds)) == 2


def test_nothing_moves_for_who_wants_no_motion(visit):
    v = visit(Stub(hold_after=2), reduced_motion="reduce")
    v.ask()
    expect(v.page.locator(".answer")).to_have_text("Four tokens")
    assert v.page.evaluate("() => document.getAnimations().length") == 0
