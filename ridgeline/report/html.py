"""Writes an explanation, and a check if there is one, as one page that needs nothing beside it."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from ridgeline.errors import InputError

if TYPE_CHECKING:
    from ridgeline.analysis.check import Check
    from ridgeline.analysis.explain import Explanation
    from ridgeline.hardware import Device


def write_report(
    path: str | Path,
    explanation: Explanation,
    device: Device,
    check: Check | None = None,
    sample: str | None = None,
) -> Path:
    """Write ``explanation`` to ``path`` as one HTML file with its charts, and return the path.

    ``device`` is what the explanation is on, ``check`` what was measured of the same model there,
    ``sample`` a text that the model wrote. The file is self-contained (some 5 MB, plotly.js for
    the most part) and loads nothing when it is looked at.

    Raises InputError if device or check are not the explanation's, or if the path cannot be written.
    """
    page = _page(explanation, device, check, sample)
    target = Path(path)
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the report to {target}: {error.strerror}") from None
    return target


def _page(explanation: Explanation, device: Device, check: Check | None, sample: str | None) -> str:
    from plotly.offline import get_plotlyjs

    from ridgeline.report import sections
    from ridgeline.report.joined import join

    if device.name != explanation.device:
        raise InputError(f"the explanation is on {explanation.device}: pass that device, not {device.name}")
    phases = join(explanation, check)
    dtype = explanation.product_format
    parts = [
        sections.head(explanation, device, check),
        sections.figures_section(explanation, phases),
        sections.roofline_section(device, dtype, phases),
        sections.time_section(phases),
        sections.memory_section(explanation),
        sections.errors_section(check) if check is not None else "",
        sections.basis_section(explanation, device, dtype, check),
        sections.assumptions_section(explanation),
        sections.sample_section(sample) if sample is not None else "",
    ]
    own = files("ridgeline.report")
    return Template((own / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{explanation.model} on {device.title} - Ridgeline"),
        css=(own / "page.css").read_text(encoding="utf-8"),
        script=(own / "page.js").read_text(encoding="utf-8"),
        body="\n".join(part for part in parts if part),
        plotly=get_plotlyjs(),
    )
