"""The device catalogue on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from ridgeline.hardware import Device
from ridgeline.report.units import nbytes, rate

COLUMNS = ("device", "memory", "bandwidth", "16-bit TFLOP/s", "ridge", "$/hour")


def show_devices(console: Console, devices: Iterable[Device]) -> None:
    """A line a device: memory, its bandwidth, dense matrix rate in bf16 (fp16 where there is none), the ridge
    point that follows in FLOP/byte, and the price of an hour where one is published."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "device" else "right", no_wrap=True)
    for device in devices:
        table.add_row(
            device.name,
            nbytes(device.memory_bytes),
            rate(device.bandwidth, "B"),
            f"{device.matrix_rate('bf16') / 1e12:,.4g}",
            f"{device.ridge('bf16'):,.0f}",
            "" if device.price_per_hour is None else f"{device.price_per_hour:.2f}",
        )
    console.print(table)
