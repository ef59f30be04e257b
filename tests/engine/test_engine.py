"""The engine: many callers at once, and none of them can harm another."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import ridgeline
from ridgeline.engine.build import default_blocks
from ridgeline.engine.engine import Engine
from ridgeline.engine.generate import Generator
from ridgeline.engine.prompts import Requests
from ridgeline.engine.sampling import BeamSearch, Sampling
from ridgeline.engine.worker import EngineClosed
from ridgeline.errors import InputError
from ridgeline.loading import Loaded
from ridgeline.ops.cpu import Cpu
from ridgeline.weights.generation import GenerationDefaults

VOCAB, WINDOW = 300, 128


@pytest.fixture(scope="module")
def loaded(make_twin):
    model = make_twin(
        "LlamaForCausalLM",
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        bos_token_id=1,
        eos_token_id=0,
    ).packed
    return Loaded(model.config, model, Cpu(), None, None, GenerationDefaults(), None)


@pytest.fixture
def engine(loaded):
    with Engine(loaded, cache_tokens=1024) as engine:
        yield engine
        idle(engine)


def idle(engine):
    """Waits for everything that was asked for, then checks that nothing is left of it."""
    engine.generate([3], max_tokens=1)
    scheduler = engine._scheduler
    assert not scheduler.has_work
    scheduler.check()
    assert scheduler.pool.available == scheduler.pool.blocks
    assert not engine._worker._orders
    assert not engine._worker._core._answers


@pytest.fixture(scope="module")
def alone(loaded):
    """What a prompt gives by itself: alone(prompt, **options)."""

    def alone(prompt, **options):
        requests = Requests(loaded.config)
        return Generator(loaded.model, loaded.ops, requests, prefix_cache=False).generate(prompt, **options)

    return alone


def some_prompt(length, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(2, VOCAB, (length,), generator=generator).tolist()


# -- in one's own thread ---------------------------------------------------------------------------


def test_a_list_of_prompts_gives_their_results_in_order(engine, alone):
    prompts = [some_prompt(n) for n in (40, 3, 17)]
    results = engine.generate(prompts, max_tokens=9, n=2, sampling=Sampling(seed=4))
    expected = [r for prompt in prompts for r in alone(prompt, max_tokens=9, n=2, sampling=Sampling(seed=4))]
    assert [r.ids for r in results] == [r.ids for r in expected]


def test_progress_is_told_for_every_output(engine):
    told = []
    engine.generate([[5], [6]], max_tokens=3, n=2, progress=lambda doing, share: told.append(share))
    assert told[-1] == 1.0
    assert sorted(set(told) - {0.0}) == [0.25, 0.5, 0.75, 1.0]


def test_tokens_come_one_by_one_and_can_be_left(engine, alone):
    [expected] = alone([5], max_tokens=60)
    found = []
    for token in engine.tokens([5], max_tokens=60):
        found.append(token.id)
        if len(found) == 3:
            break
    assert tuple(found) == expected.ids[:3]
    assert tuple(token.id for token in engine.tokens([5], max_tokens=60)) == expected.ids
    with pytest.raises(InputError):
        engine.tokens([VOCAB])


def test_the_next_call_finds_the_prefix_in_the_cache(engine):
    prompt = some_prompt(64)
    [cold] = engine.generate(prompt, max_tokens=5)
    [warm] = engine.generate(prompt, max_tokens=5)
    assert (cold.cached_tokens, warm.cached_tokens) == (0, 32)
    assert cold.ids == warm.ids


def test_many_threads_get_their_own_answers(engine, alone):
    prompts = [some_prompt(5 + i, seed=i) for i in range(12)]
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, engine.generate(prompts[i], max_tokens=12)))
        for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i][0].ids for i in range(12)] == [alone(p, max_tokens=12)[0].ids for p in prompts]


def test_two_engines_in_one_process(loaded, alone):
    prompt = some_prompt(20)
    with Engine(loaded, cache_tokens=512) as one, Engine(loaded, cache_tokens=256) as two:
        assert one.generate(prompt, max_tokens=5)[0].ids == two.generate(prompt, max_tokens=5)[0].ids


def test_a_model_is_loaded_by_its_name():
    with ridgeline.Engine("demo", cache_tokens=256) as engine:
        [result] = engine.generate("def add", max_tokens=3)
    assert result.text


# -- in an event loop ------------------------------------------------------------------------------


def test_streams_run_together_and_give_what_each_gives_alone(engine, alone):
    prompts = [some_prompt(5 + i, seed=i) for i in range(8)]

    async def read(prompt):
        return [token async for token in engine.stream(prompt, max_tokens=10)]

    async def read_all():
        return await asyncio.gather(*(read(prompt) for prompt in prompts))

    for tokens, prompt in zip(asyncio.run(read_all()), prompts, strict=True):
        [expected] = alone(prompt, max_tokens=10)
        assert tuple(token.id for token in tokens) == expected.ids == tokens[-1].result.ids


def test_prepared_requests_may_differ_and_share_a_stream(engine, alone):
    async def read():
        requests = [engine.prepare([5], max_tokens=4, n=2), engine.prepare([6], max_tokens=7)]
        return [token async for token in engine.start(requests)]

    results = [token for token in asyncio.run(read()) if token.result is not None]
    found = {(token.request, token.sample): token.result.ids for token in results}
    expected = alone([5], max_tokens=4)[0].ids
    assert found == {(0, 0): expected, (0, 1): expected, (1, 0): alone([6], max_tokens=7)[0].ids}


def test_the_status_counts_what_was_done(engine):
    before = engine.status()
    assert (before.alive, before.running, before.steps) == (True, 0, 0)
    assert (before.blocks * before.block_size, before.sequences) == (engine.cache_tokens, 64) == (1024, 64)
    engine.generate([[5] * 40, [6]], max_tokens=3, n=2)
    engine.generate([5], max_tokens=3, beams=BeamSearch(2))
    after = engine.status()
    assert (after.prompt_tokens, after.output_tokens, after.answered) == (42, 15, 3)
    assert (after.running, after.waiting, after.blocks_used) == (0, 0, 0)
    assert after.steps > 0 < after.step_seconds


def test_a_stream_of_samples_ends_with_the_last_of_them(engine):
    async def read():
        return [token async for token in engine.stream([5], max_tokens=4, n=3, sampling=Sampling())]

    results = [token.result for token in asyncio.run(read()) if token.result is not None]
    assert sorted(result.sample for result in results) == [0, 1, 2]


def test_whoever_is_cancelled_leaves_no_trace_and_the_others_go_on(engine, alone):
    prompts = [some_prompt(5, seed=i) for i in range(6)]

    async def read(prompt):
        return [token.id async for token in engine.stream(prompt, max_tokens=60)]

    async def stay_at_the_first(prompt, there):
        async for _ in engine.stream(prompt, max_tokens=60):
            there.set()
            await asyncio.Event().wait()

    async def main():
        there = [asyncio.Event() for _ in prompts[::2]]
        staying = map(stay_at_the_first, prompts[::2], there)
        tasks = [asyncio.create_task(job) for pair in zip(staying, map(read, prompts[1::2])) for job in pair]
        for event in there:
            await event.wait()
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(main())
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in found[::2])
    for ids, prompt in zip(found[1::2], prompts[1::2], strict=True):
        assert tuple(ids) == alone(prompt, max_tokens=60)[0].ids


def test_a_stream_that_is_left_early_is_aborted(engine):
    async def leave():
        async for _ in engine.stream([5], max_tokens=100):
            break
        gc.collect()

    asyncio.run(leave())


def test_a_stream_whose_event_loop_is_gone_is_aborted(engine):
    async def start():
        return engine.stream([5], max_tokens=100)

    stream = asyncio.run(start())
    idle(engine)
    del stream


# -- what goes wrong -------------------------------------------------------------------------------


def test_bad_input_is_refused_at_once_and_the_next_request_is_served(engine):
    for prompt, options, message in (
        ([VOCAB], {}, "token id 300"),
        ([5] * WINDOW, {}, "at most 127"),
        ([], {}, "empty"),
        ([5], {"max_tokens": 0}, "max_tokens is 0"),
        ([5], {"max_tokens": WINDOW}, "leaves 127"),
    ):
        with pytest.raises(InputError, match=message):
            engine.generate([prompt], **options)

        async def stream(prompt=prompt, options=options):
            engine.stream(prompt, **options)

        with pytest.raises(InputError, match=message):
            asyncio.run(stream())
    assert engine.generate([5], max_tokens=2)


def test_a_request_larger_than_the_cache_is_refused(loaded):
    with Engine(loaded, cache_tokens=64) as engine:
        with pytest.raises(InputError, match=r"takes 3 cache blocks .* and the cache has 2"):
            engine.generate([[5], [5] * 60], max_tokens=10)
        assert engine.generate([5], max_tokens=2)


def test_more_than_the_cache_holds_is_served_in_turns(loaded, alone):
    """The cache is exhausted again and again: nobody fails, nobody hangs, no token changes."""
    prompts = [some_prompt(20, seed=i) for i in range(8)]
    with Engine(loaded, cache_tokens=192) as engine:
        results = engine.generate(prompts, max_tokens=90)
        assert engine._scheduler.preemptions > 0
    assert [r.ids for r in results] == [alone(p, max_tokens=90)[0].ids for p in prompts]


def test_a_step_that_fails_fails_its_requests_alone(engine, monkeypatch):
    runner = engine._worker._core.runner
    run = type(runner).run

    def sometimes(plan):
        if any(chunk.sequence.tokens[0] == 66 for chunk in plan.chunks):
            raise RuntimeError("out of memory")
        return run(runner, plan)

    monkeypatch.setattr(runner, "run", sometimes)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.generate([66], max_tokens=4)
    assert engine.is_alive
    assert len(engine.generate([5], max_tokens=4)[0].ids) == 4


def test_logits_that_are_not_numbers_fail_their_own_request(engine, alone, monkeypatch):
    """What a broken weight or a damaged cache would give."""
    runner = engine._worker._core.runner
    run = type(runner).run

    def poisoned(plan):
        logits = run(runner, plan)
        for row, chunk in zip(logits, [chunk for chunk in plan.chunks if chunk.logits], strict=True):
            if chunk.sequence.tokens[0] == 66:
                row[7] = float("nan")
        return logits

    monkeypatch.setattr(runner, "run", poisoned)
    found = []
    thread = threading.Thread(target=lambda: found.extend(engine.generate([5], max_tokens=60)))
    thread.start()
    with pytest.raises(InputError, match="nothing can be chosen"):
        engine.generate([66], max_tokens=4)
    thread.join()
    assert found[0].ids == alone([5], max_tokens=60)[0].ids


def test_text_that_cannot_be_made_fails_its_own_request(loaded, tokenizer, monkeypatch):
    from ridgeline.weights.tokenizer import TextStream

    push = TextStream.push

    def broken(stream, token_id):
        if stream._tokenizer is poisoned:
            raise ValueError("no text")
        return push(stream, token_id)

    monkeypatch.setattr(TextStream, "push", broken)
    poisoned = object()
    with Engine(replace(loaded, tokenizer=tokenizer), cache_tokens=256) as engine:
        core = engine._worker._core
        core.tokenizer = poisoned
        with pytest.raises(ValueError, match="no text"):
            engine.generate([5], max_tokens=4)
        core.tokenizer = tokenizer
        assert engine.generate([5], max_tokens=4)
        idle(engine)


def test_a_fault_of_the_engine_itself_reaches_everyone_who_waits(loaded, monkeypatch):
    with Engine(loaded, cache_tokens=256) as engine:
        monkeypatch.setattr(engine._scheduler, "schedule", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.generate([[5], [6]], max_tokens=4)
        assert not engine.is_alive
        with pytest.raises(EngineClosed):
            engine.generate([5])


# -- the end ---------------------------------------------------------------------------------------


def test_closing_fails_those_who_wait_and_takes_no_more(loaded, monkeypatch):
    engine = Engine(loaded, cache_tokens=1024)
    schedule = engine._scheduler.schedule

    def slowly():  # so that it can't be done before it is closed
        time.sleep(0.01)
        return schedule()

    monkeypatch.setattr(engine._scheduler, "schedule", slowly)

    async def read():
        stream = engine.stream([5], max_tokens=120)
        await anext(stream)
        engine.close()
        async for _ in stream:
            pass

    with pytest.raises(EngineClosed, match="closed before the request was answered"):
        asyncio.run(read())
    assert not engine.is_alive
    with pytest.raises(EngineClosed, match="make a new one"):
        engine.generate([5])
    engine.close()


def test_draining_answers_everyone_first(loaded):
    engine = Engine(loaded, cache_tokens=1024)
    found = []
    thread = threading.Thread(target=lambda: found.extend(engine.generate([[5]] * 4, max_tokens=60)))
    thread.start()
    while not engine._worker._open:
        pass
    engine.drain()
    with pytest.raises(EngineClosed):
        engine.generate([5])
    thread.join()
    assert [len(result.ids) for result in found] == [60] * 4
    engine.close()


def test_an_engine_nobody_holds_ends_its_thread(loaded):
    engine = Engine(loaded, cache_tokens=64)
    thread = engine._worker._thread
    del engine
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_the_interpreter_ends_with_an_engine_in_use():
    code = (
        "import contextlib, ridgeline, threading\n"
        "def use():\n"
        "    with contextlib.suppress(ridgeline.engine.worker.EngineClosed):\n"
        "        engine.generate('x', max_tokens=400)\n"
        "engine = ridgeline.Engine('demo', cache_tokens=512)\n"
        "threading.Thread(target=use, daemon=True).start()\n"
        "print(engine.is_alive)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.strip(), done.stderr) == ("True", "")


# -- sizes -----------------------------------------------------------------------------------------


def test_the_default_cache_holds_every_sequences_window_if_memory_does(loaded):
    assert default_blocks(loaded.model, loaded.ops, 4, 32) == 4 * WINDOW // 32
    assert default_blocks(loaded.model, loaded.ops, 4, 100) == 4 * 2
    endless = replace(loaded.model, config=replace(loaded.config, window=10**12))
    assert default_blocks(endless, loaded.ops, 4, 32) < 10**10


@pytest.mark.parametrize("option", ["block_size", "token_budget", "sequences", "cache_tokens"])
def test_a_size_below_one_is_refused(loaded, option):
    with pytest.raises(InputError, match=f"{option} is 0, expected"):
        Engine(loaded, **{option: 0})


# -- step reports ----------------------------------------------------------------------------------


def test_every_step_is_reported(engine):
    before = len(engine.steps)
    engine.generate([some_prompt(20), some_prompt(9)], max_tokens=5)
    steps = engine.steps[before:]
    assert [step.kind for step in steps] == ["prefill"] + ["decode"] * 4
    assert [step.rows for step in steps] == [29, 2, 2, 2, 2]
    assert all(step.flops > 0 and step.bytes > 0 and step.running > 0 for step in steps)
    assert all(later.started >= step.started + step.seconds for step, later in pairwise(steps))
    assert engine.last_step == steps[-1]
    assert engine.last_step.predicted is None


def test_a_search_gives_its_results_and_nothing_else(engine):
    """Its samples were once forked from the prompt, too, and the first of them ended the engine."""
    tokens = list(engine.tokens([5, 6, 7], beams=BeamSearch(3), n=2, max_tokens=8))
    assert [(token.sample, token.result is not None) for token in tokens] == [(0, True), (1, True)]
    assert engine.is_alive


def test_a_prepared_request_may_be_started_twice(engine):
    request = engine.prepare([5, 6, 7], max_tokens=4)

    async def both():
        return [token.result.ids async for token in engine.start([request, request]) if token.result]

    first, second = asyncio.run(both())
    assert first == second


def test_a_request_that_another_engine_prepared_is_checked_again(engine, loaded):
    with Engine(loaded, cache_tokens=32) as small:
        request = engine.prepare([5] * 60, max_tokens=40)
        with pytest.raises(InputError, match="the request takes"):
            asyncio.run(_started(small, request))
        assert small.is_alive


async def _started(engine, request):
    engine.start([request])


def test_nothing_is_left_when_an_engine_is_closed_in_the_midst_of_its_work(loaded):
    engine = Engine(loaded, cache_tokens=1024)
    tokens = engine.tokens([5, 6, 7], max_tokens=100)
    next(tokens)
    engine.close()
    status = engine.status()
    assert (status.running, status.waiting, status.blocks_used) == (0, 0, 0)
