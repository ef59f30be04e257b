"""bench: what it runs, what it makes of the seconds, what it predicts, and what it refuses."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ridgeline import kernels
from ridgeline.analysis import bench as module
from ridgeline.analysis.bench import BenchResult, BenchTest, bench, bench_tests, steps
from ridgeline.errors import InputError
from ridgeline.hardware import load_device
from ridgeline.hardware.kernels import Kernels
from ridgeline.loading import Loaded
from ridgeline.ops.batch import BLOCK_TOKENS
from ridgeline.ops.torch_cpu import TorchCpu
from ridgeline.weights.generation import GenerationDefaults
from ridgeline.weights.load import random_model
from tests.ops.small_models import small

PROMPTS = st.builds(BenchTest, st.just("prompt"), st.integers(1, 300), st.integers(0, 100), st.integers(1, 5))


@dataclass(frozen=True)
class Step:
    """A step that was run: rows and past of every sequence, their cache blocks, the rows that had logits, and
    the threads of PyTorch and of the native kernels."""

    spans: list
    tables: list
    logits: str
    threads: tuple


class Watched(TorchCpu):
    """Runs, and notes every step."""

    def __init__(self):
        super().__init__(torch.float32)
        self.steps = []

    def batch(self, ids, spans, *, logits, **options):
        threads = torch.get_num_threads(), kernels.threads()
        self.steps.append(Step([(s.rows, s.past) for s in spans], [s.table for s in spans], logits, threads))
        return super().batch(ids, spans, logits=logits, **options)

    @property
    def spans(self):
        return [step.spans for step in self.steps]


def loaded(family="llama-3-8b", **changes):
    config = replace(small(family).config, format="fp32", **changes)
    return Loaded(config, random_model(config), Watched(), None, None, GenerationDefaults(), None)


def test_a_prompt_is_one_step_and_a_generated_token_one_each():
    llama = loaded()
    bench(llama, prompts=[7], generates=[3], depths=[0, 20], repeat=1, threads=1)
    warm, *prompt = llama.ops.spans[:2]
    assert warm == prompt[0] == [(7, 0)]
    assert llama.ops.spans[2:4] == [[(7, 20)]] * 2
    assert llama.ops.spans[4:8] == [[(1, 0)], [(1, 0)], [(1, 1)], [(1, 2)]]
    assert llama.ops.spans[8:] == [[(1, 20)], [(1, 20)], [(1, 21)], [(1, 22)]]


def test_every_test_is_repeated_after_a_step_that_warms_up():
    llama = loaded()
    found = bench(llama, prompts=[4], generates=[2], batches=[3], repeat=2, threads=1)
    assert [len(result.seconds) for result in found.results] == [2, 2]
    assert len(llama.ops.steps) == (1 + 2 * 1) + (1 + 2 * 2)


def test_the_sequences_of_a_batch_have_their_own_cache():
    llama = loaded()
    bench(llama, prompts=[], generates=[2], depths=[30], batches=[3], repeat=1, threads=1)
    tables = llama.ops.steps[0].tables
    blocks = [block for table in tables for block in table]
    assert len(tables) == 3
    assert len(set(blocks)) == len(blocks)
    assert all(len(table) * BLOCK_TOKENS >= 32 for table in tables)


def test_the_tests_are_every_length_at_every_depth_and_batch():
    found = bench_tests(loaded().config, [8, 0], [4], [0, 16], [1, 2])
    names = [(test.name, test.batch) for test in found]
    assert names == [
        *(("pp8", 1), ("pp8", 2), ("pp8 @ d16", 1), ("pp8 @ d16", 2)),
        *(("tg4", 1), ("tg4", 2), ("tg4 @ d16", 1), ("tg4 @ d16", 2)),
    ]


@given(PROMPTS, st.integers(1, 200))
def test_a_prompt_is_read_in_order_in_steps_that_are_not_too_large(test, most):
    read = dict.fromkeys(range(test.batch), test.depth)
    for step in steps(test, most):
        assert 0 < sum(chunk.rows for chunk in step) <= most
        for chunk in step:
            assert chunk.past == read[chunk.sequence]
            read[chunk.sequence] += chunk.rows
    assert set(read.values()) == {test.depth + test.tokens}


@pytest.mark.parametrize("length", [5, 90])
def test_an_encoder_reads_every_sequence_whole_with_all_its_rows(length, monkeypatch):
    monkeypatch.setattr(module, "STEP_TOKENS", 32)
    bert = loaded("bert-base")
    bench(bert, prompts=[length], generates=[0], batches=[4], repeat=1, threads=1)
    assert {step.logits for step in bert.ops.steps} == {"all"}
    assert {row for rows in bert.ops.spans for row in rows} == {(length, 0)}
    assert sum(len(rows) for rows in bert.ops.spans[1:]) == 4


def test_rates_are_those_of_all_sequences_and_waits_those_of_one():
    result = BenchResult(BenchTest("generate", 10, 0, 4), (2.0, 4.0), predicted=2.5)
    assert result.tokens_per_second == (20 + 10) / 2
    assert result.deviation == pytest.approx(50**0.5)
    assert result.milliseconds_per_token == 300
    assert result.predicted_tokens_per_second == 16


def test_one_repetition_has_no_deviation_and_no_machine_no_prediction():
    result = BenchResult(BenchTest("prompt", 8, 0, 1), (2.0,), predicted=None)
    assert (result.deviation, result.predicted_tokens_per_second) == (0.0, None)


def test_it_computes_with_the_threads_it_is_given_and_puts_the_old_numbers_back():
    before = torch.get_num_threads(), kernels.threads()
    llama = loaded()
    found = bench(llama, prompts=[2], generates=[], repeat=1, threads=3)
    assert {step.threads for step in llama.ops.steps} == {(3, 3)}
    assert found.machine.threads == 3
    assert (torch.get_num_threads(), kernels.threads()) == before


@pytest.fixture
def machine(monkeypatch):
    """A machine that was measured with one thread, on which a row of any sequence takes a second and every
    token before it another one."""

    def predict_step(model, device, spans, *, logits="last"):
        return SimpleNamespace(seconds=sum(s.count * (s.rows + s.past) for s in spans))

    monkeypatch.setattr(module, "predict_step", predict_step)
    monkeypatch.setattr(Kernels, "from_dict", lambda raw: SimpleNamespace(threads=1, memory=0.0))
    return load_device("generic-cpu")


def test_a_prediction_is_of_all_steps_and_sequences(machine):
    found = bench(loaded(), prompts=[8], generates=[3], depths=[10], batches=[2], repeat=1, on=machine)
    prompt, generate = found.results
    assert prompt.predicted == 2 * (8 + 10)
    assert generate.predicted == 2 * (11 + 12 + 13)
    assert found.machine.threads == 1


def test_there_is_no_prediction_for_other_threads_than_were_measured(machine):
    (result,) = bench(loaded(), prompts=[8], generates=[], repeat=1, threads=2, on=machine).results
    assert result.predicted is None


def test_progress_goes_up_to_all():
    told = []
    progress = lambda doing, share: told.append((doing, share))  # noqa: E731
    bench(loaded(), prompts=[2], generates=[1], repeat=2, threads=1, progress=progress)
    assert told == [
        ("pp2, batch 1", 0.25),
        ("pp2, batch 1", 0.5),
        ("tg1, batch 1", 0.75),
        ("tg1, batch 1", 1.0),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompts": [0], "generates": [0]}, "nothing to time"),
        ({"prompts": [-1]}, "prompt must be at least 0, not -1"),
        ({"generates": [4, -2]}, "generate must be at least 0, not -2"),
        ({"depths": [-1]}, "depth must be at least 0"),
        ({"batches": [0]}, "batch must be at least 1, not 0"),
        ({"prompts": [500], "depths": [13]}, "pp500 @ d13 reaches 513 tokens, and .* takes 512 at most"),
        ({"generates": [513]}, "tg513 reaches 513"),
        ({"repeat": 0}, "repeat must be at least 1"),
        ({"threads": 0}, "threads"),
    ],
)
def test_what_is_out_of_range_is_refused_before_anything_runs(wrong, message):
    llama = loaded()
    with pytest.raises(InputError, match=message):
        bench(llama, **{"prompts": [4], "generates": [4], **wrong})
    assert llama.ops.steps == []


@pytest.mark.parametrize("wrong", [{"generates": [4]}, {"depths": [4]}])
def test_an_encoder_neither_generates_nor_caches(wrong):
    with pytest.raises(InputError, match="is an encoder, which only reads: give generate 0 and depth 0"):
        bench(loaded("bert-base"), **{"generates": [0], **wrong})
