"""Every test of a kernel runs on each instruction set of the machine, and leaves threads as it found them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from ridgeline import kernels  # noqa: E402


@pytest.fixture(params=kernels.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set in use while the test runs."""
    before = kernels.isa()
    kernels.set_isa(request.param)
    yield request.param
    kernels.set_isa(before)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = kernels.threads()
    yield
    kernels.set_threads(before)
