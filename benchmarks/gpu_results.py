"""What ``benchmarks.gpu`` found: kept in a file after every case, and shown beside the targets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch


@dataclass
class Row:
    """A case as it was found: the largest error over the largest element, and seconds by contestant; of those
    that are ``left_out``, why."""

    part: str
    name: str
    error: float
    tolerance: float
    flops: float
    bytes: float
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        return self.error <= self.tolerance  # a NaN is not

    def best_peer(self, *names: str) -> tuple[str, float] | None:
        """The fastest of the peers that ran, of those whose name begins with one of ``names`` if any are
        given."""
        peers = {n: s for n, s in self.seconds.items() if n != "ours" and (not names or n.startswith(names))}
        return min(peers.items(), key=lambda peer: peer[1]) if peers else None


@dataclass(frozen=True)
class Target:
    """A figure of issue 7: what was reached, None where it was not found, and what is asked for."""

    name: str
    reached: float | None
    wanted: float
    at_most: bool = False

    @property
    def is_met(self) -> bool:
        if self.reached is None:
            return False
        return self.reached <= self.wanted if self.at_most else self.reached >= self.wanted


@dataclass
class Results:
    """Everything, with the GPU and its software. ``stopped`` says why a part did not end, ``seconds`` how
    long each took; ``checked`` are the signed errors of predicted steps by name, ``measured`` other figures.
    """

    machine: dict[str, str]
    path: Path | None = None
    bandwidth: float | None = None
    rows: list[Row] = field(default_factory=list)
    stopped: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    checked: dict[str, float] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)

    @classmethod
    def begin(cls, device: torch.device, path: Path | None) -> Results:
        machine = {"torch": torch.__version__, "date": datetime.now(UTC).date().isoformat()}
        if device.type == "cuda":
            from ridgeline.hardware.gpu.stopwatch import gpu_facts

            machine |= {name: str(value) for name, value in asdict(gpu_facts(device)).items()}
        return cls(machine, path)

    @classmethod
    def read(cls, path: Path) -> Results:
        """What was saved there."""
        held = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**row) for row in held["rows"]]
        rest = (held[name] for name in ("stopped", "seconds", "checked", "measured"))
        return cls(held["machine"], path, held["copy_bytes_per_second"], rows, *rest)

    def save(self) -> None:
        """Whoever reads the file meanwhile, or after this was killed, sees the last save or this one."""
        if self.path is None:
            return
        found = {
            "machine": self.machine,
            "copy_bytes_per_second": self.bandwidth,
            "targets": [asdict(t) | {"met": t.is_met} for t in targets(self)],
            "rows": [asdict(row) for row in self.rows],
            "checked": self.checked,
            "measured": self.measured,
            "stopped": self.stopped,
            "seconds": self.seconds,
        }
        draft = self.path.with_name(f".{self.path.name}.draft")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(found, indent=1), encoding="utf-8")
        os.replace(draft, self.path)


def targets(found: Results) -> Iterator[Target]:
    """The figures of issue 7 that are to be reached on an H200."""
    rows = {(row.part, row.name): row for row in found.rows}

    def of(part: str, name: str) -> Row | None:
        return rows.get((part, name))

    def of_copy(row: Row | None) -> float | None:
        if row is None or not found.bandwidth or "ours" not in row.seconds:
            return None
        return row.bytes / row.seconds["ours"] / found.bandwidth

    forward, both = of("attention", "1x8192 h32/32 d128 causal"), of("backward", "1x8192 h32/32 d128 causal")
    sdpa = None if forward is None else forward.best_peer("sdpa", "flex")
    ours = None if forward is None else forward.seconds.get("ours")
    yield Target(
        "attention forward, 8k causal bf16 d128, of PyTorch's best", sdpa and ours and sdpa[1] / ours, 0.8
    )
    yield Target("attention backward, the same", _backward(forward, both), 0.7)
    decode = of_copy(of("decode", "16x1 over 32768 h32/8 d128"))
    yield Target("paged decode, batch 16 at 32k, of copy bandwidth", decode, 0.85)
    few = [of_copy(row) for row in found.rows if row.part == "linear" and row.name.startswith("int4-g128 1x")]
    yield Target("4-bit linear, one row, of copy bandwidth", max((f for f in few if f), default=None), 0.75)
    model = of("model", "llama-3-8b bf16, 1x1 after 512")
    yield Target("Llama-3-8B decode, batch 1, of copy bandwidth", of_copy(model), 0.8)
    peer = None if model is None else model.seconds.get("transformers, compiled")
    step = None if model is None else model.seconds.get("ours")
    yield Target("the same, against transformers with torch.compile", peer and step and peer / step, 1.2)
    errors = [abs(e) for e in found.checked.values()]
    yield Target(
        "check: mean error of totals", sum(errors) / len(errors) if errors else None, 0.12, at_most=True
    )


def _backward(forward: Row | None, both: Row | None) -> float | None:
    """PyTorch's best time of a backward pass alone over ours: of both ways, less the way forward."""
    if forward is None or both is None:
        return None
    alone = {n: s - forward.seconds[n] for n, s in both.seconds.items() if n in forward.seconds}
    peers = [s for n, s in alone.items() if n != "ours" and s > 0]
    return min(peers) / alone["ours"] if peers and alone.get("ours", 0) > 0 else None


def show(found: Results) -> None:
    """A line a case: errors, our time, its rate, and the best peer's time over ours; then the targets."""
    print(f"\n{'case':<46}{'error':>9}  {'ours':>9}{'TFLOP/s':>9}{'GB/s':>8}{'of copy':>9}  best peer")
    for row in found.rows:
        print(_line(row, found.bandwidth))
    for name, error in found.checked.items():
        print(f"{'check ' + name:<46.46}{error:+9.1%}")
    for name, value in found.measured.items():
        print(f"{'measure ' + name:<60.60}{value:>12.4g}")
    for part, why in found.stopped.items():
        print(f"{part} is not complete: {why}")
    if found.bandwidth:
        print("seconds: " + ", ".join(f"{part} {s:.0f}" for part, s in found.seconds.items()))
    if found.bandwidth:
        print(f"\n{found.machine.get('name', '')}: copies at {found.bandwidth / 1e12:.2f} TB/s")
        for target in targets(found):
            reached = "-" if target.reached is None else f"{target.reached:.2f}"
            word = "met" if target.is_met else "MISSED" if target.reached is not None else "not found"
            limit = "at most" if target.at_most else "at least"
            print(f"{target.name:<60}{reached:>7} {limit} {target.wanted:<5} {word}")


def _line(row: Row, bandwidth: float | None) -> str:
    line = f"{row.part + ' ' + row.name:<46.46}{row.error:9.1e}{' ' if row.is_right else '!'} "
    ours = row.seconds.get("ours")
    if not ours:
        return line
    line += f"{ours * 1e6:7.1f}us{row.flops / ours / 1e12:9.1f}{row.bytes / ours / 1e9:8.0f}"
    line += f"{row.bytes / ours / bandwidth:9.0%}" if bandwidth and row.bytes else f"{'':9}"
    best = row.best_peer()
    return line if best is None else f"{line}  {best[0]} {best[1] / ours:.2f}x"
