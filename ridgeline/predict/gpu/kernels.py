"""The time of a trace's kernel on a GPU: which time model it belongs to, and with which sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ridgeline.hardware.device import Device, Provenance
from ridgeline.ops.formats import get_format
from ridgeline.ops.kernel import Kernel, Role
from ridgeline.ops.numbers import Number, is_array
from ridgeline.predict.gpu.elementwise import ElementwiseConstants, elementwise_time
from ridgeline.predict.gpu.gemm import GemmConstants, gemm_time, product_time
from ridgeline.predict.gpu.generic import constants_of, generic_constants
from ridgeline.predict.gpu.kinds import MODULES, kind
from ridgeline.predict.tiers import Tier

#: The element-wise kernel that a part's code is like; others stream like an addition.
PATTERN_OF: Mapping[str, str] = {
    "norm": "rms_norm",
    "activation": "silu_mul",
    "rotate": "rope",
    "embed": "embedding",
}
#: The kind that has a model of its own for a kernel of a trace; its ``kernel`` takes such a kernel.
KIND_OF: Mapping[str, str] = {"attend": "attention"}


@dataclass(frozen=True)
class Needed:
    """Seconds of a kernel, and what each resource needs of them by itself."""

    seconds: Number
    needs: Mapping[str, Number]


class GpuTimes:
    """The time models of a device at a tier: with the constants that it was calibrated with, where the tier
    allows it and there are some, else with generic ones. ``basis`` says of each kind that was used where
    its constants come from."""

    def __init__(self, device: Device, tier: Tier) -> None:
        self.device = device
        self.basis: dict[str, Provenance] = {}
        self._own = device.calibration if tier is Tier.CALIBRATED else {}
        self._constants: dict[str, Any] = {}

    def time(self, kernel: Kernel) -> Needed:
        """Raises InputError if the device cannot compute in the kernel's dtype, or if its calibration does
        not have the constants of its model."""
        name = KIND_OF.get(kernel.kind)
        if name in MODULES and kind(name).kernel is not None:
            found = kind(name).kernel(self.device, self._of(name), kernel)
            if found is not None:
                return found
        return self._product(kernel) if np.any(kernel.flops.matrix) else self._elementwise(kernel)

    def _of(self, name: str) -> Any:
        if name not in self._constants:
            own = name in self._own
            self._constants[name] = (constants_of if own else generic_constants)(self.device, name)
            self.basis[name] = self.device.provenance["calibration"] if own else Provenance.ASSUMED
        return self._constants[name]

    def _product(self, kernel: Kernel) -> Needed:
        """A product by a weight by its shape, those of experts as one batch; others, such as naive
        attention's, by their work alone."""
        constants: GemmConstants = self._of("gemm")
        matrices = [a for a in kernel.reads if a.value.role is Role.WEIGHT and len(a.value.shape) > 1]
        shared = {"dtype": kernel.compute, "nbytes": kernel.bytes}
        shared["element_bytes"] = get_format(kernel.compute).bits / 8
        if len(matrices) == 1:
            (outer, inner), groups = matrices[0].value.shape[-2:], kernel.groups
            # The gradient of a product's input sums over the weight's rows.
            into, out = kernel.reads[0].value.shape[-1], kernel.writes[0].value.shape[-1]
            inputs = outer if (into, out) == (outer, inner) else inner
            outputs = kernel.flops.matrix / (2 * groups * kernel.rows * inputs)
            found = gemm_time(self.device, constants, kernel.rows, outputs, inputs, batch=groups, **shared)
        else:
            found = product_time(self.device, constants, kernel.flops.matrix, **shared)
        others = self._other_work(kernel)
        seconds = found.seconds
        for need in others.values():
            seconds = np.maximum(seconds, found.launch + need)
        needs = {"memory": found.memory, "matrix": found.matrix, **others, "launch": found.launch}
        return needed(seconds, needs)

    def _elementwise(self, kernel: Kernel) -> Needed:
        constants: ElementwiseConstants = self._of("elementwise")
        others = self._other_work(kernel)
        rows, width = _sizes(kernel)
        found = elementwise_time(
            self.device,
            constants,
            rows,
            width,
            constants.patterns[PATTERN_OF.get(kernel.kind, "add")],
            nbytes=kernel.bytes,
            at_least=np.maximum(others["vector"], others["exp"]),
        )
        needs = {
            "memory": found.memory,
            "vector": np.maximum(found.vector, others["vector"]),
            "exp": others["exp"],
            "launch": found.launch,
        }
        return needed(found.seconds, needs)

    def _other_work(self, kernel: Kernel) -> dict[str, Number]:
        return {
            "vector": kernel.flops.vector / self.device.vector_rate(kernel.compute),
            "exp": kernel.flops.exp / self.device.exp_rate,
        }


def _sizes(kernel: Kernel) -> tuple[Number, Number]:
    """Rows and width of what a kernel writes. Each head is a row of its own to a norm; a rotation has all
    heads of a token in one."""
    most = max(kernel.writes, key=lambda access: _largest(access.elements), default=None)
    if most is None:
        return kernel.rows, 1
    shape = most.value.shape
    if kernel.kind == "norm" and len(shape) > 2:
        return most.elements / shape[-1], shape[-1]
    return kernel.rows, np.maximum(most.elements / np.maximum(kernel.rows, 1), 1)


def _largest(n: Number) -> float:
    return float(np.max(n))


def needed(seconds: Number, needs: Mapping[str, Number]) -> Needed:
    """The record of these times, as Python's own numbers where they are no arrays."""
    return Needed(_plain(seconds), {name: _plain(need) for name, need in needs.items()})


def _plain(x: Number) -> Number:
    """A number of a single trace as Python's own."""
    return x if is_array(x) else float(x)
