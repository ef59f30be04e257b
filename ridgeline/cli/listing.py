"""The tour, and what ships with Ridgeline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ridgeline.cli import support
from ridgeline.cli.app import Device, Json, app


@app.command(epilog="Example: ridgeline demo --report report.html")
def demo(
    report: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("report.html"),
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure this machine, or its GPU, generate, explain, check, and write report.html."""
    from ridgeline.loading import require_run_extra

    require_run_extra()
    support.on_device("this", device)
    from ridgeline.demo.tour import tour

    found = tour(support.errors() if as_json else support.console(), report, device=device)
    if as_json:
        support.print_json(found)


@app.command(epilog="Example: ridgeline models")
def models(as_json: Json = False) -> None:
    """List the models that ship with Ridgeline: the demo pair, and configs without weights."""
    from ridgeline.models import builtin_names
    from ridgeline.models.registry import DEMOS

    names = (*DEMOS, *builtin_names())
    support.print_json(names) if as_json else print("\n".join(names))


@app.command(epilog="Example: ridgeline devices")
def devices(as_json: Json = False) -> None:
    """List the devices of the catalogue: memory, rates, ridge point, price."""
    from ridgeline.hardware import device_names, load_device

    found = {name: load_device(name) for name in device_names()}
    if as_json:
        support.print_json(found)
        return
    from ridgeline.report.devices import show_devices

    show_devices(support.console(), found.values())
