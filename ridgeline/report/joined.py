"""An explanation's phases with what a check measured of them, operator by operator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ridgeline.errors import InputError

if TYPE_CHECKING:
    from ridgeline.analysis.check import Check, PhaseCheck
    from ridgeline.analysis.explanation import Explanation, Phase
    from ridgeline.predict import KernelTime


@dataclass(frozen=True)
class Operator:
    """One operator of a step, all its calls and kernels together: FLOPs, bytes and seconds."""

    name: str
    op_class: str
    calls: int
    bound: str
    flops: float
    bytes: float
    predicted: float
    measured: float | None

    @property
    def computes(self) -> bool:
        """Whether it has a place on the roofline: a lookup or a view has no arithmetic."""
        return self.flops > 0 and self.bytes > 0

    @property
    def intensity(self) -> float:
        """Operational intensity, FLOP/byte."""
        return self.flops / self.bytes if self.bytes else 0.0


@dataclass(frozen=True)
class JoinedPhase:
    """A phase and, where one was run at its length, the check of it."""

    phase: Phase
    check: PhaseCheck | None
    operators: tuple[Operator, ...]


def join(explanation: Explanation, check: Check | None) -> tuple[JoinedPhase, ...]:
    """Every phase of the explanation with the check of the same step.

    Raises InputError if the check is of another model or device.
    """
    if check is not None:
        checked, explained = (check.model, check.device), (explanation.model, explanation.device)
        if checked != explained:
            raise InputError(
                f"the check is of {checked[0]} on {checked[1]}, the explanation of {explained[0]} on "
                f"{explained[1]}: pass two of the same model and device"
            )
    return tuple(_join_phase(phase, check) for phase in explanation.phases)


def _join_phase(phase: Phase, check: Check | None) -> JoinedPhase:
    found = None if check is None else _same_step(phase, check.phases)
    kernels: dict[int, list[KernelTime]] = {}
    for kernel in phase.kernels:
        kernels.setdefault(kernel.op_index, []).append(kernel)
    if found is None:
        return JoinedPhase(phase, None, tuple(_operator(group, None) for group in kernels.values()))
    names = [group[0].op for group in kernels.values()]
    if names != [o.name for o in found.operators]:
        raise InputError(f"the check ran other operators than the explanation of {phase.name} has")
    operators = (_operator(g, o.measured) for g, o in zip(kernels.values(), found.operators, strict=True))
    return JoinedPhase(phase, found, tuple(operators))


def _same_step(phase: Phase, checks: Iterable[PhaseCheck]) -> PhaseCheck | None:
    """The check of a step with as many rows at the same context."""
    step = (phase.name, phase.tokens, phase.context)
    return next((c for c in checks if (c.name, c.rows, c.context) == step), None)


def _operator(kernels: list[KernelTime], measured: float | None) -> Operator:
    longest = max(kernels, key=lambda k: k.seconds)
    return Operator(
        name=longest.op,
        op_class=longest.op_class,
        calls=longest.repeat,
        bound=longest.bound,
        flops=float(sum(k.flops.total * k.repeat for k in kernels)),
        bytes=float(sum(k.bytes * k.repeat for k in kernels)),
        predicted=float(sum(k.seconds * k.repeat for k in kernels)),
        measured=measured,
    )
