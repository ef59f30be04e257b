"""A simulated run of serving on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ridgeline.report.tables import stands_on
from ridgeline.report.units import count, percent, seconds

if TYPE_CHECKING:
    from ridgeline.analysis.serving import SimulatedServing
    from ridgeline.engine.metrics import Distribution, Serving


def show_simulation(console: Console, found: SimulatedServing) -> None:
    """Latencies, throughput, and what the cache and the scheduler had to do for them."""
    simulation, serving, limits = found.simulation, found.simulation.serving, found.limits
    console.print(
        Text.assemble((found.model, "bold"), " on ", (found.device_title, "bold"), ", in simulated time")
    )
    console.print(
        f"{count(serving.requests)} requests in {seconds(serving.seconds)}: "
        f"{count(serving.prompt_tokens)} prompt tokens, {count(serving.output_tokens)} output tokens"
    )
    console.print()
    console.print(_latencies(found))
    if found.recorded is not None:
        console.print()
        console.print(_compared(serving, found.recorded))
        console.print()
    console.print(
        f"{serving.output_tokens_per_second:,.1f} output tokens/s, with prompts "
        f"{serving.tokens_per_second:,.1f} tokens/s; {serving.requests_per_second:,.3g} requests/s."
    )
    console.print(
        f"{count(simulation.steps)} steps of {simulation.batch:,.1f} sequences on average, busy "
        f"{percent(simulation.busy_seconds / serving.seconds)} of the time. KV cache of "
        f"{count(limits.kv_tokens)} tokens: {percent(simulation.occupancy)} in use on average, "
        f"{percent(simulation.peak_occupancy)} at most."
    )
    console.print(
        f"{count(simulation.preemptions)} preemptions; {count(simulation.recomputed)} tokens computed again."
    )
    console.print(
        f"[dim]Limits: {limits.batched_tokens:,} tokens and {limits.sequences:,} sequences a step, blocks of "
        f"{limits.block_size}, headroom {limits.headroom}; weights in {found.weight_format}, cache in "
        f"{found.cache_format}.[/dim]"
    )
    console.print(f"[dim]Stands on: {stands_on(found.basis)}.[/dim]")
    for said in found.assumptions:
        console.print(f"[dim]Assumed: {said}.[/dim]")


def _latencies(found: SimulatedServing) -> Table:
    serving = found.simulation.serving
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("latency", "mean", "p50", "p90", "p99"):
        table.add_column(name, justify="left" if name == "latency" else "right")
    for name, distribution in (
        ("time to first token (TTFT)", serving.ttft),
        ("time per output token (TPOT)", serving.tpot),
        ("between tokens (ITL)", serving.itl),
        ("end to end", serving.end_to_end),
    ):
        table.add_row(name, *_row(distribution))
    return table


def _compared(simulated: Serving, recorded: Serving) -> Table:
    """The simulated run beside the one that the file records."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("beside the recorded run", "recorded", "simulated", "off by"):
        table.add_column(name, justify="left" if name.startswith("beside") else "right")
    for name, of in (
        ("time to serve all", lambda s: s.seconds),
        ("TTFT, mean", lambda s: s.ttft.mean),
        ("TTFT, p50", lambda s: s.ttft.p50),
        ("TTFT, p99", lambda s: s.ttft.p99),
        ("TPOT, mean", lambda s: s.tpot and s.tpot.mean),
        ("TPOT, p99", lambda s: s.tpot and s.tpot.p99),
        ("end to end, mean", lambda s: s.end_to_end.mean),
    ):
        ours, theirs = of(simulated), of(recorded)
        if ours and theirs:
            table.add_row(name, seconds(theirs), seconds(ours), f"{ours / theirs - 1:+.1%}")
    return table


def _row(found: Distribution | None) -> list[str]:
    if found is None:
        return ["-"] * 4
    return [seconds(value) for value in (found.mean, found.p50, found.p90, found.p99)]
