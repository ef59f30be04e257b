"""``ridgeline bench``: how many tokens a second a model reads and generates.

The tests are those of llama.cpp's llama-bench: ``pp512`` reads a prompt of 512 tokens, ``tg64`` generates
64 tokens, one after another; ``@ d4096`` does so after 4,096 tokens that are cached already. Tokens are
random, and nothing is sampled: what is timed is the model.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING, Literal, NamedTuple

from ridgeline.analysis.here import gpu_name, runs_as_measured
from ridgeline.analysis.memory_now import MemoryNow
from ridgeline.analysis.step import predict_step
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.hardware.fingerprint import Fingerprint, fingerprint
from ridgeline.hardware.host import this_host
from ridgeline.hardware.measured import is_measured_gpu, measured_kernels
from ridgeline.hardware.threads import threads as computing_threads
from ridgeline.models import Model, ModelConfig
from ridgeline.models.model import refuse_diffusion
from ridgeline.ops.batch import Span

if TYPE_CHECKING:
    from ridgeline.loading import Loaded

#: A decoder reads at most so many tokens in a step, of all its sequences together.
STEP_TOKENS = 2048


@dataclass(frozen=True)
class BenchTest:
    """``batch`` sequences of ``depth`` cached tokens each, to which ``tokens`` each are added: all in as few
    steps as :data:`STEP_TOKENS` allows (``prompt``), or one a step (``generate``)."""

    kind: Literal["prompt", "generate"]
    tokens: int
    depth: int
    batch: int

    @property
    def name(self) -> str:
        short = {"prompt": "pp", "generate": "tg"}[self.kind]
        return f"{short}{self.tokens}" + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class BenchResult:
    """The ``seconds`` of each repetition of a test, and those ``predicted``, if the machine is measured."""

    test: BenchTest
    seconds: tuple[float, ...]
    predicted: float | None

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all sequences, the mean over the repetitions."""
        return statistics.mean(self._rates)

    @property
    def deviation(self) -> float:
        """Standard deviation of the tokens a second; of a single repetition 0."""
        return statistics.stdev(self._rates) if len(self._rates) > 1 else 0.0

    @property
    def milliseconds_per_token(self) -> float:
        """What a sequence waits for each of its tokens, on average."""
        return 1e3 * statistics.mean(self.seconds) / self.test.tokens

    @property
    def predicted_tokens_per_second(self) -> float | None:
        return None if self.predicted is None else self._tokens / self.predicted

    @property
    def _tokens(self) -> int:
        return self.test.batch * self.test.tokens

    @property
    def _rates(self) -> list[float]:
        return [self._tokens / seconds for seconds in self.seconds]


@dataclass(frozen=True)
class Bench:
    """What :func:`bench` found; ``format`` is that of the weights."""

    model: str
    format: str
    parameters: int
    machine: Fingerprint
    results: tuple[BenchResult, ...]


def bench(
    loaded: Loaded,
    *,
    prompts: Sequence[int] = (512,),
    generates: Sequence[int] = (64,),
    depths: Sequence[int] = (0,),
    batches: Sequence[int] = (1,),
    repeat: int = 5,
    threads: int | None = None,
    on: Device | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Bench:
    """Time every test of :func:`bench_tests` ``repeat`` times, after a step that warms up.

    ``loaded`` is what :func:`ridgeline.load` returned. ``threads`` is by default what ``on`` was measured
    with, or else the cores of this machine; a GPU takes none. ``on``, this machine's hardware file or its
    GPU's, predicts the tests, unless it was measured with another number of threads, or is of the other; the
    machine's at the rate that memory is read at right before each.
    ``progress`` is called with what is being done and the share that is done.

    Raises InputError as :func:`bench_tests` does, and if repeat or threads is below 1 or threads beyond 1024,
    or given for a GPU.
    """
    tests = bench_tests(loaded.config, prompts, generates, depths, batches)
    if repeat < 1:
        raise InputError(f"repeat must be at least 1, not {repeat}")
    on_gpu = loaded.on_gpu
    if on_gpu and threads is not None:
        raise InputError("threads are the CPU's: leave them out with device cuda")
    if on is not None and (is_measured_gpu(on) != on_gpu or not runs_as_measured(loaded)):
        on = None
    measured_with = None if on is None or on_gpu else measured_kernels(on).threads
    if threads is None:
        threads = measured_with or this_host().cores
    comparable = on is not None and (on_gpu or threads == measured_with)
    memory = MemoryNow(on) if comparable else None
    results = []
    with computing_threads(threads):
        machine = fingerprint(threads, gpu_name(loaded) if on_gpu else "")
        for i, test in enumerate(tests):
            predicted = None
            if memory is not None:
                predicted = _predict(loaded.model, memory.device(memory.read()), test)
            seconds = []
            for n, elapsed in enumerate(islice(repetitions(loaded, test), repeat)):
                seconds.append(elapsed)
                if progress is not None:
                    progress(f"{test.name}, batch {test.batch}", (i + (n + 1) / repeat) / len(tests))
            results.append(BenchResult(test, tuple(seconds), predicted))
    config, model = loaded.config, loaded.model
    return Bench(config.name, config.format, model.parameter_count(), machine, tuple(results))


def bench_tests(
    config: ModelConfig,
    prompts: Sequence[int],
    generates: Sequence[int],
    depths: Sequence[int],
    batches: Sequence[int],
) -> tuple[BenchTest, ...]:
    """Every prompt and generation at every depth, in batches of every size; a length of 0 makes no test.

    Raises InputError if there is no test, a number is out of range, a test exceeds the model's window, or
    an encoder is to generate or to have something cached.
    """
    refuse_diffusion(config)
    for name, numbers, least in (
        ("prompt", prompts, 0),
        ("generate", generates, 0),
        ("depth", depths, 0),
        ("batch", batches, 1),
    ):
        if wrong := [n for n in numbers if n < least]:
            raise InputError(f"{name} must be at least {least}, not {wrong[0]}")
    kinds = (("prompt", prompts), ("generate", generates))
    lengths = [(kind, tokens) for kind, numbers in kinds for tokens in numbers if tokens]
    if not config.is_decoder and (any(kind == "generate" for kind, _ in lengths) or any(depths)):
        raise InputError(f"{config.name} is an encoder, which only reads: give generate 0 and depth 0")
    found = [BenchTest(*length, depth, batch) for length, depth, batch in product(lengths, depths, batches)]
    if not found:
        raise InputError("there is nothing to time: give a prompt or generate above 0, a depth and a batch")
    for test in found:
        if test.depth + test.tokens > config.window:
            raise InputError(
                f"{test.name} reaches {test.depth + test.tokens} tokens, and {config.name} takes"
                f" {config.window} at most"
            )
    return tuple(found)


class Chunk(NamedTuple):
    """The next ``rows`` tokens of a sequence that has ``past``."""

    sequence: int
    rows: int
    past: int


def steps(test: BenchTest, most: int) -> list[list[Chunk]]:
    """What is computed together, step by step. A prompt is cut into chunks of ``most`` tokens, and a step
    takes as many chunks as fit into ``most``."""
    if test.kind == "generate":
        past = range(test.depth, test.depth + test.tokens)
        return [[Chunk(sequence, 1, p) for sequence in range(test.batch)] for p in past]
    found: list[list[Chunk]] = []
    room = 0
    for sequence, done in product(range(test.batch), range(0, test.tokens, most)):
        rows = min(most, test.tokens - done)
        if rows > room:
            found.append([])
            room = most
        found[-1].append(Chunk(sequence, rows, test.depth + done))
        room -= rows
    return found


def _steps(config: ModelConfig, test: BenchTest) -> list[list[Chunk]]:
    """An encoder's sequence is read whole."""
    return steps(test, STEP_TOKENS if config.is_decoder else max(STEP_TOKENS, test.tokens))


def repetitions(loaded: Loaded, test: BenchTest) -> Iterator[float]:
    """Runs a test as often as it is asked to, after a step that warms up, and gives the seconds each time."""
    run = _Run(loaded, test)
    run.step(run.steps[0])
    while True:
        begin = time.perf_counter()
        for step in run.steps:
            run.step(step)
        yield time.perf_counter() - begin


class _Run:
    """A test on an executing reading: its tokens, its cache, and its steps."""

    def __init__(self, loaded: Loaded, test: BenchTest) -> None:
        import torch

        self.model, self.ops = loaded.model, loaded.ops
        config = loaded.config
        self.steps = _steps(config, test)
        self.logits = "last" if config.is_decoder else "all"
        self.longest = test.depth + test.tokens
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(config.vocab, (max(map(_rows, self.steps)),), generator=generator).tolist()
        self.cache, self.blocks = None, 0
        if config.is_decoder:
            spec = self.model.cache_spec(self.model.plain_format)
            self.blocks = -(-self.longest // spec.block_size)
            self.cache = self.ops.alloc_cache(spec, test.batch * self.blocks)
            self.cache.randomise()

    def step(self, chunks: list[Chunk]) -> None:
        import torch

        spans = [self._span(chunk) for chunk in chunks]
        with torch.inference_mode():
            ids = self.ids[: _rows(chunks)]
            self.ops.run(self.model, ids, spans, logits=self.logits, cache=self.cache)
            self.ops.synchronise()

    def _span(self, chunk: Chunk) -> Span:
        first = chunk.sequence * self.blocks
        table = tuple(range(first, first + self.blocks))
        return Span(chunk.rows, chunk.past, table=table, admitted=self.longest)


def _rows(chunks: list[Chunk]) -> int:
    return sum(chunk.rows for chunk in chunks)


def _predict(model: Model, device: Device, test: BenchTest) -> float:
    """The predicted seconds of a repetition."""
    logits = "last" if model.config.is_decoder else "all"
    if test.kind == "generate":
        import numpy

        past = numpy.arange(test.depth, test.depth + test.tokens)
        return float(predict_step(model, device, [Span(1, past, count=test.batch)]).seconds.sum())
    spans = ([Span(c.rows, c.past) for c in step] for step in _steps(model.config, test))
    return sum(float(predict_step(model, device, step, logits=logits).seconds) for step in spans)
