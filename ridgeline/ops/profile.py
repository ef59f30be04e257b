"""The profile reading: wraps an executing reading and times every operator.

It yields the trace's own operators with measured times: same order, same names, identical layers
folded into one, so that prediction and measurement join line by line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ridgeline.ops.batch import T
from ridgeline.ops.layers import Layer
from ridgeline.ops.loops import runs
from ridgeline.ops.records import Norm, Weight

#: Operators that are timed, and how each call is named in the trace.
_NAMES: dict[str, Callable[..., str]] = {
    "embed": lambda ids, weight, **_: weight.name,
    "norm": lambda x, norm, **_: norm.name,
    "linear": lambda x, weight, name=None, **_: name or weight.name,
    "split_heads": lambda *_: "split_heads",
    "attend": lambda *_, name="attention", **__: name,
    "store": lambda *_, **__: "store",
    "softcap": lambda *_: "softcap",
    "attend_latent": lambda *_, **__: "attention",
    "route": lambda x, router: router.weight.name,
    "experts": lambda x, routes, experts, **_: experts.name,
    "add": lambda *_: "add",
    "take_rows": lambda *_: "take_rows",
    "activate": lambda x, activation: activation,
    "add_vector": lambda x, vector: vector.name,
    "columns": lambda *_: "columns",
    "stack_columns": lambda *_: "stack_columns",
    "unstack_rows": lambda *_: "unstack_rows",
    "join_columns": lambda *_: "join_columns",
    "permute_rows": lambda *_: "permute_rows",
    "join_rows": lambda *_, **__: "join_rows",
    "split_rows": lambda *_, **__: "split_rows",
}


def name_of(method: str, *args: Any, **options: Any) -> str:
    """How a call of an operator is named in the trace."""
    return _NAMES[method](*args, **options)


@dataclass
class OpTime:
    """An operator of the pass and the seconds of each of its calls, one a layer of its loop."""

    name: str
    seconds: list[float] = field(default_factory=list)

    @property
    def total(self) -> float:
        return sum(self.seconds)


class Fold:
    """Names the operators of a pass in the trace's order, identical layers folded into one."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.calls: list[int] = []  # of each operator, one a layer of its loop
        self._replay: int | None = None

    def layers(self, layers: Sequence[Layer]) -> Iterator[Layer]:
        """Each layer in turn; what is noted while a block of layers repeats the one before counts as that
        one's."""
        for run in runs(layers):
            start = len(self.names)
            for i in range(run.length * run.count):
                if i and i % run.length == 0:
                    self._replay = start
                yield layers[run.start + i]
            self._replay = None

    def note(self, name: str) -> int:
        """The number of the operator that is called now."""
        if self._replay is None:
            self.names.append(name)
            self.calls.append(1)
            return len(self.names) - 1
        number = self._replay
        if self.names[number] != name:
            raise RuntimeError(f"identical layers ran different operators: {self.names[number]}, then {name}")
        self.calls[number] += 1
        self._replay += 1
        return number


class Profile:
    """Times the operators of ``inner``. ``finish`` waits for the device after each, if it has to."""

    def __init__(self, inner: Any, finish: Callable[[], None] | None = None) -> None:
        self.inner = inner
        self.records: list[OpTime] = []
        self._finish = finish
        self._fold = Fold()

    def take(self) -> list[OpTime]:
        """The records since the last call, and a clean slate."""
        records, self.records, self._fold = self.records, [], Fold()
        return records

    def embed(self, ids: T, weight: Weight, **options: Any) -> T:
        return self._timed("embed", ids, weight, **options)

    def norm(self, x: T, norm: Norm, **options: Any) -> T:
        return self._timed("norm", x, norm, **options)

    def linear(self, x: T, weight: Weight, **options: Any) -> T:
        return self._timed("linear", x, weight, **options)

    def split_heads(self, qkv: T, heads: Any) -> tuple[T, T, T]:
        return self._timed("split_heads", qkv, heads)

    def attend(self, q: T, k: T, v: T, **options: Any) -> T:
        return self._timed("attend", q, k, v, **options)

    def store(self, k: T, v: T, **options: Any) -> None:
        self._timed("store", k, v, **options)

    def softcap(self, x: T, cap: float) -> T:
        return self._timed("softcap", x, cap)

    def attend_latent(self, q: T, kv: T, latent: Any, **options: Any) -> T:
        return self._timed("attend_latent", q, kv, latent, **options)

    def route(self, x: T, router: Any) -> T:
        return self._timed("route", x, router)

    def experts(self, x: T, routes: T, experts: Any, **options: Any) -> T:
        return self._timed("experts", x, routes, experts, **options)

    def add(self, a: T, b: T) -> T:
        return self._timed("add", a, b)

    def take_rows(self, x: T, rows: T | None) -> T:
        return x if rows is None else self._timed("take_rows", x, rows)

    def activate(self, x: T, activation: str) -> T:
        return self._timed("activate", x, activation)

    def add_vector(self, x: T, vector: Weight) -> T:
        return self._timed("add_vector", x, vector)

    def columns(self, x: T, parts: int) -> tuple[T, ...]:
        return self._timed("columns", x, parts)

    def stack_columns(self, x: T, parts: int) -> T:
        return self._timed("stack_columns", x, parts)

    def unstack_rows(self, x: T, parts: int) -> T:
        return self._timed("unstack_rows", x, parts)

    def join_columns(self, a: T, b: T) -> T:
        return self._timed("join_columns", a, b)

    def permute_rows(self, x: T, order: T) -> T:
        return self._timed("permute_rows", x, order)

    def join_rows(self, a: T, b: T, **spans: Any) -> T:
        return self._timed("join_rows", a, b, **spans)

    def split_rows(self, x: T, **spans: Any) -> tuple[T, T]:
        return self._timed("split_rows", x, **spans)

    def repeat(self, layers: Sequence[Layer], body: Callable[[Layer, T], T], x: T) -> T:
        for layer in self._fold.layers(layers):
            x = body(layer, x)
        return x

    def _timed(self, method: str, *args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        result = getattr(self.inner, method)(*args, **options)
        if self._finish is not None:
            self._finish()
        seconds = time.perf_counter() - begin
        name = name_of(method, *args, **options)
        number = self._fold.note(name)
        if number == len(self.records):
            self.records.append(OpTime(name))
        self.records[number].seconds.append(seconds)
        return result
