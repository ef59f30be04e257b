"""``ridgeline check``: predict first, then run, then hold the two against each other.

The prediction is made before anything of the model is run, from the stored hardware file and the rate that
memory is read at in that moment. Totals are measured without instruments, operators with the profile reading.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from ridgeline.analysis.breakdown import Breakdown, breakdown
from ridgeline.analysis.here import measured_device
from ridgeline.analysis.memory_now import MemoryNow, MemoryReading
from ridgeline.analysis.step import predict_step
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.models.model import refuse_diffusion
from ridgeline.ops.batch import Span
from ridgeline.predict import Prediction

if TYPE_CHECKING:
    from ridgeline.loading import Loaded
    from ridgeline.models import ModelConfig
    from ridgeline.ops.profile import OpTime

#: Calls before a phase is timed, rounds spread in time, and seconds given to one round.
WARM_UP, ROUNDS, ROUND_SECONDS = 2, 5, 0.4
#: A round is at least this many steps, however long they take.
LEAST_STEPS = 3


#: What operators' times are on a GPU.
GPU_NOTE = (
    "Operators are timed on the device, one behind another; a total also has what the host takes, or a graph "
    "to replay."
)


@dataclass(frozen=True)
class OperatorCheck:
    """One operator of a step: ``calls`` and their seconds together, measured in the best of several
    profiled steps."""

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
    """A step's total, predicted and measured, and its operators.

    ``predicted`` and ``measured`` are seconds. Steps are timed in rounds: ``measured`` is the best
    of the rounds' medians, since what else runs on a machine only ever adds time, and ``spread`` is
    how much longer the worst median is, relative to the best. ``memory`` is the rate of memory that the
    prediction goes by, None if it goes by the file as it is.
    """

    name: str
    rows: int
    context: int
    predicted: float
    measured: float
    spread: float
    operators: tuple[OperatorCheck, ...]
    memory: MemoryReading | None = None

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def median_operator(self) -> float:
        """Median over the operators, each counted once, of their relative errors' sizes; views, which take
        no time, are none."""
        errors = [abs(o.error) for o in self.operators if o.measured or o.predicted]
        return statistics.median(errors) if errors else 0.0

    @property
    def operator_mape(self) -> float:
        """Mean absolute percentage error of the operators, weighted by their measured time."""
        total = sum(o.measured for o in self.operators)
        return sum(abs(o.error) * o.measured for o in self.operators) / total if total else 0.0

    @property
    def breakdown(self) -> dict[str, Breakdown]:
        """The predicted and the measured operators by class of layer. An operator that is one kernel
        counts whole, with its activation or its residual."""
        return {
            name: breakdown((o.name, o.kind, o.kind, getattr(o, name)) for o in self.operators)
            for name in ("predicted", "measured")
        }

    @property
    def worst(self) -> OperatorCheck:
        """The operator whose error costs the most seconds."""
        return max(self.operators, key=lambda o: abs(o.predicted - o.measured))


@dataclass(frozen=True)
class Check:
    """What :func:`check` found on one machine. ``note`` says what operators' times leave out, if anything."""

    model: str
    device: str
    device_date: str
    phases: tuple[PhaseCheck, ...]
    note: str = ""

    @property
    def mape(self) -> float:
        """Mean absolute percentage error of the phases' totals."""
        return statistics.mean(abs(p.error) for p in self.phases)

    @property
    def worst(self) -> PhaseCheck:
        return max(self.phases, key=lambda p: abs(p.error))


def check(
    loaded: Loaded,
    *,
    on: str | Device = "this",
    prompt: int = 512,
    contexts: tuple[int, ...] | None = None,
    as_measured: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Check:
    """Predict a prefill of ``prompt`` tokens and a decode step at each of ``contexts``, then run them.

    ``loaded`` is what :func:`ridgeline.load` returned. A context counts the keys that a decode step
    attends to, its own token's included; by default there is one step, at ``prompt``. An encoder
    only encodes, with logits of all rows, and takes no contexts. ``progress`` is called with what is
    being done and the share that is done.

    Each phase is predicted before it runs, at the rate that memory is read at then (see
    :mod:`ridgeline.hardware.drift`), unless ``as_measured`` says to take the file as it is. If memory has
    moved so far by its end that the prediction would be another, the phase is predicted and run anew, a few
    times at most.

    The measured time of a phase is the best of ``ROUNDS`` rounds' medians, with as many threads as
    the machine was measured with. A model on a GPU is held against the GPU's own file: a decode step replays
    a CUDA graph, and operators are timed on the device, without what the host takes to issue them.

    Raises InputError if a length is below 1 or beyond the model's window, if contexts are given for
    an encoder, if ``on`` is a datasheet, or if this machine has not been measured, or not with weights in
    the format that they are loaded in.
    """
    refuse_diffusion(loaded.model.config)
    device = measured_device(on, loaded)
    steps = _steps(loaded.model.config, prompt, contexts)
    memory = MemoryNow(device, as_measured=as_measured)
    phases = []
    for i, step in enumerate(steps):
        if progress is not None:
            rows, context = step.span.rows, step.span.keys
            progress(f"running {step.name} of {rows} rows at context {context}", i / len(steps))

        def predict(device: Device, step: _Step = step) -> Prediction:
            return predict_step(loaded.model, device, [step.span], logits=step.logits)

        phases.append(memory.timed(predict, partial(_run, loaded, step)))
    return Check(loaded.model.config.name, device.name, device.date, tuple(phases), note_on(loaded))


def note_on(loaded: Loaded) -> str:
    """What is to be known of operators' times."""
    return GPU_NOTE if loaded.on_gpu else ""


class _Step(NamedTuple):
    """What is predicted and run: a phase, its rows, and the rows that have logits."""

    name: str
    span: Span
    logits: Literal["last", "all"]


def _steps(config: ModelConfig, prompt: int, contexts: tuple[int, ...] | None) -> list[_Step]:
    if contexts and not config.is_decoder:
        given = ", ".join(map(str, contexts))
        raise InputError(f"context {given} is for decoders: {config.name} only encodes, leave it out")
    contexts = (prompt,) if contexts is None else contexts
    for name, length in (("prompt", prompt), *(("context", c) for c in contexts)):
        if not 1 <= length <= config.window:
            raise InputError(f"{name} must be 1 to {config.window} tokens for {config.name}, not {length}")
    if not config.is_decoder:
        return [_Step("encode", Span(prompt), "all")]
    decodes = [_Step("decode", Span(1, context - 1), "last") for context in contexts]
    return [_Step("prefill", Span(prompt), "last"), *decodes]


def _run(loaded: Loaded, step: _Step, prediction: Prediction) -> PhaseCheck:
    import torch

    model, ops, span = loaded.model, loaded.ops, step.span
    ids = torch.randint(model.config.vocab, (span.rows,), generator=torch.Generator().manual_seed(0)).tolist()
    cache, table = None, ()
    if model.config.is_decoder:
        spec = model.cache_spec(model.plain_format)
        blocks = -(-span.keys // spec.block_size)
        cache, table = ops.alloc_cache(spec, blocks), tuple(range(blocks))
        cache.randomise()
    placed = [Span(span.rows, span.past, table=table, admitted=span.keys)]

    def run() -> None:
        ops.run(model, ids, placed, logits=step.logits, cache=cache)
        ops.synchronise()

    def profile() -> list[OpTime]:
        return ops.profile(model, ids, placed, logits=step.logits, cache=cache)

    return time_step(step.name, span.rows, span.keys, prediction, run, profile)


def time_step(
    name: str,
    rows: int,
    context: int,
    prediction: Prediction,
    run: Callable[[], object],
    profile: Callable[[], list[OpTime]],
) -> PhaseCheck:
    """Time what ``run`` does as a whole and ``profile`` operator by operator, and hold the prediction
    against both."""
    import torch

    with torch.inference_mode():
        for _ in range(WARM_UP):
            run()
        rounds = [_round(run) for _ in range(ROUNDS)]
        timings = []
        for _ in range(LEAST_STEPS):
            timings.append([(r.name, len(r.seconds), r.total) for r in profile()])
    return PhaseCheck(
        name=name,
        rows=rows,
        context=context,
        predicted=float(prediction.seconds),
        measured=min(rounds),
        spread=max(rounds) / min(rounds) - 1,
        operators=_join(prediction, timings),
    )


def _round(run: Callable[[], object]) -> float:
    """The median seconds of a step over a round."""
    times: list[float] = []
    while len(times) < LEAST_STEPS or sum(times) < ROUND_SECONDS:
        begin = time.perf_counter()
        run()
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
