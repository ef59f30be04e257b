"""What is at ``/``."""

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from ridgeline.server.page_files import page_routes

CLOSED = "default-src 'self'"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<title>Ridgeline</title>")
    (tmp_path / "icon.svg").write_text("<svg/>")
    (tmp_path / "assets" / "main-1f3.js").write_text("1")
    return tmp_path


def get(folder, path):
    return TestClient(Starlette(routes=page_routes(folder))).get(path)


def test_the_page_is_served_and_may_load_nothing_from_elsewhere(folder):
    for path, kind in (("/", "text/html"), ("/index.html", "text/html"), ("/icon.svg", "image/svg+xml")):
        answer = get(folder, path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(kind)
        assert CLOSED in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-cache"
    assert get(folder, "/").text == "<title>Ridgeline</title>"


def test_assets_whose_names_change_with_them_are_kept_for_ever(folder):
    answer = get(folder, "/assets/main-1f3.js")
    assert "immutable" in answer.headers["cache-control"]
    assert CLOSED in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/assets/", "/%2e%2e/page.py", "/nothing.js"])
def test_nothing_else_is_served(folder, path):
    assert get(folder, path).status_code == 404


def test_without_a_page_there_is_a_text_that_names_the_api(tmp_path):
    answer = get(tmp_path, "/")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "/v1/chat/completions" in answer.text
