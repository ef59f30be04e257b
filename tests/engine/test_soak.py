"""A thousand requests, 64 at a time, some of whose callers leave: nobody notices, nothing is left over."""

import asyncio
import random
import threading

from ridgeline.engine.clock import RealClock
from ridgeline.engine.engine import TokenStream
from ridgeline.engine.request import Request
from ridgeline.engine.sampling import GREEDY, BeamSearch, Sampling
from ridgeline.engine.worker import Worker
from tests.engine.fake_model import fake_core, naive

REQUESTS, AT_ONCE = 1000, 64


def drawn(draw):
    """A request of any kind; prompts begin alike, so that some share blocks."""
    own = [draw.randint(0, 39) for _ in range(draw.randint(1, 20))]
    prompt = (*([1, 2, 3, 4] * draw.randint(0, 3)), *own)
    if draw.random() < 0.1:
        return Request(prompt, draw.randint(1, 8), beams=BeamSearch(draw.randint(2, 4)))
    sampling = draw.choice([GREEDY, Sampling(seed=draw.randint(0, 9)), Sampling(0.8, top_k=5)])
    return Request(prompt, draw.randint(1, 24), sampling, samples=draw.choice([1, 1, 1, 3]))


async def ask(worker, request, draw):
    """The outputs of a request, or None if its caller left after some tokens or was cancelled."""
    fate = draw.random()
    stream = TokenStream(worker, [request])
    if fate < 0.1:  # leaves between two tokens
        async for _ in stream:
            if draw.random() < 0.3:
                await stream.aclose()
                return None
    elif fate < 0.2:  # is cancelled while it waits
        reading = asyncio.create_task(read(stream))
        await asyncio.sleep(draw.random() * 0.02)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        return None
    return await read(stream)


async def read(stream):
    results = [token.result async for token in stream if token.result is not None]
    return [(result.ids, result.finish_reason) for result in sorted(results, key=lambda r: r.sample)]


def test_every_request_that_is_kept_is_answered_and_nothing_is_left_over():
    draw = random.Random(5)
    core = fake_core(blocks=60, block_size=4, token_budget=200, sequences=48, headroom=0)
    core.scheduler.clock = RealClock()
    worker = Worker(core)
    requests = [drawn(draw) for _ in range(REQUESTS)]
    threads = threading.active_count()

    async def main():
        seats = asyncio.Semaphore(AT_ONCE)

        async def served(request):
            async with seats:
                return await ask(worker, request, draw)

        found = await asyncio.gather(*(served(request) for request in requests))
        left = asyncio.all_tasks() - {asyncio.current_task()}
        return found, left

    found, left = asyncio.run(main())
    worker.drain()
    kept = [(request, outputs) for request, outputs in zip(requests, found, strict=True) if outputs]
    assert len(kept) > 0.7 * REQUESTS
    assert all(outputs == naive(request) for request, outputs in kept)
    assert core.scheduler.preemptions > 0
    assert not left
    assert threading.active_count() == threads
    assert worker._thread.is_alive()
    core.scheduler.check()
    assert core.scheduler.pool.available == core.scheduler.pool.blocks
    assert not any((core._answers, core._outputs, core._beams, worker._orders, core.has_work))
    worker.close()
