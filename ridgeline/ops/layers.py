"""The records of layers: what tells alike ones, and the weights in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, TypeVar

from ridgeline.ops.records import Weight

Layer = TypeVar("Layer", bound="Layered")

#: Marks a dataclass field in which otherwise identical layers may differ (``ops.repeat``).
PER_LAYER = {"per_layer": True}


@dataclass(frozen=True)
class Layered:
    """Base of a layer's record: its number, in which identical layers differ."""

    index: int = field(metadata=PER_LAYER)

    @cached_property
    def signature(self) -> Any:
        """All that decides what the layer costs: equal for layers that differ only in their data
        and in per-layer fields."""
        return _signature(self)

    @cached_property
    def weight_ids(self) -> frozenset[int]:
        """The ids of the layer's weights, by which layers that share one are told."""
        return frozenset(id(weight) for weight in weights_of(self))


def _signature(record: Any) -> Any:
    if isinstance(record, Weight):
        return (record.name, record.shape, record.format, record.stored, record.shard)
    if isinstance(record, tuple):
        return tuple(map(_signature, record))
    fields = getattr(type(record), "__dataclass_fields__", None)
    if fields is None:
        return record
    return tuple(
        _signature(getattr(record, name)) for name, f in fields.items() if not f.metadata.get("per_layer")
    )


def weights_of(node: Any) -> Iterator[Weight]:
    """The weights in a tree of records and tuples, in order; a shared one as often as it is met."""
    if isinstance(node, Weight):
        yield node
    elif isinstance(node, tuple):
        for item in node:
            yield from weights_of(item)
    elif is_dataclass(node):
        for f in fields(node):
            yield from weights_of(getattr(node, f.name))
