"""The report's parts on layouts over devices, on attention's dataflows and on training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ridgeline.report.markup import bullets, chart, command, key, paragraph, section, symbol, table
from ridgeline.report.style import dress, log_axis
from ridgeline.report.units import count, nbytes, percent, seconds

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from ridgeline.analysis.dataflows import Comparison
    from ridgeline.analysis.parallel import BestLayout
    from ridgeline.analysis.training import Training

#: The page's colours of the lines; FLAT's coarser granularities are in the table only.
PAINTS = {
    "naive": "other",
    "FLAT row": "norm",
    "flash v1": "elementwise",
    "flash v2": "prefill",
    "split-KV": "linear",
}


def dataflows_section(found: Comparison) -> str:
    """The table of dataflows, traffic and time by on-chip memory, and what each one meets."""
    shape = found.shape
    size = f"{count(shape.batch)} x {count(shape.queries)} queries over {count(shape.keys)} keys"
    marked = key((symbol("square", f"var(--{paint})"), name) for name, paint in PAINTS.items())
    notes = [f"{o.name}: {note.removeprefix(f'{o.name}: ')}" for o in found.outcomes for note in o.notes]
    return section(
        "dataflows",
        "Ways to order attention's loops",
        paragraph(
            f"One layer's attention, {size}: {count(found.units)} units work on a block each, with "
            f"{nbytes(found.on_chip)} on the chip. Q, K, V and O once are {nbytes(found.least_bytes)}."
        ),
        table(
            "Each dataflow with its fastest tiles that fit",
            ("dataflow", "tiles", "on chip", "off-chip", "FLOP/byte", "time", "bound by"),
            [_dataflow_row(o) for o in found.outcomes],
            "llrrrrl",
        ),
        marked,
        chart(
            "dataflows-traffic",
            "Bytes of main memory by bytes on the chip, for each dataflow; the table has this device's.",
            _by_on_chip(found, found.curves.bytes, "bytes moved"),
            caption="Off-chip traffic by on-chip memory of a block; the dotted line is this device",
        ),
        chart(
            "dataflows-time",
            "Seconds by bytes on the chip, for each dataflow; the table has this device's.",
            _by_on_chip(found, found.curves.seconds, "seconds"),
            caption="Time by on-chip memory of a block",
        ),
        bullets(notes) if notes else "",
        bullets(f"Assumed: {said}." for said in found.assumptions),
        command(_dataflows_command(found)),
    )


def _dataflow_row(outcome) -> tuple[str, ...]:
    cost = outcome.cost
    if cost is None:
        return (outcome.name, "none fit", f"> {nbytes(outcome.least_live)}", "", "", "", "")
    splits = f" / {cost.tiles.splits}" if cost.tiles.splits > 1 else ""
    return (
        outcome.name,
        f"{cost.tiles.rows} x {cost.tiles.keys}{splits}",
        nbytes(cost.live),
        nbytes(cost.bytes),
        count(cost.intensity),
        seconds(cost.seconds),
        cost.bound,
    )


def _by_on_chip(found: Comparison, series: Mapping[str, Sequence[float | None]], unit: str) -> Figure:
    from plotly.graph_objects import Figure

    figure = Figure()
    for name, paint in PAINTS.items():
        figure.add_scatter(
            x=list(found.curves.on_chip),
            y=list(series[name]),
            mode="lines",
            name=name,
            line={"color": f"var(--{paint})", "width": 2},
            hovertemplate="%{x:.3s}B: %{y:.3s}<extra>%{fullData.name}</extra>",
        )
    figure.add_vline(found.on_chip, line={"color": "var(--muted)", "dash": "dot", "width": 1})
    drawn = (y for name in PAINTS for y in series[name] if y is not None)
    figure.update_xaxes(**log_axis(found.curves.on_chip), ticksuffix="B")
    figure.update_yaxes(**log_axis(drawn), title=unit)
    return dress(figure, 320)


def _dataflows_command(found: Comparison) -> str:
    shape = found.shape
    lengths = f"--prompt {shape.queries} --batch {shape.batch}"
    return f"ridgeline dataflows {found.model} --on {found.device} {lengths}"


def layouts_section(found: Sequence[BestLayout]) -> str:
    """The best layout for each number of devices, and how throughput grows with them."""
    rows = []
    for one in found:
        if one.best is None:
            reasons = "; ".join(dropped.reason for dropped in one.search.dropped)
            rows.append((count(one.devices), "none", "", "", "", "", reasons))
            continue
        f = one.best.figures
        shares = (f.prefill_communication, f.decode_communication)
        rows.append(
            (
                count(one.devices),
                str(f.layout),
                count(f.batch),
                f"{count(f.tokens_per_second)} tokens/s",
                "" if f.tpot_seconds is None else seconds(f.tpot_seconds),
                nbytes(f.memory),
                ", ".join(percent(share) for share in shares if share is not None),
            )
        )
    best = next(one.best for one in reversed(found) if one.best is not None)
    return section(
        "layouts",
        "Shared among devices",
        paragraph(
            f"The layout of most tokens a second for each number of {best.device}, in nodes of "
            f"{best.per_node}, with the batch that gives it. Exchanging is the share of a pass, of "
            "prefill and of decode."
        ),
        chart(
            "layouts-throughput",
            "Tokens a second by number of devices; the table has the layouts.",
            _scaling(found),
            caption="Throughput by devices; the dotted line is what the first one would give times as many",
        ),
        table(
            "Best layouts",
            ("devices", "layout", "requests", "throughput", "TPOT", "memory", "exchanging"),
            rows,
            "llrrrrl",
        ),
        bullets(f"Assumed: {said}." for said in best.assumptions),
    )


def _scaling(found: Sequence[BestLayout]) -> Figure:
    from plotly.graph_objects import Figure

    points = [(one.devices, one.best.figures) for one in found if one.best is not None]
    devices = [n for n, _ in points]
    rates = [f.tokens_per_second for _, f in points]
    figure = Figure()
    figure.add_scatter(
        x=devices,
        y=rates,
        mode="lines+markers",
        line={"color": "var(--decode)", "width": 2},
        hovertext=[f"{n} devices, {f.layout}: {count(f.tokens_per_second)} tokens/s" for n, f in points],
        hoverinfo="text",
    )
    figure.add_scatter(
        x=devices,
        y=[rates[0] * n / devices[0] for n in devices],
        mode="lines",
        line={"color": "var(--muted)", "dash": "dot", "width": 1},
        hoverinfo="skip",
    )
    figure.update_xaxes(type="log", tickvals=devices, title="devices")
    figure.update_yaxes(**log_axis(rates), title="tokens/s")
    return dress(figure, 320)


def training_section(found: Training) -> str:
    """A training step: phases, memory, and what recomputation would give."""
    load, memory = found.workload, found.memory
    fits = "fits" if memory.fits else f"does not fit, {memory.total / memory.device:.1f} times the device"
    return section(
        "training",
        "A training step",
        paragraph(
            f"{count(load.batch)} x {count(load.length)} tokens, {found.recipe.optimizer} in "
            f"{found.recipe.precision} precision: {seconds(found.seconds)}, "
            f"{count(found.tokens_per_second)} tokens/s, MFU {percent(found.mfu)}, HFU {percent(found.hfu)}."
        ),
        table(
            "Phases",
            ("phase", "time", "FLOPs", "bytes", "bound by"),
            [
                (p.name, seconds(p.seconds), count(p.flops.total), nbytes(p.bytes), _longest(p))
                for p in found.phases
            ],
            "lrrrl",
        ),
        table(
            "Memory",
            ("use", "bytes"),
            [
                *((use, nbytes(getattr(memory, use))) for use in ("weights", "gradients", "states")),
                ("activations", nbytes(memory.activations)),
                ("in use", f"{nbytes(memory.total)} of {nbytes(memory.device)}: {fits}"),
                ("sequences that fit", count(found.largest_batch)),
            ],
            "lr",
        ),
        table(
            "What is computed again",
            ("recompute", "activations", "memory", "time", "MFU", "HFU"),
            [
                (
                    p.recompute,
                    nbytes(p.activations),
                    nbytes(p.total),
                    seconds(p.seconds),
                    percent(p.mfu),
                    percent(p.hfu),
                )
                for p in found.policies
            ],
            "lrrrrr",
        ),
        bullets(f"Assumed: {said}." for said in found.assumptions),
        command(_training_command(found)),
    )


def _training_command(found: Training) -> str:
    lengths = f"--batch {found.workload.batch} --length {found.workload.length}"
    return f"ridgeline training {found.model} --on {found.device} {lengths}"


def _longest(phase) -> str:
    return max(phase.seconds_by_bound, key=lambda name: phase.seconds_by_bound[name])
