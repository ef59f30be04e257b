"""Writes the README's figures from the committed results: ``python -m benchmarks.readme``."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import MEMORY, OWN, PEERS, ROWS
from benchmarks.record import RESULTS

README = Path(__file__).parent.parent / "README.md"


def check_table(result: dict[str, Any]) -> str:
    """Prediction against measurement, a line a phase; the times are those of the median pair."""
    machine = result["machine"]
    of_operators = all("median_operator" in p for p in result["phases"])
    lines = [
        "| model | weights | step | context | predicted | measured | median error |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    if of_operators:
        lines = [f"{line}{cell}" for line, cell in zip(lines, (" median operator |", " ---: |"), strict=True)]
    for p in result["phases"]:
        middle = _median_pair(p)
        predicted, measured = p["predicted_ms"][middle], p["measured_ms"][middle]
        error = f"{p['median_absolute_error']:.1%}"
        step = f"| {p['model']} | {p['weights']} | {p['phase']} | {p['context']:,} "
        lines.append(f"{step}| {predicted:,.2f} ms | {measured:,.2f} ms | {error} |")
        if of_operators:
            lines[-1] += f" {statistics.median(p['median_operator']):.1%} |"
    lines += [
        "",
        f"Measured {machine['date']} on {machine['cpu']}, {machine['threads']} threads; "
        f"{result['pairs']} pairs of measure and check.",
    ]
    return "\n".join(lines)


def peers_table(result: dict[str, Any]) -> str:
    """Tokens a second beside the peers', a line for each of our runs, and the ratio to the fastest peer's."""
    machine, peers = result["machine"], {w: name for w, name in PEERS.items() if w != OWN}
    lines = [
        f"| tokens/s | {' | '.join(PEERS.values())} | times the fastest peer |",
        f"| --- |{' ---: |' * (len(PEERS) + 1)}",
    ]
    order = [row.name for row in ROWS]
    for row in sorted(result["rows"], key=lambda row: order.index(row["name"])):
        found = [c for c in row["contestants"] if c["worker"] != MEMORY]
        first, *others = (c for c in found if c["worker"] == OWN)
        theirs = {c["worker"]: c for c in found if c["worker"] != OWN}
        ratio = f"{min(c['speedup'] for c in theirs.values()):.2f}" if theirs else ""
        rates = (_rate(theirs.get(worker)) for worker in peers)
        lines.append(f"| {row['title']} | {_rate(first)} | {' | '.join(rates)} | {ratio} |")
        lines += [f"| - {c['name']} | {_rate(c)} |{'  |' * (len(peers) + 1)}" for c in others]
    versions = {n: v for r in result["rows"] for c in r["contestants"] for n, v in c["versions"].items()}
    formats = {
        f"{c['name']} {c['weights']}": None
        for r in result["rows"]
        for c in r["contestants"]
        if c["worker"] != MEMORY
    }
    lines += [
        "",
        f"Measured {machine['date']} on {machine['cpu']}, {machine['threads']} threads. Weights: "
        f"{', '.join(formats)}. Versions: "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}."
        f"{''.join(_share_of_reading(row) for row in result['rows'])}",
    ]
    return "\n".join(lines)


def profiles_table(result: dict[str, Any]) -> str:
    """Errors of predicted kernel times on accelerators, a line for each kind of kernel."""
    lines = [
        "| accelerator | kernels | fitted to | judged on | mean error | median | not fitted | datasheet |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for p in result["profiles"]:
        shares = (p["mean"], p["median"], p["generic_mean"], p["datasheet_mean"])
        cells = " | ".join("" if share is None else f"{share:.1%}" for share in shares)
        lines.append(f"| {p['device']} | {p['kind']} | {p['fitted_to']} | {p['points']:,} | {cells} |")
    sources = dict.fromkeys(p["source"] for p in result["profiles"])
    lines += ["", f"Measured points: {'; '.join(sources)}."]
    return "\n".join(lines)


#: What writes each marked block, by the name of its results.
BLOCKS = {"check_cpu": check_table, "peers": peers_table, "profiles": profiles_table}


def filled(readme: str) -> str:
    """The README with every marked block written anew."""

    def block(marked: re.Match[str]) -> str:
        name = marked[1]
        result = json.loads((RESULTS / f"{name}.json").read_text())
        return f"<!-- figures: {name} -->\n{BLOCKS[name](result)}\n<!-- end -->"

    return re.sub(r"<!-- figures: (\w+) -->.*?<!-- end -->", block, readme, flags=re.DOTALL)


def _rate(contestant: dict[str, Any] | None) -> str:
    return "" if contestant is None else f"{contestant['tokens_per_second']:,.0f}"


def _share_of_reading(row: dict[str, Any]) -> str:
    """How fast we read weights, of how fast memory was read in the same rounds; empty where nobody did."""
    rates: dict[str, Any] = {}
    for contestant in row["contestants"]:
        rates.setdefault(contestant["worker"], contestant.get("gbytes_per_second"))
    if MEMORY not in rates or OWN not in rates:
        return ""
    ours, best = rates[OWN], max(rate for rate in rates.values() if rate is not None)
    return (
        f" {row['title']}: weights are read at {ours:.0f} GB/s, and memory by itself in the same rounds at "
        f"{best:.0f} GB/s."
    )


def _median_pair(phase: dict[str, Any]) -> int:
    errors = [abs(e) for e in phase["error"]]
    return errors.index(sorted(errors)[len(errors) // 2])


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
