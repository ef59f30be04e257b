"""``python -m benchmarks.peers``: times the rows of the table and stores them in ``results/peers.json``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.cases import MEMORY, PEERS, ROWS, Row
from benchmarks.peers.files import make_checkpoint
from benchmarks.peers.results import store, summary
from benchmarks.peers.turns import Failed, take_turns
from ridgeline.hardware import cache_folder
from ridgeline.hardware.fingerprint import fingerprint
from ridgeline.hardware.host import this_host


def main() -> None:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--only", action="append", choices=names, help="a row; may be repeated")
    parser.add_argument(
        "--worker",
        action="append",
        choices=[*PEERS, MEMORY],
        help="only it takes part, and nothing is stored",
    )
    parser.add_argument("--rounds", type=int, default=5, help="0 only makes and loads the model files")
    parser.add_argument("--wait", action="store_true", help="for Enter, once a row's models are loaded")
    parser.add_argument("--threads", type=int, default=this_host().cores)
    parser.add_argument("--folder", type=Path, default=cache_folder() / "peers", help="for model files")
    parser.add_argument("--dry-run", action="store_true", help="print only, store nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    make_checkpoint(options.folder)
    chosen = [row for row in ROWS if row.name in (options.only or names)]
    found = [result for row in chosen for result in _results(row, options)]
    if found and not (options.dry_run or options.worker):
        print(f"wrote {store(found, fingerprint(options.threads))}")


def _results(row: Row, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The row's result; none where no round is asked for, nobody takes part, or a worker breaks."""
    print(f"{row.title}:", flush=True)
    ready = (lambda: input("  loaded; Enter starts\n")) if options.wait else (lambda: None)
    contestants = [c for c in row.contestants if not options.worker or c.worker in options.worker]
    try:
        turns = take_turns(contestants, options.rounds, options.threads, options.folder, ready)
    except Failed as error:
        print(f"  failed: {error}", flush=True)
        return
    if turns and options.rounds:
        found = summary(row, turns)
        for contestant in found["contestants"]:
            _show(contestant)
        yield found


def _show(contestant: dict[str, Any]) -> None:
    named = f"  {contestant['name']:26} {contestant['weights']:24}"
    line = f"{named} {contestant['tokens_per_second']:9.1f} tokens/s"
    if "gbytes_per_second" in contestant:
        line += f"  {contestant['gbytes_per_second']:5.1f} GB/s"
    if "speedup" in contestant:
        line += f"  takes {contestant['speedup']:.2f} x as long as Ridgeline"
    print(line, flush=True)


if __name__ == "__main__":
    main()
