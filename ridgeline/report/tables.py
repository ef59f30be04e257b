"""Results on the terminal: short tables, each with one sentence that says what it means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ridgeline.report.basis import check_command
from ridgeline.report.units import BOUNDS, count, nbytes, parameters, rate, seconds

if TYPE_CHECKING:
    from ridgeline.analysis.check import Check, PhaseCheck
    from ridgeline.analysis.evaluate import Evaluation
    from ridgeline.analysis.explanation import Explanation, MemoryUse, Phase
    from ridgeline.engine.generate import Generator
    from ridgeline.engine.result import Result
    from ridgeline.engine.speculation.report import SpeculationReport
    from ridgeline.hardware.measure import Measurement
    from ridgeline.predict import KernelTime

#: Operators shown of each phase; the rest is summed in one line.
SHOWN = 8
BAR_WIDTH = 16
#: A figure whose worst round took this much longer than its best, relative, was disturbed.
NOISY = 1.0


@contextmanager
def progress(console: Console) -> Iterator[Callable[[str, float], None]]:
    """A bar on ``console`` that takes what is being done and the share that is done; nothing where that
    is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)

        def report(doing: str, share: float) -> None:
            bar.update(task, description=doing, completed=share)

        yield report


def show_explanation(console: Console, found: Explanation, *, elements: bool = False) -> None:
    """What a model would do on a device: phases, operators, memory, and what it stands on."""
    load = found.workload
    console.print(Text.assemble((found.model, "bold"), " on ", (found.device_title, "bold")))
    size = parameters(found.parameters, found.active_parameters)
    console.print(
        f"{size} in {found.weight_format}, cache in {found.cache_format}; "
        f"{load.batch} x {load.prompt} prompt tokens, {load.output} new each"
    )
    console.print()
    console.print(phases_table(found.phases, elements))
    if found.request is not None:
        console.print(_request_line(found))
    for phase in found.phases:
        console.print()
        console.print(operators(phase, elements))
        console.print(sentence(phase))
        if len(phase.seconds_by_tier) > 1:
            console.print(tiers_line(phase, found.tier))
    console.print()
    ridge = f"The ridge point is {found.ridge:,.0f} FLOP/byte in {found.product_format}"
    console.print(f"{ridge}: below it memory binds, above it arithmetic.")
    console.print(memory_line(found.memory))
    console.print(f"[dim]Stands on: {stands_on(found.basis)}.[/dim]")
    for said in found.assumptions:
        console.print(f"[dim]Assumed: {said}.[/dim]")
    command = check_command(found)
    if command is not None:
        console.print(Text(f"Check it: {command}", style="dim"), soft_wrap=True)


def stands_on(basis: Mapping[str, str]) -> str:
    """The device file's sections by where their figures come from."""
    sections: dict[str, list[str]] = {}
    for section, source in basis.items():
        sections.setdefault(source, []).append(section)
    return "; ".join(f"{source} {', '.join(names)}" for source, names in sections.items())


def phases_table(phases: Sequence[Phase], elements: bool) -> Table:
    """The phases, a row each."""
    table = plain_table(
        "phase", "tokens", "context", "time", "tokens/s", "FLOPs", _moved(elements), _per(elements)
    )
    for p in phases:
        moved = p.elements if elements else p.bytes
        table.add_row(
            p.name,
            f"{p.tokens:,}",
            f"{p.context:,}",
            seconds(p.seconds),
            f"{p.tokens_per_second:,.1f}",
            count(p.flops.total),
            count(moved) if elements else nbytes(moved),
            f"{p.flops.total / moved:,.1f}",
        )
    return table


def _request_line(found: Explanation) -> str:
    r = found.request
    further = "" if r.tpot_seconds is None else f", then one every {seconds(r.tpot_seconds)}"
    return (
        f"A request: first token after {seconds(r.ttft_seconds)}{further}; "
        f"{seconds(r.total_seconds)} in all, {r.output_tokens_per_second:,.1f} new tokens/s together."
    )


def operators(phase: Phase, elements: bool) -> Table:
    """The operators of a phase that take longest, and the rest together."""
    columns = (f"{phase.name}: operator", "calls", "time", "share", "", _per(elements), "bound by")
    table = plain_table(*columns, left=(0, 4, 6))
    kernels = sorted(_joined(phase.kernels), key=lambda k: k.seconds * k.repeat, reverse=True)
    for k in kernels[:SHOWN]:
        share = k.seconds * k.repeat / phase.seconds
        moved = k.elements if elements else k.bytes
        per = f"{k.flops.total / moved:,.1f}" if moved else "-"
        table.add_row(
            k.name, str(k.repeat), seconds(k.seconds * k.repeat), f"{share:.1%}", _bar(share), per, k.bound
        )
    rest = sum(k.seconds * k.repeat for k in kernels[SHOWN:])
    if rest:
        share = rest / phase.seconds
        table.add_row(f"{len(kernels) - SHOWN} more", "", seconds(rest), f"{share:.1%}", _bar(share), "", "")
    return table


def _joined(kernels: Iterable[KernelTime]) -> list[KernelTime]:
    """Kernels of one name and cost as one: where layers of several kinds alternate, what they have in
    common."""
    found: dict[tuple, KernelTime] = {}
    for k in kernels:
        key = (k.name, k.seconds, k.bytes, k.flops)
        found[key] = replace(k, repeat=k.repeat + found[key].repeat) if key in found else k
    return list(found.values())


def sentence(phase: Phase) -> str:
    """What the phase is bound by, in words."""
    bound, bound_time = max(phase.seconds_by_bound.items(), key=lambda item: item[1])
    kind, kind_time = max(phase.seconds_by_class.items(), key=lambda item: item[1])
    return (
        f"{bound_time / phase.seconds:.0%} of {phase.name} is bound by {BOUNDS[bound]}; "
        f"{kind} operators take {kind_time / phase.seconds:.0%} of it."
    )


def tiers_line(phase: Phase, chosen: str) -> Text:
    """The phase's time at each tier, the one that is shown in bold."""
    times = [
        (f"{tier} {seconds(time)}", "bold" if tier == chosen else "")
        for tier, time in phase.seconds_by_tier.items()
    ]
    line = Text("By tier: ")
    return line.append_text(Text(", ").join(Text(*time) for time in times)).append(".")


def memory_line(m: MemoryUse) -> Text:
    """What the device's memory holds."""
    line = Text(f"Memory: weights {nbytes(m.weights)}")
    if m.cache_elements_per_token:
        per_token = f"{count(m.cache_elements_per_token)} elements, {nbytes(m.cache_bytes_per_token)} a token"
        line.append(f" + KV cache {nbytes(m.cache)} ({per_token})")
    line.append(f" + activations {nbytes(m.activations)} = {nbytes(m.total)} of {nbytes(m.device)}; ")
    if not m.fits:
        line.append(f"does not fit, {m.total / m.device:.1f} times the device", style="red")
    elif m.cache_elements_per_token:
        line.append(f"{m.tokens_that_fit:,} tokens of cache fit")
    else:
        line.append("fits")
    return line.append(".")


def show_stream(console: Console, generator: Generator, prompt: str | list[int], **options: Any) -> Result:
    """The prompt and its continuation as it is made, then how fast it was.

    Raises InputError as ``generator.stream`` does, before anything is shown.
    """
    tokens = generator.stream(prompt, **options)
    console.print(Text(prompt if isinstance(prompt, str) else f"{prompt} ", style="bold"), end="")
    try:
        for token in tokens:
            text = token.text if generator.requests.tokenizer is not None else f"{token.id} "
            console.print(Text(text), end="", soft_wrap=True)
    finally:
        console.print()  # what goes wrong is said on a line of its own
    result = token.result
    timings = result.timings
    pace = f", then {1 / timings.tpot:,.1f} tokens/s" if timings.tpot else ""
    console.print(
        f"[dim]{len(result.ids)} tokens: the first after {seconds(timings.ttft)}{pace}; "
        f"ended by {result.finish_reason}.[/dim]"
    )
    if generator.speculator is not None:
        console.print(Text(_speculation(generator.speculator.report), style="dim"))
    return result


def _speculation(report: SpeculationReport) -> str:
    """How often proposals were right, and what that gave."""
    if not report.trials:
        return "Nothing was proposed."
    gain = "" if report.measured_gain is None else f"; {report.measured_gain:.2f}x as fast as without"
    predicted = "" if report.predicted_gain is None else f", predicted {report.predicted_gain:.2f}x"
    return (
        f"{report.accepted:,} of {report.proposed:,} proposed tokens accepted,"
        f" {report.tokens_per_trial:.1f} tokens a trial{gain}{predicted}."
    )


def show_measurement(console: Console, found: Measurement, path: Path) -> None:
    """This machine's figures, each with the spread between its rounds."""
    device = found.device
    console.print(Text.assemble((device.title, "bold"), f", measured in {seconds(found.seconds)}"))
    table = plain_table("what", "figure", left=(0,))
    for dtype, value in device.matrix.items():
        table.add_row(f"matrix products, {dtype}", rate(value, "FLOP"))
    for dtype, value in device.vector.items():
        table.add_row(f"vector operations, {dtype}", rate(value, "FLOP"))
    table.add_row("exponentials", rate(device.exp_rate, ""))
    for level in device.levels:
        table.add_row(f"read from {level.name} ({nbytes(level.capacity)})", rate(level.bandwidth, "B"))
    table.add_row("an operator call", seconds(device.launch_seconds))
    if device.storage_bandwidth:
        table.add_row("read from storage", rate(device.storage_bandwidth, "B"))
    console.print(table)
    if found.spreads:
        console.print(_noise(found.spreads))
    console.print(f"[dim]Stored in {path}; `--on this` uses it.[/dim]")


def _noise(spreads: Mapping[str, float]) -> str:
    """How far the rounds of the figures lay apart: a warning if the machine had other work."""
    name, most = max(spreads.items(), key=lambda item: item[1])
    disturbed = sum(spread > NOISY for spread in spreads.values())
    if not disturbed:
        return f"Best of several rounds; the noisiest figure, {name}, spread by {most:.0%}."
    return (
        f"Best of several rounds. The machine was busy: {disturbed} of {len(spreads)} figures took more than"
        f" {1 + NOISY:.0f} times as long in their worst round, {name} most of all."
        " Measure again when it is idle."
    )


def show_check(console: Console, found: Check, *, by_class: bool = False) -> None:
    """Prediction beside measurement: totals, then each phase's operators, or its classes of layers."""
    title = Text.assemble((found.model, "bold"), f" on {found.device}, measured {found.device_date}")
    console.print(title)
    columns = ("phase", "context", "predicted", "measured", "error", "spread", "median operator")
    table = plain_table(*columns, "memory before, after")
    for p in found.phases:
        table.add_row(
            p.name,
            f"{p.context:,}",
            seconds(p.predicted),
            seconds(p.measured),
            _error(p.error),
            f"{p.spread:.0%}",
            f"{p.median_operator:.0%}",
            "-" if p.memory is None else f"{p.memory.before / 1e9:.0f}, {p.memory.after / 1e9:.0f} GB/s",
        )
    console.print(table)
    worst = found.worst
    console.print(
        f"Totals are off by {found.mape:.1%} on average, at worst {worst.error:+.1%} "
        f"({worst.name} at context {worst.context:,}); predicted before anything was run."
    )
    if found.note:
        console.print(f"[dim]{found.note}[/dim]")
    for line in _memory_lines(found):
        console.print(line)
    from ridgeline.report.breakdown import class_checks

    for phase in found.phases:
        console.print()
        console.print(class_checks(phase) if by_class else _operator_checks(phase))


#: From this change of memory's rate on, carrying the measured times over shows.
CARRIED_FAR = 0.25


def _memory_lines(found: Check) -> list[str]:
    """What the predictions take memory's rate to be, and where it moved meanwhile."""
    readings = [p.memory for p in found.phases if p.memory is not None]
    if not readings:
        return ["Memory is taken to be as fast as when the machine was measured."]
    lines = [
        f"Times that wait for memory go by its rate read before each phase; when the machine was measured "
        f"it was {readings[0].measured / 1e9:.0f} GB/s."
    ]
    if any(abs(r.before / r.measured - 1) > CARRIED_FAR for r in readings):
        lines.append("That is far from it: after another `ridgeline measure` predictions are better.")
    for p in found.phases:
        if p.memory is not None and p.memory.moved:
            lines.append(
                f"[yellow]Memory moved while {p.name} at context {p.context:,} ran: its error says little.[/]"
            )
    return lines


def _operator_checks(phase: PhaseCheck) -> Table:
    columns = (f"{phase.name} at {phase.context:,}: operator", "calls", "predicted", "measured", "error")
    table = plain_table(*columns)
    for o in sorted(phase.operators, key=lambda o: o.measured, reverse=True)[:SHOWN]:
        table.add_row(o.name, str(o.calls), seconds(o.predicted), seconds(o.measured), _error(o.error))
    return table


def show_evaluation(console: Console, found: Sequence[Evaluation], text: str) -> None:
    """How well a model predicts a text, called ``text``, in one weight format or several, which are
    compared with the first."""
    first = found[0]
    size = f"{nbytes(first.bytes)} in {first.tokens:,} tokens"
    console.print(Text.assemble((first.model, "bold"), " on ", (text, "bold"), f", {size}"))
    table = plain_table("weights", "size", "bits/byte", "perplexity", f"vs {first.format}", "tokens/s")
    for e in found:
        change = round(e.perplexity / first.perplexity - 1, 4) + 0.0  # without the sign of a negative zero
        table.add_row(
            e.format,
            nbytes(e.weight_bytes),
            f"{e.bits_per_byte:.4f}",
            f"{e.perplexity:,.2f}",
            "-" if e is first else f"{change:+.2%}",
            f"{e.tokens_per_second:,.0f}",
        )
    console.print(table)
    console.print(
        f"Guided by the {first.format} weights, a compressor would store this text in "
        f"{first.bits_per_byte / 8:.1%} of its bytes; the next token is as open as a choice among "
        f"{first.perplexity:,.1f} equally likely ones."
    )
    least = first.window - first.stride + 1
    console.print(
        f"[dim]Every token is scored once, with {least:,} to {first.window:,} tokens before it, or all "
        "that its document has. Lower is better.[/dim]"
    )


def show_validation(console: Console, results: Sequence[Any]) -> None:
    """Published figures beside ours, document by document."""
    source = None
    table = None
    for r in results:
        if r.source != source:
            if table is not None:
                console.print(table)
                console.print()
            source = r.source
            table = plain_table("item", "published", "computed", "unit", "error", "", left=(0, 3, 5))
            table.title, table.title_justify = source, "left"
        verdict = Text("ok", style="green") if r.ok else Text("OFF", style="bold red")
        if r.right is not None:
            verdict = Text(f"erratum: {r.right:,.6g}", style="yellow" if r.ok else "bold red")
        table.add_row(r.item, f"{r.published:,.6g}", f"{r.computed:,.6g}", r.unit, f"{r.error:+.2%}", verdict)
    if table is not None:
        console.print(table)
    good, errata = sum(r.ok for r in results), sum(r.right is not None for r in results)
    console.print(
        f"{good} of {len(results)} figures hold; {errata} are errata of their source, "
        "with the right value beside."
    )


def plain_table(*columns: str, left: tuple[int, ...] = (0,)) -> Table:
    """A table of no rows yet, without lines; columns at the places ``left`` are aligned so, others right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i in left else "right", overflow="fold")
    return table


def _moved(elements: bool) -> str:
    return "elements" if elements else "bytes"


def _per(elements: bool) -> str:
    return "FLOP/element" if elements else "FLOP/byte"


def _bar(share: float) -> Text:
    return Text("█" * max(round(share * BAR_WIDTH), 0) or "▏", style="cyan")


def _error(error: float) -> Text:
    style = "green" if abs(error) < 0.15 else "yellow" if abs(error) < 0.3 else "red"
    return Text(f"{error:+.1%}", style=style)
