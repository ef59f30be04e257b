"""How the devices of a cluster share a model, and which of them lie in one node."""

from __future__ import annotations

from dataclasses import dataclass

from ridgeline.errors import InputError
from ridgeline.ops.count_context import ContextKind

#: From the ranks that lie closest together, which exchange most, to those furthest apart.
AXES = ("tensor", "context", "pipeline", "data")


@dataclass(frozen=True)
class Layout:
    """Ranks along each axis; their product is the number of devices.

    ``tensor`` ranks share every layer, ``context`` ranks every sequence (as ``context_kind`` says),
    ``pipeline`` stages have some layers each, ``data`` replicas serve requests of their own. ``expert`` ranks
    share the experts by their number: those of one replica or of several; 1 cuts experts as other weights.

    Raises InputError for a number below 1, an unknown kind, and expert ranks that are not those of whole
    replicas.
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    context: int = 1
    context_kind: ContextKind = ContextKind.RING
    expert: int = 1

    def __post_init__(self) -> None:
        for axis in (*AXES, "expert"):
            value = getattr(self, axis)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"{axis} must be a whole number from 1 on, not {value!r}")
        if self.context_kind not in tuple(ContextKind):
            raise InputError(f"context_kind must be {' or '.join(ContextKind)}, not '{self.context_kind}'")
        object.__setattr__(self, "context_kind", ContextKind(self.context_kind))
        if self.expert > 1 and (self.expert % self.tensor or self.data % self.expert_replicas):
            raise InputError(
                f"{self.expert} ranks can't share experts: take those of whole replicas, tensor "
                f"{self.tensor} times a divisor of data {self.data}"
            )

    @property
    def expert_replicas(self) -> int:
        """Replicas that share their experts by number; 0 where experts are cut as other weights."""
        return 0 if self.expert == 1 else self.expert // self.tensor

    @property
    def devices(self) -> int:
        return self.replica * self.data

    @property
    def replica(self) -> int:
        """Devices that hold the model once."""
        return self.tensor * self.context * self.pipeline

    def __str__(self) -> str:
        """As the field abbreviates: tp8 pp4 dp2."""
        parts = [f"{axis[0]}p{getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        if self.context > 1:
            parts.append(f"({self.context_kind})")
        if self.expert > 1:
            parts.append(f"ep{self.expert}")
        return " ".join(parts) or "one device"

    def group(self, axis: str, per_node: int) -> Group:
        """Where the ranks along an axis lie, if devices are numbered with the innermost axis first."""
        inner = 1
        for other in AXES[: AXES.index("data" if axis == "expert" else axis)]:
            inner *= getattr(self, other)
        ranks = self.expert_replicas if axis == "expert" else getattr(self, axis)
        inside = max(min(ranks, per_node // inner), 1)
        return Group(ranks, inside, min(inner, per_node))


@dataclass(frozen=True)
class Group:
    """``ranks`` that communicate, ``per_node`` of them on each node, beside ``concurrent`` groups there
    that do the same at the same time."""

    ranks: int
    per_node: int
    concurrent: int
