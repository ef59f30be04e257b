"""``ridgeline check``: predict first, then run, then hold the two against each other.

The prediction is made from the stored hardware file alone, before anything is run. Totals are
measured without instruments, operators with the profile reading.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ridgeline.analysis.step import predict_step
from ridgeline.errors import InputError
from ridgeline.hardware import Device, load_device
from ridgeline.hardware.kernels import Kernels
from ridgeline.ops.protocol import Span
from ridgeline.predict import Prediction

#: Calls before a phase is timed, rounds spread in time, and seconds given to one round.
WARM_UP, ROUNDS, ROUND_SECONDS = 2, 5, 0.4
#: A round is at least this many steps, however long they take.
LEAST_STEPS = 3


@dataclass(frozen=True)
class OperatorCheck:
    """One operator of a step, all its calls together, in seconds."""

    name: str
    kind: str
    calls: int
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Signed and relative: positive if the prediction is too slow."""
        return self.predicted / self.measured - 1 if self.measured else 0.0


@dataclass(frozen=True)
class PhaseCheck:
    """A step's total, predicted and measured, and its operators. ``spread`` is how much the
    slowest round took beyond the fastest, relative."""

    name: str
    rows: int
    context: int
    predicted: float
    measured: float
    spread: float
    operators: tuple[OperatorCheck, ...]

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def operator_mape(self) -> float:
        """Mean absolute percentage error of the operators, weighted by their measured time."""
        total = sum(o.measured for o in self.operators)
        return sum(abs(o.error) * o.measured for o in self.operators) / total if total else 0.0

    @property
    def worst(self) -> OperatorCheck:
        """The operator whose error costs the most seconds."""
        return max(self.operators, key=lambda o: abs(o.predicted - o.measured))


@dataclass(frozen=True)
class Check:
    """What :func:`check` found on one machine."""

    model: str
    device: str
    device_date: str
    phases: tuple[PhaseCheck, ...]

    @property
    def mape(self) -> float:
        """Mean absolute percentage error of the phases' totals."""
        return statistics.mean(abs(p.error) for p in self.phases)

    @property
    def worst(self) -> PhaseCheck:
        return max(self.phases, key=lambda p: abs(p.error))


def check(
    loaded: Any,
    *,
    on: str | Device = "this",
    prompt: int = 512,
    contexts: tuple[int, ...] = (512,),
    progress: Callable[[str, float], None] | None = None,
) -> Check:
    """Predict a prefill of ``prompt`` tokens and a decode step at each context, then run them.

    ``loaded`` is what :func:`ridgeline.load` returned. ``progress`` is called with what is being
    done and the share that is done. Raises InputError if a length is below 1 or beyond the
    model's window, or if this machine has not been measured.
    """
    device = load_device(on) if not isinstance(on, Device) else on
    if not device.kernels:
        way_out = "check runs here: use `this`, after `ridgeline measure`"
        raise InputError(f"{device.name} is a datasheet; {way_out}")
    steps = _steps(loaded.model.config, prompt, contexts)
    predictions = [predict_step(loaded.model, device, [span]) for _, span in steps]
    phases = []
    threads = Kernels.from_dict(device.kernels).threads
    for i, ((name, span), prediction) in enumerate(zip(steps, predictions, strict=True)):
        if progress is not None:
            progress(f"running {name} of {span.rows} rows at context {span.keys}", i / len(steps))
        phases.append(_run(loaded, name, span, prediction, threads))
    return Check(loaded.model.config.name, device.name, device.date, tuple(phases))


def _steps(config: Any, prompt: int, contexts: tuple[int, ...]) -> list[tuple[str, Span]]:
    for name, length in (("prompt", prompt), *(("context", c) for c in contexts)):
        if not 1 <= length <= config.window:
            raise InputError(f"{name} must be 1 to {config.window} tokens for {config.name}, not {length}")
    if not config.is_decoder:
        return [("encode", Span(prompt))]
    return [("prefill", Span(prompt)), *(("decode", Span(1, c - 1)) for c in contexts)]


def _run(loaded: Any, name: str, span: Span, prediction: Prediction, threads: int) -> PhaseCheck:
    import torch

    from ridgeline.ops.profile import Profile

    model, ops = loaded.model, loaded.ops
    ids = torch.randint(model.config.vocab, (span.rows,), generator=torch.Generator().manual_seed(0))
    cache, table = None, ()
    if model.config.is_decoder:
        spec = model.cache_spec(next(model.weights()).format)
        blocks = -(-span.keys // spec.block_size)
        cache, table = ops.alloc_cache(spec, blocks), tuple(range(blocks))
        cache.randomise()
    placed = Span(span.rows, span.past, table=table, admitted=span.keys)
    profile = Profile(ops)

    def step(reading: Any) -> None:
        logits = "last" if model.config.is_decoder else "all"
        batch = ops.batch(ids, [placed], logits=logits, cache=cache)
        model.forward(reading, batch)

    with torch.inference_mode(), _threads(threads):
        for _ in range(WARM_UP):
            step(ops)
        rounds = [_round(lambda: step(ops)) for _ in range(ROUNDS)]
        timings = []
        for _ in range(LEAST_STEPS):
            step(profile)
            timings.append([(r.name, len(r.seconds), r.total) for r in profile.take()])
    return PhaseCheck(
        name=name,
        rows=span.rows,
        context=span.keys,
        predicted=float(prediction.seconds),
        measured=min(rounds),
        spread=max(rounds) / min(rounds) - 1,
        operators=_join(prediction, timings),
    )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """PyTorch computes with as many threads as the machine was measured with."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _round(step: Callable[[], None]) -> float:
    """The median seconds of a step over a round."""
    times: list[float] = []
    while len(times) < LEAST_STEPS or sum(times) < ROUND_SECONDS:
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _join(prediction: Prediction, timings: list[list[tuple[str, int, float]]]) -> tuple[OperatorCheck, ...]:
    """Trace and profile hold the same operators in the same order; each takes its best time."""
    predicted: dict[int, OperatorCheck] = {}
    for k in prediction.kernels:
        seconds = predicted[k.op_index].predicted if k.op_index in predicted else 0.0
        seconds += float(k.seconds) * k.repeat
        predicted[k.op_index] = OperatorCheck(k.op, k.op_kind, k.repeat, seconds, 0.0)
    joined = []
    for i, op in predicted.items():
        name, calls, _ = timings[0][i]
        if (name, calls) != (op.name, op.calls):
            raise RuntimeError(f"the profile ran {name} x{calls} where the trace has {op.name} x{op.calls}")
        joined.append(replace(op, measured=min(t[i][2] for t in timings)))
    return tuple(joined)
