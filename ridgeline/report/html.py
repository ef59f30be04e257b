"""Writes an explanation, and a check if there is one, as one page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from ridgeline.errors import InputError
from ridgeline.report.studies import Studies

if TYPE_CHECKING:
    from ridgeline.analysis.check import Check
    from ridgeline.analysis.explanation import Explanation
    from ridgeline.hardware import Device
    from ridgeline.report.joined import JoinedPhase
    from ridgeline.report.markup import Tab


def write_report(
    path: str | Path,
    explanation: Explanation,
    device: Device,
    check: Check | None = None,
    sample: str | None = None,
    studies: Studies | None = None,
) -> Path:
    """Write ``explanation`` to ``path`` as one HTML file with its charts, and return the path.

    ``device`` is what the explanation is on, ``check`` what was measured of the same model there,
    ``sample`` a text that the model wrote, ``studies`` what else is shown of the model on the device. The
    file is self-contained (some 5 MB, plotly.js for the most part) and loads nothing when it is looked at.

    Raises InputError if device or check are not the explanation's, or if the path cannot be written.
    """
    page = _page(explanation, device, check, sample, studies or Studies())
    target = Path(path)
    try:
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the report to {target}: {error.strerror}") from None
    return target


def _page(
    explanation: Explanation, device: Device, check: Check | None, sample: str | None, studies: Studies
) -> str:
    from plotly.offline import get_plotlyjs

    from ridgeline.report.joined import join
    from ridgeline.report.markup import tabbed
    from ridgeline.report.sections import head

    if device.name != explanation.device:
        raise InputError(f"the explanation is on {explanation.device}: pass that device, not {device.name}")
    phases = join(explanation, check)
    tabs = _tabs(explanation, device, phases, check, sample, studies)
    own = files("ridgeline.report")
    return Template((own / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{explanation.model} on {device.title} - Ridgeline"),
        css=(own / "page.css").read_text(encoding="utf-8"),
        script="\n".join((own / name).read_text(encoding="utf-8") for name in ("page.js", "sweep.js")),
        head=head(explanation, device, check),
        body=tabbed([tab for tab in tabs if tab.body]),
        plotly=get_plotlyjs(),
    )


def _tabs(
    explanation: Explanation,
    device: Device,
    phases: Sequence[JoinedPhase],
    check: Check | None,
    sample: str | None,
    studies: Studies,
) -> Iterator[Tab]:
    from ridgeline.report import sections
    from ridgeline.report.markup import Tab
    from ridgeline.report.study_sections import dataflows_section, layouts_section, training_section
    from ridgeline.report.sweeps import sweeps_section

    dtype = explanation.product_format
    yield Tab(
        "overview",
        "Overview",
        sections.figures_section(explanation, phases)
        + sections.time_section(phases)
        + (sections.errors_section(check) if check is not None else "")
        + (sections.sample_section(sample) if sample is not None else ""),
    )
    yield Tab("operators", "Operators", sections.roofline_section(device, dtype, phases))
    yield Tab(
        "storage",
        "Memory",
        sections.memory_section(explanation)
        + (sections.capacity_section(studies.capacity) if studies.capacity is not None else ""),
    )
    if studies.sweep is not None:
        yield Tab("sweep", "Sweeps", sweeps_section(studies.sweep, explanation))
    if any(one.best is not None for one in studies.layouts):
        yield Tab("share", "Parallel", layouts_section(studies.layouts))
    if studies.dataflows is not None:
        yield Tab("loops", "Dataflows", dataflows_section(studies.dataflows))
    if studies.training is not None:
        yield Tab("train", "Training", training_section(studies.training))
    yield Tab(
        "sources",
        "Basis",
        sections.basis_section(explanation, device, dtype, check) + sections.assumptions_section(explanation),
    )
