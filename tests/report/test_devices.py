"""The table of the device catalogue."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from ridgeline.hardware import load_device
from ridgeline.report.devices import show_devices


def shown(*names: str) -> list[str]:
    out = StringIO()
    show_devices(Console(file=out, width=200), [load_device(name) for name in names])
    return out.getvalue().splitlines()


def test_a_line_holds_memory_bandwidth_rate_ridge_and_price():
    _, line = shown("h100-sxm")
    assert line.split() == ["h100-sxm", "80.0", "GB", "3.35", "TB/s", "989.4", "295", "4.18"]


def test_a_device_without_a_published_price_has_none():
    header, line = shown("a100-40gb")
    column = header.index("$/hour")
    assert line[column : column + len("$/hour")].strip() == ""
