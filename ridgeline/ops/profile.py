"""The profile reading: wraps an executing reading and times every operator.

It yields the trace's own operators with measured times: same order, same names, identical layers
folded into one, so that prediction and measurement join line by line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ridgeline.ops.protocol import Layer, Norm, T, Weight

#: Operators that are timed, and how each call is named in the trace.
_NAMES: dict[str, Callable[..., str]] = {
    "embed": lambda ids, weight, **_: weight.name,
    "norm": lambda x, norm: norm.weight.name,
    "linear": lambda x, weight, name=None, **_: name or weight.name,
    "split_heads": lambda *_: "split_heads",
    "attend": lambda *_, **__: "attention",
    "add": lambda *_: "add",
    "take_rows": lambda *_: "take_rows",
}


@dataclass
class OpTime:
    """An operator of the pass and the seconds of each of its calls, one a layer of its loop."""

    name: str
    seconds: list[float] = field(default_factory=list)

    @property
    def total(self) -> float:
        return sum(self.seconds)


class Profile:
    """Times the operators of ``inner``. ``finish`` waits for the device after each, if it has to."""

    def __init__(self, inner: Any, finish: Callable[[], None] | None = None) -> None:
        self.inner = inner
        self.records: list[OpTime] = []
        self._finish = finish
        self._replay: int | None = None

    def take(self) -> list[OpTime]:
        """The records since the last call, and a clean slate."""
        records, self.records = self.records, []
        return records

    def embed(self, ids: T, weight: Weight, **options: Any) -> T:
        return self._timed("embed", ids, weight, **options)

    def norm(self, x: T, norm: Norm) -> T:
        return self._timed("norm", x, norm)

    def linear(self, x: T, weight: Weight, **options: Any) -> T:
        return self._timed("linear", x, weight, **options)

    def split_heads(self, qkv: T, heads: Any) -> tuple[T, T, T]:
        return self._timed("split_heads", qkv, heads)

    def attend(self, q: T, k: T, v: T, **options: Any) -> T:
        return self._timed("attend", q, k, v, **options)

    def add(self, a: T, b: T) -> T:
        return self._timed("add", a, b)

    def take_rows(self, x: T, rows: T | None) -> T:
        return x if rows is None else self._timed("take_rows", x, rows)

    def repeat(self, layers: Sequence[Layer], body: Callable[[Layer, T], T], x: T) -> T:
        first: Layer | None = None
        start = 0

        def recorded(layer: Layer, x: T) -> T:
            nonlocal first, start
            if first is not None and first.signature == layer.signature:
                self._replay = start
            else:
                first, start, self._replay = layer, len(self.records), None
            return body(layer, x)

        x = self.inner.repeat(layers, recorded, x)
        self._replay = None
        return x

    def _timed(self, method: str, *args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        result = getattr(self.inner, method)(*args, **options)
        if self._finish is not None:
            self._finish()
        seconds = time.perf_counter() - begin
        self._record(_NAMES[method](*args, **options), seconds)
        return result

    def _record(self, name: str, seconds: float) -> None:
        if self._replay is None:
            self.records.append(OpTime(name, [seconds]))
            return
        record = self.records[self._replay]
        if record.name != name:
            raise RuntimeError(f"identical layers ran different operators: {record.name}, then {name}")
        record.seconds.append(seconds)
        self._replay += 1
