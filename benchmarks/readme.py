"""Writes the README's figures from the committed results: ``python -m benchmarks.readme``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import OWN, PEERS
from benchmarks.record import RESULTS

README = Path(__file__).parent.parent / "README.md"


def check_table(result: dict[str, Any]) -> str:
    """Prediction against measurement, a line a phase; the times are those of the median pair."""
    machine = result["machine"]
    lines = [
        "| model | step | context | predicted | measured | median error |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for p in result["phases"]:
        middle = _median_pair(p)
        predicted, measured = p["predicted_ms"][middle], p["measured_ms"][middle]
        error = f"{p['median_absolute_error']:.1%}"
        step = f"| {p['model']} | {p['phase']} | {p['context']:,} "
        lines.append(f"{step}| {predicted:,.2f} ms | {measured:,.2f} ms | {error} |")
    lines += [
        "",
        f"Measured {machine['date']} on {machine['cpu']}, {machine['threads']} threads, PyTorch "
        f"{machine['torch']}; {result['pairs']} pairs of measure and check.",
    ]
    return "\n".join(lines)


def peers_table(result: dict[str, Any]) -> str:
    """Tokens a second beside the peers', a line for each of our runs, and the ratio to the fastest peer's."""
    machine, peers = result["machine"], {w: name for w, name in PEERS.items() if w != OWN}
    lines = [
        f"| tokens/s | {' | '.join(PEERS.values())} | times the fastest peer |",
        f"| --- |{' ---: |' * (len(PEERS) + 1)}",
    ]
    for row in result["rows"]:
        found = row["contestants"]
        first, *others = (c for c in found if c["worker"] == OWN)
        theirs = {c["worker"]: c for c in found if c["worker"] != OWN}
        ratio = f"{min(c['speedup'] for c in theirs.values()):.2f}" if theirs else ""
        rates = (_rate(theirs.get(worker)) for worker in peers)
        lines.append(f"| {row['title']} | {_rate(first)} | {' | '.join(rates)} | {ratio} |")
        lines += [f"| - {c['name']} | {_rate(c)} |{'  |' * (len(peers) + 1)}" for c in others]
    versions = {n: v for r in result["rows"] for c in r["contestants"] for n, v in c["versions"].items()}
    formats = {f"{c['name']} {c['weights']}": None for r in result["rows"] for c in r["contestants"]}
    lines += [
        "",
        f"Measured {machine['date']} on {machine['cpu']}, {machine['threads']} threads, which reads memory "
        f"at {_best_read(result) / 1e9:.0f} GB/s at best. Weights: {', '.join(formats)}. Versions: "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}.",
    ]
    return "\n".join(lines)


#: What writes each marked block, by the name of its results.
BLOCKS = {"check_cpu": check_table, "peers": peers_table}


def filled(readme: str) -> str:
    """The README with every marked block written anew."""

    def block(marked: re.Match[str]) -> str:
        name = marked[1]
        result = json.loads((RESULTS / f"{name}.json").read_text())
        return f"<!-- figures: {name} -->\n{BLOCKS[name](result)}\n<!-- end -->"

    return re.sub(r"<!-- figures: (\w+) -->.*?<!-- end -->", block, readme, flags=re.DOTALL)


def _rate(contestant: dict[str, Any] | None) -> str:
    return "" if contestant is None else f"{contestant['tokens_per_second']:,.0f}"


def _best_read(result: dict[str, Any]) -> float:
    """Bytes a second of the best reader: the probe, or a generating contestant."""
    found = (c.get("gbytes_per_second", 0.0) for row in result["rows"] for c in row["contestants"])
    return max(result["read_bandwidth"], 1e9 * max(found, default=0.0))


def _median_pair(phase: dict[str, Any]) -> int:
    errors = [abs(e) for e in phase["error"]]
    return errors.index(sorted(errors)[len(errors) // 2])


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
