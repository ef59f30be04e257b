"""A model's shard: what one of several tensor-parallel ranks holds and executes of it.

No family says how its weights are cut. It follows from the pass, run on shapes alone: a product whose
result goes to attention heads or into another product, and nowhere else, can keep it divided among the
ranks, so its weight is cut by outputs; the product that takes such a result is cut by inputs, and its
partial sums are added over the ranks; the table of tokens and the matrix of the logits are cut by the
vocabulary. Everything else each rank has whole. For the plain Transformer block this is the partition of
Megatron-LM (Shoeybi et al., 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

from ridgeline.errors import InputError
from ridgeline.models.model import Model
from ridgeline.ops.batch import Span
from ridgeline.ops.count import Count
from ridgeline.ops.kernel import Value
from ridgeline.ops.layers import Layer
from ridgeline.ops.mixture import Experts
from ridgeline.ops.records import Heads, Shard, Weight

#: Operators whose parts may read values that are divided by heads.
HEADS = frozenset({"attend", "split"})


@dataclass(frozen=True)
class Cut:
    """How a weight is divided: as :class:`~ridgeline.ops.records.Shard` names it, and by which heads if
    its outputs are those of heads. A bias goes with its product's outputs. Those of ``experts`` may be
    divided by their number instead."""

    kind: str
    heads: Heads | None = None
    experts: bool = False


@dataclass(frozen=True)
class _Product:
    weight: Weight
    bias: Weight | None
    x: Value
    y: Value


class _Flow(Count):
    """A count that meets every layer and notes where values come from."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def embed(self, ids: Value, weight: Weight, **options: Any) -> Value:
        if ids.name == "ids":
            self.events.append(weight)
        return super().embed(ids, weight, **options)

    def linear(self, x: Value, weight: Weight, *, bias: Weight | None = None, **options: Any) -> Value:
        y = super().linear(x, weight, bias=bias, **options)
        self.events.append(_Product(weight, bias, x, y))
        return y

    def experts(self, x: Value, routes: Value, experts: Experts, **options: Any) -> Value:
        self.events.append(experts)
        return super().experts(x, routes, experts, **options)

    def split_heads(self, qkv: Value, heads: Heads) -> tuple[Value, Value, Value]:
        parts = super().split_heads(qkv, heads)
        self.events.append(("split", (qkv,), parts, heads))
        return parts

    def attend(self, q: Value, k: Value, v: Value, **options: Any) -> Value:
        out = super().attend(q, k, v, **options)
        self.events.append(("attend", (q, k, v), (out,), None))
        return out

    def repeat(self, layers: Sequence[Layer], body: Callable[[Layer, Value], Value], x: Value) -> Value:
        for layer in layers:
            x = body(layer, x)
        return x

    def readers(self) -> dict[int, set[str]]:
        """By the storage of a value, what reads it: an operator's kind, or ``linear`` as what is
        multiplied."""
        found: dict[int, set[str]] = {}
        for op in self._ops:
            for part in op.parts:
                for n, access in enumerate(part.reads):
                    multiplied = part.kind == "matmul" and n == 0
                    kind = op.kind if multiplied or op.kind != "linear" else f"linear/{part.kind}"
                    found.setdefault(access.value.storage, set()).add(kind)
        return found


def cuts(model: Model) -> dict[int, Cut]:
    """How each weight is cut, by its id; those that every rank has whole are left out."""
    ops = _Flow()
    cache = None
    if model.config.is_decoder and not model.config.is_encoder_decoder:
        cache = ops.alloc_cache(model.cache_spec(model.plain_format), 0)
    output = model.whole(ops, ops.batch([Span(1)], logits="all", cache=cache))
    readers = ops.readers()
    heads_of = {e[1][0].storage: e[3] for e in ops.events if isinstance(e, tuple) and e[0] == "split"}
    found: dict[int, Cut] = {}
    divided: set[int] = set()

    def note(weight: Weight, cut: Cut) -> None:
        if found.setdefault(id(weight), cut) != cut:
            raise InputError(
                f"{model.config.name}: {weight.name} is used in two ways, so it can't be divided"
            )

    def may_stay_divided(y: Value) -> bool:
        return y.id != output.id and readers.get(y.storage, set()) <= HEADS | {"linear"}

    for event in ops.events:
        if isinstance(event, Weight):
            note(event, Cut("vocab"))
        elif isinstance(event, Experts):
            note(event.gate_up, Cut("outputs", experts=True))
            note(event.down, Cut("inputs", experts=True))
        elif isinstance(event, _Product):
            if event.x.storage in divided:
                note(event.weight, Cut("inputs"))
            elif event.y.id == output.id:
                note(event.weight, Cut("vocab"))
            elif may_stay_divided(event.y):
                cut = Cut("outputs", heads_of.get(event.y.storage))
                note(event.weight, cut)
                divided.add(event.y.storage)
            else:
                continue
            if event.bias is not None and found[id(event.weight)].kind != "inputs":
                note(event.bias, found[id(event.weight)])
        else:
            _, inputs, outputs, _ = event
            ours = {value.storage in divided for value in inputs}
            if ours == {True, False}:
                raise InputError(f"{model.config.name}: its attention can't be divided among ranks")
            if ours == {True}:
                divided.update(value.storage for value in outputs)
    return found


def shard(model: Model, ranks: int, replicas: int = 0) -> Model:
    """What one of ``ranks`` tensor-parallel ranks executes: weights cut, heads divided, and key/value heads
    held by several ranks each where there are fewer of them than ranks. The ordinary count reads it, and
    the operators say what the ranks exchange.

    With ``replicas``, the ranks of so many replicas share the experts by their number; else each expert's
    matrices are cut as others are.

    Raises InputError for heads or matrices that so many ranks can't share evenly; a vocabulary is padded.
    """
    return Sharding(model).shard(ranks, replicas)


class Sharding:
    """The shards of one model, each made once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._shards: dict[tuple[int, int], Model] = {(1, 0): model}

    @cached_property
    def cuts(self) -> dict[int, Cut]:
        return cuts(self._model)

    @cached_property
    def experts(self) -> int:
        """How many experts a layer has, 0 for a model without."""
        numbers = {w.shape[0] for w in self._model.weights() if (cut := self.cuts.get(id(w))) and cut.experts}
        return max(numbers, default=0)

    def shard(self, ranks: int, replicas: int = 0) -> Model:
        """See :func:`shard`."""
        if (ranks, replicas) not in self._shards:
            self._shards[ranks, replicas] = _Rebuild(self._model, ranks, replicas, self.cuts).model()
        return self._shards[ranks, replicas]


class _Rebuild:
    def __init__(self, model: Model, ranks: int, replicas: int, found: dict[int, Cut]) -> None:
        self._model, self._ranks, self._replicas, self._cuts = model, ranks, replicas, found
        self._known: dict[int, Any] = {}
        self._divides_heads = any(cut.heads is not None for cut in found.values())

    def model(self) -> Model:
        config = self._model.config
        if self._divides_heads:
            heads = self._even(config.heads, "heads")
            config = replace(config, heads=heads, kv_heads=self._kv(config.kv_heads))
        parts = {f.name: self._node(getattr(self._model, f.name)) for f in fields(self._model)}
        return replace(self._model, **{**parts, "config": config})

    def _node(self, node: Any) -> Any:
        if isinstance(node, tuple):
            return tuple(self._node(item) for item in node)
        if not is_dataclass(node):
            return node
        known = self._known.get(id(node))
        if known is None:
            known = self._known[id(node)] = self._record(node)
        return known

    def _record(self, node: Any) -> Any:
        if isinstance(node, Weight):
            return self._weight(node)
        changed = {}
        for f in fields(node):
            value = getattr(node, f.name)
            other = self._node(value)
            if other is not value and other != value:
                changed[f.name] = other
        if isinstance(node, Heads) and self._divides_heads:
            changed |= {"query": self._even(node.query, "heads"), "kv": self._kv(node.kv)}
        return replace(node, **changed) if changed else node

    def _weight(self, weight: Weight) -> Weight:
        cut = self._cuts.get(id(weight))
        if cut is None:
            return weight
        if cut.experts:
            return self._of_experts(weight, cut)
        if self._ranks == 1:
            return weight
        first, *rest = weight.shape
        if cut.kind == "inputs":
            shape = (first, self._even(rest[0], f"inputs of {weight.name}"))
        elif cut.kind == "vocab":
            shape = (-(-first // self._ranks), *rest)
        elif cut.heads is not None:
            heads = cut.heads
            ours = self._even(heads.query, "heads") + 2 * self._kv(heads.kv)
            shape = (ours * heads.dim, *rest)
        else:
            shape = (self._even(first, f"outputs of {weight.name}"), *rest)
        return Weight(weight.name, shape, weight.format, shard=Shard(cut.kind, self._ranks))

    def _of_experts(self, weight: Weight, cut: Cut) -> Weight:
        """[experts, out, in]: some experts, or some outputs or inputs of all."""
        number, out, inputs = weight.shape
        if self._replicas:
            ranks = self._ranks * self._replicas
            if number % ranks:
                raise InputError(
                    f"{self._model.config.name}: {ranks} ranks can't share {number} experts evenly"
                )
            shape, made = (number // ranks, out, inputs), Shard("experts", ranks, self._replicas)
        elif self._ranks == 1:
            return weight
        elif cut.kind == "outputs":
            shape = (number, self._even(out, f"outputs of {weight.name}"), inputs)
            made = Shard(cut.kind, self._ranks)
        else:
            shape = (number, out, self._even(inputs, f"inputs of {weight.name}"))
            made = Shard(cut.kind, self._ranks)
        return Weight(weight.name, shape, weight.format, shard=made)

    def _kv(self, heads: int) -> int:
        if 0 < heads < self._ranks and self._ranks % heads == 0:
            return 1
        return self._even(heads, "key/value heads")

    def _even(self, count: int, what: str) -> int:
        if count % self._ranks:
            raise InputError(
                f"{self._model.config.name}: {self._ranks} ranks can't share {count} {what} evenly"
            )
        return count // self._ranks
