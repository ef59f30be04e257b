"""The page at ``/`` in a headless Chromium, against a server that does what each test says."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.server.page_stub import Stub, compute_bound, serving

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright for Python")
expect = sync_api.expect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason=f"needs one of {', '.join(NAMES)} on the PATH")

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 800}

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
#: Whether the operating point is to the right of x and above y.
MOVED = """([x, y]) => {
  const place = document.querySelector('circle.point').getBoundingClientRect();
  return place.x > x && place.y < y;
}"""


@dataclass
class Visit:
    """An open page, and what it did beside what is seen."""

    page: Any
    stub: Stub
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def entry(self) -> Any:
        return self.page.locator("#entry")

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def ask(self, question: str = "How many?") -> None:
        self.entry.fill(question)
        self.entry.press("Enter")

    def overflow(self) -> float:
        """Pixels that the page is wider than the window."""
        return self.page.evaluate(
            "() => Math.max(...[document.documentElement, ...document.querySelectorAll('.log, main, aside')]"
            ".map(e => e.scrollWidth - e.clientWidth))"
        )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens the page on a stub. Afterwards, it must have reached no other host and complained of nothing."""
    with ExitStack() as stack:
        visits: list[Visit] = []

        def open_page(stub: Stub | None = None, **context: Any) -> Visit:
            stub = stub or Stub()
            url = stack.enter_context(serving(stub))
            page = browser.new_context(**{"viewport": DESKTOP, **context}).new_page()
            page.set_default_timeout(10_000)
            visit = Visit(page, stub)
            page.on("request", lambda request: visit.requests.append(request.url))
            page.on("pageerror", lambda error: visit.complaints.append(str(error)))
            page.on("console", lambda message: visit.complaints.append(message.text))
            page.goto(url)
            page.wait_for_selector("#entry")
            visits.append(visit)
            return visit

        yield open_page
        for visit in visits:
            address = urlsplit(visit.page.url).netloc
            assert {urlsplit(url).netloc for url in visit.requests} == {address}
            # Chromium itself notes every answer that is an error.
            assert [c for c in visit.complaints if not c.startswith("Failed to load resource")] == []
            visit.page.context.close()


# -- a conversation ----------------------------------------------------------------------------------


@in_browser
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


@in_browser
def test_an_answer_can_be_copied(visit):
    v = visit(permissions=["clipboard-read", "clipboard-write"])
    v.ask()
    v.button("Copy").click()
    expect(v.button("Copied")).to_be_visible()
    assert v.page.evaluate("() => navigator.clipboard.readText()") == "Four tokens, well spoken."


@in_browser
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


@in_browser
def test_what_the_model_writes_is_text_and_code_but_never_markup(visit):
    v = visit(
        Stub(pieces=("<img src=x onerror=alert(1)> ", "<b>bold</b>\n\n```py\n", "if a < b:\n    &amp;\n```"))
    )
    v.ask()
    answer = v.page.locator(".answer")
    expect(answer.locator("p")).to_have_text("<img src=x onerror=alert(1)> <b>bold</b>")
    expect(answer.locator("pre")).to_have_text("if a < b:\n    &amp;")
    assert answer.locator("img, b").count() == 0


@in_browser
@pytest.mark.parametrize("way", ["the button", "Escape"])
def test_an_answer_can_be_stopped(visit, way):
    v = visit(Stub(hold_after=2))
    v.ask()
    expect(v.page.locator(".answer")).to_have_text("Four tokens")
    v.button("Stop").click() if way == "the button" else v.page.keyboard.press("Escape")
    expect(v.page.locator(".figures")).to_contain_text("about 2 tokens")
    expect(v.page.locator(".figures")).to_contain_text("stopped")
    assert v.stub.left.wait(5), "the request was not aborted"


@in_browser
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


@in_browser
def test_a_failure_on_the_way_keeps_what_was_written(visit):
    v = visit(Stub(failure="the engine has stopped"))
    v.ask()
    expect(v.page.get_by_role("alert")).to_contain_text("the engine has stopped")
    expect(v.page.locator(".answer")).to_have_text("Four tokens")


@in_browser
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


@in_browser
def test_an_answer_that_a_reload_broke_off_says_so(visit):
    v = visit(Stub(hold_after=2))
    v.ask()
    expect(v.page.locator(".answer")).to_have_text("Four tokens")
    v.page.reload()
    expect(v.page.locator(".answer")).to_have_text("Four tokens")
    expect(v.page.locator("article")).to_contain_text(
        "The connection broke off before the answer was complete."
    )


@in_browser
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


# -- a model without a chat template -----------------------------------------------------------------


@in_browser
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


@in_browser
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


@in_browser
def test_enter_is_a_new_line_on_the_pad(visit):
    v = visit(Stub(chat=False))
    v.entry.press_sequentially("a\nb")
    expect(v.entry).to_have_value("a\nb")
    assert v.stub.asked == []


# -- what the engine does ----------------------------------------------------------------------------


@in_browser
def test_the_panel_shows_the_engine(visit):
    v = visit()
    panel = v.page.get_by_role("complementary", name="The engine now")
    for said in ("212 tokens/s", "prompts 1,024 tokens/s", "3 of 16 sequences", "1 waiting"):
        expect(panel).to_contain_text(said)
    expect(panel).to_contain_text("25 % of 16,384 tokens")
    expect(panel).to_contain_text("128 of 512 blocks")
    meter = panel.get_by_role("meter", name="Sequences in the batch")
    expect(meter).to_have_attribute("aria-valuenow", "3")
    v.stub.engine = {"running": 9, "tokens_per_second": 480.0}
    expect(meter).to_have_attribute("aria-valuenow", "9")
    expect(panel).to_contain_text("480 tokens/s")


@in_browser
def test_the_operating_point_moves_on_the_roofline(visit):
    v = visit()
    chart, point = v.page.locator("[role=img][aria-label^=Roofline]"), v.page.locator("circle.point")
    expect(v.page.get_by_text("memory-bound: 80 % of the bandwidth")).to_be_visible()
    expect(chart).to_contain_text("ridge 20 FLOP/byte")
    expect(chart).to_contain_text("GFLOP/s")
    before = point.bounding_box()
    v.stub.point = compute_bound()
    expect(v.page.get_by_text("compute-bound: 75 % of the peak")).to_be_visible()
    expect(v.page.get_by_text("512 rows in 100 ms, 100 FLOP/byte")).to_be_visible()
    v.page.wait_for_function(MOVED, arg=[before["x"] + 50, before["y"] - 20])
    v.stub.point = None
    expect(v.page.get_by_text("Idle; last: 512 rows")).to_be_visible()


@in_browser
def test_without_a_measured_device_the_page_says_how_to_get_one(visit):
    v = visit(Stub(peak=None, bandwidth=None))
    expect(v.page.get_by_text("The roof of Stub machine is not known.")).to_be_visible()
    expect(v.page.get_by_text("ridgeline measure")).to_be_visible()


@in_browser
def test_a_lost_connection_is_said_and_taken_up_again(visit):
    v = visit()
    state = v.page.get_by_role("status")
    expect(state).to_have_text("live")
    v.stub.closing.set()
    expect(state).to_have_text("no connection, trying again")
    v.stub.closing.clear()
    expect(state).to_have_text("live")


@in_browser
def test_an_engine_that_has_stopped_is_said(visit):
    v = visit(Stub(engine={"alive": False}))
    expect(v.page.get_by_role("alert")).to_contain_text("The engine has stopped.")


@in_browser
def test_a_key_is_asked_for_where_the_server_wants_one(visit):
    v = visit(Stub(key="secret"))
    field = v.page.get_by_label("This server asks for an API key")
    expect(field).to_be_focused()
    field.fill("guess")
    field.press("Enter")
    expect(v.page.get_by_role("alert")).to_have_text("The server refused the key.")
    field.fill("secret")
    field.press("Enter")
    v.page.get_by_label("Message").wait_for()
    v.ask()
    expect(v.page.locator(".answer")).to_have_text("Four tokens, well spoken.")
    kept = v.page.evaluate("() => [JSON.stringify({...localStorage}), JSON.stringify({...sessionStorage})]")
    assert ["secret" in place for place in kept] == [False, True]
    v.page.reload()
    expect(v.page.get_by_label("Message")).to_be_visible()


# -- for everyone ------------------------------------------------------------------------------------


@in_browser
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


@in_browser
@pytest.mark.parametrize("chat", [True, False])
def test_everything_has_a_name(visit, chat):
    v = visit(Stub(chat=chat))
    v.button("Settings").click()
    assert v.page.evaluate(UNNAMED) == []


@in_browser
def test_a_screen_reader_is_told_whole_sentences(visit):
    v = visit(Stub(pieces=("It is", " four. And", " that", " is all."), hold_after=3))
    spoken = v.page.get_by_role("log")
    expect(spoken).to_have_attribute("aria-live", "polite")
    v.ask()
    expect(spoken.locator("p")).to_have_text(["It is four."])
    v.stub.go.set()
    expect(spoken.locator("p")).to_have_text(["It is four.", "And that is all."])


@in_browser
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


@in_browser
def test_light_and_dark_follow_the_system_and_are_readable(visit):
    grounds = []
    for scheme in ("light", "dark"):
        v = visit(color_scheme=scheme)
        grounds.append(v.page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
        pairs = [(ink, ground) for ink in ("--text", "--muted") for ground in ("--background", "--panel")]
        for pair in (*pairs, ("--bad", "--bad-ground"), ("--text", "--written")):
            assert v.page.evaluate(CONTRAST, list(pair)) >= 4.5, (scheme, pair)
    assert len(set(grounds)) == 2


@in_browser
def test_nothing_moves_for_who_wants_no_motion(visit):
    v = visit(Stub(hold_after=2), reduced_motion="reduce")
    v.ask()
    expect(v.page.locator(".answer")).to_have_text("Four tokens")
    assert v.page.evaluate("() => document.getAnimations().length") == 0
