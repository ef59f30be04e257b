"""An open page, and what a test does with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.server.page.stub import Stub


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
