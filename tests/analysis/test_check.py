"""check: what it runs, what it holds beside it, and refusals, on small models and a made-up machine."""

from dataclasses import replace

import pytest

from ridgeline import kernels
from ridgeline.analysis import check as module
from ridgeline.analysis.check import check
from ridgeline.analysis.step import trace_step
from ridgeline.errors import InputError
from ridgeline.hardware import Provenance, load_device
from ridgeline.hardware.kernels import Affine, AttendCurve, EngineTimes, Kernels, LinearTable
from ridgeline.loading import Loaded
from ridgeline.ops.batch import Span
from ridgeline.ops.cpu import Cpu
from ridgeline.weights.generation import GenerationDefaults
from ridgeline.weights.pack import random_packed
from tests.ops.small_models import small

DECODERS = ("llama-3-8b", "qwen2.5-0.5b", "qwen3-0.6b", "mistral-7b", "gpt2", "opt-125m")
ENCODERS = ("BertForMaskedLM", "BertModel")
SIMPLE = (
    *("norm", "activation", "residual", "rotate", "append", "add", "embed", "gather", "split"),
    *("norm.rms", "norm.layer"),
)
KERNELS = Kernels(
    reading="cpu",
    isa="avx2",
    threads=1,
    step=1e-4,
    linear={"fp32": LinearTable((1, 64), (1e4, 1e6), ((1e-6, 1e-5),) * 2, ((2e-6, 2e-5),) * 2)},
    attend={"fp32": AttendCurve(1e-5, 1e-5, 1e10, 1e10, 1e11, (16, 64), (1e9, 2e9))},
    simple={"fp32": {kind: Affine(1e-6, 1e10) for kind in SIMPLE}},
    engine=EngineTimes(1e-4, 1e-5, 1e-9),
)
CPU = load_device("generic-cpu")
BASIS = {**CPU.provenance, "kernels": Provenance.MEASURED}
MACHINE = replace(CPU, name="this-machine", kernels=KERNELS.to_dict(), provenance=BASIS)


@pytest.fixture(autouse=True)
def _in_no_time(monkeypatch):
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.0)
    monkeypatch.setattr(module, "ROUNDS", 2)
    monkeypatch.setattr(module, "LEAST_STEPS", 1)
    monkeypatch.setattr(module, "WARM_UP", 1)


@pytest.fixture
def two_threads():
    before = kernels.threads()
    kernels.set_threads(2)
    yield 2
    kernels.set_threads(before)


def loaded(family, ops=None, **changes):
    config = replace(small(family).config, format="fp32", **changes)
    return Loaded(config, random_packed(config, "fp32"), ops or Cpu(), None, None, GenerationDefaults(), None)


def encoder(architecture):
    return loaded("bert-base", architecture=architecture)


class Watched(Cpu):
    """Runs, and notes with how many threads; fails if it is told to."""

    def __init__(self, fails=False):
        super().__init__()
        self.threads, self.fails = set(), fails

    def run(self, *args, **options):
        self.threads.add(kernels.threads())
        if self.fails:
            raise MemoryError
        return super().run(*args, **options)


def assert_phase_is_of(phase, model, span, logits):
    """The phase's operators are those of the trace, in its order, and every one took its time."""
    trace = trace_step(model, [span], logits=logits)
    assert [(o.name, o.calls) for o in phase.operators] == [(op.name, op.repeat) for op in trace.ops]
    views = {op.name for op in trace.ops if not op.parts}
    for o in phase.operators:
        assert (o.measured > 0, o.predicted > 0) == (o.name not in views,) * 2, o
    assert phase.predicted == pytest.approx(KERNELS.step + sum(o.predicted for o in phase.operators))
    assert (phase.rows, phase.context) == (span.rows, span.keys)
    assert phase.measured > 0


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_prefills_and_takes_a_step_at_each_context(family):
    decoder = loaded(family)
    found = check(decoder, on=MACHINE, prompt=20, contexts=(1, 37))
    assert [phase.name for phase in found.phases] == ["prefill", "decode", "decode"]
    for phase, span in zip(found.phases, (Span(20), Span(1, 0), Span(1, 36)), strict=True):
        assert_phase_is_of(phase, decoder.model, span, "last")


@pytest.mark.parametrize("architecture", ENCODERS)
def test_an_encoder_encodes_every_row(architecture):
    bert = encoder(architecture)
    (phase,) = check(bert, on=MACHINE, prompt=20).phases
    assert phase.name == "encode"
    assert_phase_is_of(phase, bert.model, Span(20), "all")


def test_layers_that_are_alike_are_one_operator_with_a_call_each():
    prefill = check(loaded("llama-3-8b", layers=3), on=MACHINE, prompt=8, contexts=()).phases[0]
    assert {o.calls for o in prefill.operators if o.kind == "attend"} == {3}


def test_without_contexts_it_decodes_at_the_prompt():
    decode = check(loaded("gpt2"), on=MACHINE, prompt=20).phases[1]
    assert (decode.name, decode.rows, decode.context) == ("decode", 1, 20)


def test_it_reaches_the_end_of_the_window():
    gpt2 = loaded("gpt2", window=64)
    found = check(gpt2, on=MACHINE, prompt=64, contexts=(64,))
    assert [phase.context for phase in found.phases] == [64, 64]


def test_the_measured_time_is_the_best_of_the_rounds_and_the_spread_that_of_the_worst(monkeypatch):
    medians = iter([4.0, 2.0, 3.0])
    monkeypatch.setattr(module, "ROUNDS", 3)
    monkeypatch.setattr(module, "_round", lambda run: next(medians))
    (phase,) = check(encoder("BertModel"), on=MACHINE, prompt=4).phases
    assert (phase.measured, phase.spread) == (2.0, 1.0)
    assert phase.error == phase.predicted / 2.0 - 1


def test_it_runs_with_the_threads_that_were_measured_with_and_puts_the_old_number_back(two_threads):
    ops = Watched()
    check(loaded("gpt2", ops), on=MACHINE, prompt=4)
    assert ops.threads == {KERNELS.threads}
    assert kernels.threads() == two_threads


def test_the_old_number_of_threads_is_back_after_a_failure(two_threads):
    with pytest.raises(MemoryError):
        check(loaded("gpt2", Watched(fails=True)), on=MACHINE, prompt=4)
    assert kernels.threads() == two_threads


def test_progress_tells_each_phase_before_it_runs():
    told = []
    progress = lambda doing, share: told.append((doing, share))  # noqa: E731
    check(loaded("gpt2"), on=MACHINE, prompt=4, contexts=(9,), progress=progress)
    assert told == [
        ("running prefill of 4 rows at context 4", 0.0),
        ("running decode of 1 rows at context 9", 0.5),
    ]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"prompt": 0}, "prompt must be 1 to 64 tokens for GPT-2, not 0"),
        ({"prompt": 65}, "prompt must be 1 to 64 .* not 65"),
        ({"prompt": 4, "contexts": (8, 0)}, "context must be 1 to 64 .* not 0"),
        ({"prompt": 4, "contexts": (8, 65)}, "context must be 1 to 64 .* not 65"),
    ],
)
def test_lengths_outside_the_window_are_refused_before_anything_runs(lengths, message):
    ops = Watched()
    with pytest.raises(InputError, match=message):
        check(loaded("gpt2", ops, window=64, name="GPT-2"), on=MACHINE, **lengths)
    assert ops.threads == set()


@pytest.mark.parametrize("architecture", ENCODERS)
def test_an_encoder_refuses_contexts_by_name(architecture):
    with pytest.raises(InputError, match="context 8, 16 is for decoders: bert-base only encodes"):
        check(encoder(architecture), on=MACHINE, prompt=4, contexts=(8, 16))


def test_a_datasheet_cannot_be_checked():
    with pytest.raises(InputError, match=r"a100-80gb is a datasheet; .*ridgeline measure"):
        check(loaded("gpt2"), on="a100")


def test_a_machine_that_was_not_measured_cannot_be_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="ridgeline measure"):
        check(loaded("gpt2"))
