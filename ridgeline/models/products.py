"""Which weights a model multiplies with: those that are packed, and that a quantised format applies to.

No family lists them. They are what its pass hands to ``linear``, found by running the pass on shapes alone:
the matrices of the layers and the output head, an embedding only if it is the head too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ridgeline.models.model import Model
from ridgeline.ops.count import Count
from ridgeline.ops.formats import packed_shape
from ridgeline.ops.latent import Latent
from ridgeline.ops.layers import Layer
from ridgeline.ops.mixture import Experts, Router
from ridgeline.ops.records import Weight


class _Products(Count):
    """A count that meets every layer and keeps the weights of its products."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, tuple[Weight, bool]] = {}
        self.routers: list[Weight] = []

    def linear(self, x: Any, weight: Weight, *, activation: str | None = None, **options: Any) -> Any:
        gated = activation is not None and activation.endswith("_gated")
        _, known = self.found.setdefault(id(weight), (weight, gated))
        if known != gated:
            raise ValueError(f"{weight.name} is multiplied with a gate and without, so it can't be packed")
        return super().linear(x, weight, activation=activation, **options)

    def attend_latent(self, q: Any, kv: Any, latent: Latent, **options: Any) -> Any:
        self.found[id(latent.up)] = (latent.up, False)
        return super().attend_latent(q, kv, latent, **options)

    def route(self, x: Any, router: Router) -> Any:
        self.routers.append(router.weight)
        return super().route(x, router)

    def experts(self, x: Any, routes: Any, experts: Experts, **options: Any) -> Any:
        self.found[id(experts.gate_up)] = (experts.gate_up, True)
        self.found[id(experts.down)] = (experts.down, False)
        return super().experts(x, routes, experts, **options)

    def repeat(self, layers: Sequence[Layer], body: Callable[[Layer, Any], Any], x: Any) -> Any:
        for layer in layers:
            x = body(layer, x)
        return x


def products(model: Model) -> list[tuple[Weight, bool]]:
    """The weights of the linear layers and experts, each once, and whether its first half of outputs gates
    the second."""
    return list(_pass(model).found.values())


def routers(model: Model) -> list[Weight]:
    """The weights that choose experts. They are multiplied too, but never quantised: a choice that tips over
    is no small error."""
    return _pass(model).routers


def _pass(model: Model) -> _Products:
    ops = _Products()
    model.whole(ops, model.smallest_batch(ops))
    return ops


def pad_products(model: Model) -> None:
    """Give the weights of the linear layers the shape that they have in memory when they are packed."""
    found = _pass(model)
    for weight, gated in (*found.found.values(), *((weight, False) for weight in found.routers)):
        weight.stored = packed_shape(weight.shape, weight.format, gated)
