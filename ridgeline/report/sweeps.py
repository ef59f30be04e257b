"""The report's sliders: batch, context and bits of a weight, and what a step then takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ridgeline.report.markup import paragraph, section
from ridgeline.report.plain import to_plain
from ridgeline.report.style import class_paint
from ridgeline.report.units import BOUNDS

if TYPE_CHECKING:
    from ridgeline.analysis.explanation import Explanation
    from ridgeline.analysis.sweep import Sweep


def sweeps_section(sweep: Sweep, explanation: Explanation) -> str:
    """Sliders over the grid of ``sweep``, which sweep.js reads; they begin at the explained workload."""
    load = explanation.workload
    sizes = {
        "batch": (sweep.batches, _nearest(sweep.batches, load.batch)),
        "context": (sweep.contexts, _nearest(sweep.contexts, load.prompt)),
        "bits": (
            [f"{f.bits:.3g} ({f.weights})" for f in sweep.formats],
            next((i for i, f in enumerate(sweep.formats) if f.weights == explanation.weight_format), 0),
        ),
    }
    labels = {"batch": "Batch", "context": "Context, tokens", "bits": "Bits of a weight"}
    sliders = "".join(
        f'<label>{labels[name]}: <output id="sweep-{name}-value"></output>'
        f'<input type="range" id="sweep-{name}" min="0" max="{len(values) - 1}" value="{at}" step="1"'
        f"{' disabled' if len(values) == 1 else ''}></label>"
        for name, (values, at) in sizes.items()
    )
    classes = {name for f in sweep.formats for p in f.phases.values() for name in p.by_class}
    data = {
        **to_plain(sweep),
        "labels": {name: list(values) for name, (values, _) in sizes.items()},
        "paints": {name: class_paint(name) for name in classes},
        "bounds": BOUNDS,
    }
    written = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return section(
        "sweeps",
        "Other batches, contexts and bits",
        paragraph(
            "Each step of the sliders was predicted as this page was written, by the same count and "
            f"figures of {explanation.device}."
        ),
        f'<div class="sliders">{sliders}</div>',
        '<dl class="cards" id="sweep-cards" aria-live="polite"></dl>',
        '<div class="pair"><figure><div class="chart" id="sweep-time" role="img" '
        'aria-label="Time of each phase by class of operator" style="height:230px"></div></figure>'
        '<figure><div class="chart" id="sweep-batches" role="img" '
        'aria-label="Tokens a second over the time of a step, batch by batch" style="height:230px"></div>'
        "</figure></div>",
        f'<script type="application/json" id="sweep-data">{written}</script>',
    )


def _nearest(values: tuple[int, ...], wanted: int) -> int:
    return min(range(len(values)), key=lambda i: abs(values[i] - wanted))
