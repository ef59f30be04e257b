"""What the page shows of the engine, and how it gets there."""

from __future__ import annotations

import pytest

from tests.server.page.stub import Stub, compute_bound

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright for Python")
expect = sync_api.expect

#: Whether the operating point is to the right of x and above y.
MOVED = """([x, y]) => {
  const place = document.querySelector('circle.point').getBoundingClientRect();
  return place.x > x && place.y < y;
}"""


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


def test_without_a_measured_device_the_page_says_how_to_get_one(visit):
    v = visit(Stub(peak=None, bandwidth=None))
    expect(v.page.get_by_text("The roof of Stub machine is not known.")).to_be_visible()
    expect(v.page.get_by_text("ridgeline measure")).to_be_visible()


def test_a_lost_connection_is_said_and_taken_up_again(visit):
    v = visit()
    state = v.page.get_by_role("status")
    expect(state).to_have_text("live")
    v.stub.closing.set()
    expect(state).to_have_text("no connection, trying again")
    v.stub.closing.clear()
    expect(state).to_have_text("live")


def test_an_engine_that_has_stopped_is_said(visit):
    v = visit(Stub(engine={"alive": False}))
    expect(v.page.get_by_role("alert")).to_contain_text("The engine has stopped.")


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
