"""A headless Chromium, and pages opened in it on a server that does what each test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.server.page.stub import Stub, serving
from tests.server.page.visit import Visit

DESKTOP = {"width": 1280, "height": 800}


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
