"""The built files of the page, as they lie in the package."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tests.server.page.stub import PAGE

SOURCE = Path(__file__).parents[3] / "page"


def test_the_built_page_is_that_of_the_source():
    files = [file for file in (SOURCE / "src").rglob("*") if file.is_file()]
    files += [SOURCE / name for name in ("index.html", "package-lock.json", "vite.config.ts")]
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(SOURCE).as_posix(), file) for file in files):
        digest.update(f"{name}\n".encode() + file.read_bytes())
    index = (PAGE / "index.html").read_text()
    assert f'content="{digest.hexdigest()}"' in index, "page/ has changed: run `make page`"


def test_the_built_page_is_small_and_needs_nothing_inline():
    index = (PAGE / "index.html").read_text()
    assert sum(file.stat().st_size for file in PAGE.rglob("*") if file.is_file()) < 200_000
    assert re.search(r"<style|style=|<script(?![^>]* src=)|\son\w+=", index) is None
    for address in re.findall(r'(?:src|href)="([^"]*)"', index):
        assert (PAGE / address).is_file(), address
        assert re.search(r"-[\w-]{8}\.", address), f"{address} has no hash in its name"
