"""The report, section by section: what it says and which charts it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from typing import TYPE_CHECKING

from ridgeline import __version__
from ridgeline.analysis.denoising import DenoisingExplanation
from ridgeline.report.basis import device_rows, explain_command, report_rows
from ridgeline.report.capacity import growth
from ridgeline.report.charts import MEMORY_PAINTS, classes_of, memory_by_use, signed_errors, time_by_class
from ridgeline.report.figures import headline_cards
from ridgeline.report.images import images
from ridgeline.report.joined import JoinedPhase
from ridgeline.report.markup import (
    bullets,
    cards,
    chart,
    command,
    folded,
    heading,
    key,
    paragraph,
    preformatted,
    section,
    side_by_side,
    symbol,
    table,
)
from ridgeline.report.operators import operators_table
from ridgeline.report.roofline import roofline
from ridgeline.report.style import class_paint, class_symbol, dress, in_order, phase_colour
from ridgeline.report.units import BOUNDS, count, nbytes, parameters, percent, seconds, signed_percent

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ridgeline.analysis.capacity import Capacity
    from ridgeline.analysis.check import Check, PhaseCheck
    from ridgeline.analysis.explanation import Explanation
    from ridgeline.hardware import Device


def head(explanation: Explanation | DenoisingExplanation, device: Device, check: Check | None) -> str:
    """What this is: model, machine, workload, date and version, in a sentence each."""
    formats = f"weights in {explanation.weight_format}"
    if explanation.memory.cache_bytes_per_token:
        formats += f", KV cache in {explanation.cache_format}"
    how = "predicted" if check is None else "predicted and measured"
    size = parameters(explanation.parameters, explanation.active_parameters)
    written = f"Written on {date.today().isoformat()} by Ridgeline {__version__}"
    return heading(
        f"{explanation.model} on {device.title}",
        f"Where the time of {explanation.model} goes ({size}, {formats}), {how}.",
        f"The workload is {_workload(explanation)}.",
        f"{written}; the machine's figures are of {device.date}.",
    ) + command(explain_command(explanation, device))


def _workload(explanation: Explanation | DenoisingExplanation) -> str:
    load = explanation.workload
    if isinstance(explanation, DenoisingExplanation):
        return images(load)
    requests = "1 request" if load.batch == 1 else f"{count(load.batch)} requests at once, each"
    new = f" and {count(load.output)} new ones" if load.output else ""
    return f"{requests} of {count(load.prompt)} prompt tokens{new}"


def figures_section(explanation: Explanation, phases: Sequence[JoinedPhase]) -> str:
    if any(joined.check is not None for joined in phases):
        said = "Predicted, and what was measured. Errors are of time: + if the prediction is too slow."
    else:
        said = "Predicted; these steps were not run."
    return section(
        "figures", "The figures that matter", paragraph(said), cards(headline_cards(explanation, phases))
    )


def roofline_section(device: Device, dtype: str, phases: Sequence[JoinedPhase]) -> str:
    """The chart, what it shows in words, and its numbers as tables."""
    without = dict.fromkeys(o.name for joined in phases for o in joined.operators if not o.computes)
    says = f"Roofline of {device.title}: FLOP/s over FLOP/byte, log-log, with every operator as a point."
    return section(
        "roofline",
        "Every operator on the roofline",
        *(paragraph(_bound(joined)) for joined in phases),
        chart("roofline-chart", says, roofline(device, dtype, phases), key(_roofline_key(phases))),
        paragraph(
            f"The larger a point, the more of its phase's time it takes. Left of the ridge, "
            f"{count(device.ridge(dtype))} FLOP/byte, memory sets the limit; right of it, arithmetic in "
            f"{dtype} does."
        ),
        paragraph(f"No arithmetic, so no place on the chart: {', '.join(without)}.") if without else "",
        *(operators_table(joined, device, dtype) for joined in phases),
    )


def _bound(joined: JoinedPhase) -> str:
    phase = joined.phase
    bound, took = max(phase.seconds_by_bound.items(), key=lambda item: item[1])
    return (
        f"{phase.name.capitalize()} does {count(phase.intensity)} FLOP a byte; {BOUNDS[bound]} bind "
        f"{percent(took / phase.seconds)} of its predicted time."
    )


def _roofline_key(phases: Sequence[JoinedPhase]) -> Iterator[tuple[str, str]]:
    for joined in phases:
        name, colour = joined.phase.name, phase_colour(joined.phase.name)
        yield symbol("circle", colour, hollow=True), f"{name}, predicted"
        if joined.check is not None:
            yield symbol("circle", colour), f"{name}, measured"
    for name in in_order(o.op_class for joined in phases for o in joined.operators if o.computes):
        yield symbol(class_symbol(name), "var(--muted)", hollow=True), name


def time_section(phases: Sequence[JoinedPhase]) -> str:
    drawn = in_order(name for joined in phases for name in classes_of(joined))
    return section(
        "time",
        "Time by class of operator",
        key((symbol("square", f"var(--{class_paint(name)})"), name) for name in drawn),
        side_by_side(*(_time_chart(joined) for joined in phases)),
    )


def _time_chart(joined: JoinedPhase) -> str:
    phase = joined.phase
    shares = ", ".join(f"{name} {seconds(t)}" for name, t in phase.seconds_by_class.items())
    caption = f"{phase.name.capitalize()}: {seconds(phase.seconds)} predicted"
    if joined.check is not None:
        caption += f", {seconds(joined.check.measured)} measured in one piece"
    says = f"Predicted time of {phase.name} by class: {shares}."
    return chart(f"time-{phase.name}", says, time_by_class(joined), caption=caption)


def memory_section(explanation: Explanation) -> str:
    memory, load = explanation.memory, explanation.workload
    size = parameters(explanation.parameters, explanation.active_parameters)
    rows = [("weights", nbytes(memory.weights), size)]
    if memory.cache_bytes_per_token:
        tokens = load.batch * (load.prompt + load.output)
        per_token = f"{count(tokens)} tokens of {nbytes(memory.cache_bytes_per_token)}"
        rows.append(("KV cache", nbytes(memory.cache), per_token))
    rows += [
        ("activations", nbytes(memory.activations), "the most that live at once"),
        ("in use", nbytes(memory.total), f"{percent(memory.total / memory.device)} of the device"),
        ("device", nbytes(memory.device), "1 GB is 10⁹ bytes"),
    ]
    if memory.cache_bytes_per_token:
        rows.append(("tokens that fit", count(memory.tokens_that_fit), "in the rest as KV cache"))
    says = f"{nbytes(memory.total)} in use of {nbytes(memory.device)}; the table below has the parts."
    glyphs = ((symbol("square", f"var(--{paint})"), name) for name, paint in MEMORY_PAINTS.items())
    return section(
        "memory",
        "Memory by use",
        key(glyphs),
        chart("memory-chart", says, memory_by_use(memory)),
        table("Memory by use", ("use", "bytes", "what it is"), rows, "lrl"),
    )


def capacity_section(found: Capacity) -> str:
    """What fits with each format, and how memory grows with the context."""
    rows = [
        (
            f"{h.weights}, cache {h.cache}" if h.cache else h.weights,
            nbytes(h.weight_bytes),
            nbytes(h.cache_bytes_per_token),
            count(h.tokens),
            count(h.largest_batch),
            count(h.longest_context),
        )
        for h in found.holdings
    ]
    columns = (
        "weights and cache",
        "weights",
        "a token",
        "tokens that fit",
        f"sequences of {count(found.context)}",
        "longest" if found.batch == 1 else f"longest of {count(found.batch)}",
    )
    says = (
        f"Memory over the context for each pair of formats, up to the {nbytes(found.usable_bytes)} there are."
    )
    return section(
        "capacity",
        "What fits",
        chart("capacity-chart", says, _capacity_chart(found)),
        table("What fits in memory", columns, rows, "lrrrrr"),
    )


def _capacity_chart(found: Capacity) -> Figure:
    figure = dress(growth(found), 400)
    return figure.update_layout(
        title=None, showlegend=True, legend={"orientation": "h", "y": -0.25, "yanchor": "top"}
    )


def errors_section(check: Check) -> str:
    worst = check.worst
    where = f"{worst.name} at context {count(worst.context)}"
    return section(
        "errors",
        "Prediction against measurement",
        paragraph(
            f"Predicted first, then run. Totals are off by {percent(check.mape)} on average, at worst by "
            f"{signed_percent(worst.error)} ({where}). Right of zero the prediction is too slow. A bar ends "
            "at 100 %, its text says the error."
        ),
        side_by_side(*(_error_chart(i, phase) for i, phase in enumerate(check.phases))),
        folded("Every operator in numbers", *(_errors(phase) for phase in check.phases)),
    )


def _error_chart(index: int, phase: PhaseCheck) -> str:
    caption = (
        f"{phase.name.capitalize()} at context {count(phase.context)}: {seconds(phase.predicted)} predicted, "
        f"{seconds(phase.measured)} measured; operators are off by {percent(phase.operator_mape)}, "
        "weighted by time"
    )
    says = f"Signed error of every operator of {phase.name}; the table below has the numbers."
    return chart(f"errors-{index}", says, signed_errors(phase), caption=caption)


def _errors(phase: PhaseCheck) -> str:
    total = sum(o.measured for o in phase.operators)
    rows = [
        (
            o.name,
            count(o.calls),
            seconds(o.predicted),
            seconds(o.measured),
            signed_percent(o.error),
            percent(o.measured / total),
        )
        for o in phase.operators
    ]
    whole = (seconds(phase.predicted), seconds(phase.measured), signed_percent(phase.error))
    rows.append(("whole step", "1", *whole, ""))
    columns = ("operator", "calls", "predicted", "measured", "error", "share")
    return table(f"{phase.name} at context {count(phase.context)}", columns, rows, "lrrrrr")


def basis_section(explanation: Explanation, device: Device, dtype: str, check: Check | None) -> str:
    machine = "The machine's figures; checked by ridgeline measure, run there"
    report = "The report's numbers"
    return section(
        "basis",
        "What the numbers stand on",
        paragraph(f"{device.title}, {device.date}. Source: {device.source}."),
        table(machine, ("figure", "value", "stands on"), device_rows(device, dtype), "lll"),
        table(report, ("number", "stands on", "check it with"), report_rows(explanation, check), "llc"),
    )


def assumptions_section(explanation: Explanation) -> str:
    said = (text[:1].upper() + text[1:] + "." for text in explanation.assumptions)
    return section("assumptions", "Assumptions", bullets(said))


def sample_section(sample: str) -> str:
    return section("sample", "What the model wrote", preformatted(sample))
