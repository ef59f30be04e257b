"""A server under many clients at once, some of whom leave: every answer right, nothing left over.

Run as ``python -m benchmarks.soak [--requests 1000] [--at-once 64] [--model demo-draft]``. The clients are in
the server's process, so the memory that is shown is theirs, too.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

import ridgeline
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.loading import Loaded
from ridgeline.server.app import make_app
from ridgeline.server.gate import Admission, Limits
from ridgeline.server.run import Server, address, bind
from ridgeline.server.service import Service

#: Different requests, each of which is asked many times.
CASES = 40
#: Requests before memory is looked at for the first time.
WARM_UP = 200
#: Shares of the clients that leave in the midst of a stream, that go without waiting, that ask for nonsense.
LEAVING, GOING, WRONG = 0.1, 0.1, 0.05


@dataclass(frozen=True)
class Case:
    """What is asked for, and the texts that it must give."""

    asked: dict[str, Any]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Left:
    """What a server still has."""

    running: int
    waiting: int
    blocks: int
    orders: int
    tasks: int
    alive: bool

    @property
    def is_clean(self) -> bool:
        return self == Left(0, 0, 0, 0, 0, alive=True)


def cases(loaded: Loaded, draw: random.Random) -> list[Case]:
    """Requests of many kinds, whose prompts begin alike, and what each gives by itself."""
    return [_case(loaded, draw) for _ in range(CASES)]


def _case(loaded: Loaded, draw: random.Random) -> Case:
    vocab, window = loaded.config.vocab, loaded.config.window
    shared = [7, 8, 9] * draw.choice([0, 20, 40])
    prompt = [*shared, *(draw.randrange(1, vocab) for _ in range(draw.randint(1, 60)))]
    samples, most = draw.choice([1, 1, 1, 3]), draw.randint(1, min(64, window // 4))
    sampling = {"temperature": draw.choice([0.0, 0.7, 1.0]), "seed": draw.randrange(100)}
    asked = {
        "prompt": prompt,
        "max_tokens": most,
        "n": samples,
        "ignore_eos": draw.random() < 0.7,
        **sampling,
    }
    stops: dict[str, Any] = {"stop_ids": ()} if asked["ignore_eos"] else {}
    results = loaded.generate(
        prompt, max_tokens=most, n=samples, sampling=loaded.sampling(**sampling), **stops
    )
    return Case(asked, tuple(result.text for result in results))


async def soak(url: str, cases: Sequence[Case], draw: random.Random, requests: int, at_once: int) -> Counter:
    """Ask for ``requests`` cases, so many at a time. How many were answered right or wrong, how many of the
    clients left, and how many asked for nonsense and were told so."""
    found: Counter[str] = Counter()
    seats = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=at_once // 2)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def one() -> None:
            async with seats:
                found[await _one(client, draw.choice(cases), draw)] += 1

        await asyncio.gather(*(one() for _ in range(requests)))
    return found


async def _one(client: httpx.AsyncClient, case: Case, draw: random.Random) -> str:
    fate = draw.random()
    if fate < LEAVING:
        return await _leave(client, case, draw.randrange(1, 8))
    if fate < LEAVING + GOING:
        return await _go(client, case, draw.random() * 0.1)
    if fate < LEAVING + GOING + WRONG:
        answer = await client.post("/v1/completions", json={**case.asked, "max_tokens": -1})
        return "refused" if answer.status_code == 400 else "wrong"
    texts = await (_streamed if draw.random() < 0.5 else _whole)(client, case)
    return "right" if texts == case.texts else "wrong"


async def _whole(client: httpx.AsyncClient, case: Case) -> tuple[str, ...]:
    answer = (await client.post("/v1/completions", json=case.asked)).json()
    return tuple(choice["text"] for choice in answer["choices"])


async def _streamed(client: httpx.AsyncClient, case: Case) -> tuple[str, ...]:
    texts = [""] * case.asked["n"]
    async with client.stream("POST", "/v1/completions", json={**case.asked, "stream": True}) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    texts[choice["index"]] += choice["text"]
    return tuple(texts)


async def _leave(client: httpx.AsyncClient, case: Case, after: int) -> str:
    """Read some lines of a stream, and no more."""
    async with client.stream("POST", "/v1/completions", json={**case.asked, "stream": True}) as stream:
        async for _ in stream.aiter_lines():
            after -= 1
            if not after:
                break
    return "left"


async def _go(client: httpx.AsyncClient, case: Case, after: float) -> str:
    """Ask, and be cancelled some seconds later."""
    asking = asyncio.create_task(client.post("/v1/completions", json=case.asked))
    await asyncio.sleep(after)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    return "gone"


def left(server: Server, service: Service) -> Left:
    """What there still is once all clients have gone: a client that leaves is noticed between two steps."""
    deadline = time.monotonic() + 10
    while not (found := _left(server, service)).is_clean and time.monotonic() < deadline:
        time.sleep(0.02)
    service.engine._scheduler.check()
    return found


def _left(server: Server, service: Service) -> Left:
    status = service.engine.status()
    orders = len(service.engine._worker._orders)
    tasks = len(server.server_state.tasks)
    return Left(status.running, status.waiting, status.blocks_used, orders, tasks, status.alive)


@contextmanager
def serving(loaded: Loaded, speculator: Speculator | None = None) -> Iterator[tuple[str, Server, Service]]:
    """A server in a thread, and its address; its cache is small, so that requests are preempted."""
    limits = {"token_budget": 512, "sequences": 48, "cache_tokens": 1024}
    service = Service.start(loaded, "soaked", **limits, speculator=speculator)
    server = Server(make_app(service, Limits(requests=1000), Admission()), drain_seconds=5)
    with bind("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield address(listening), server, service
        finally:
            server.should_exit = True
            thread.join()


def resident_bytes() -> int:
    """What the process has in memory, after a collection."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo-draft")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    logging.disable(logging.INFO)  # a line for every request
    loaded, draw = ridgeline.load(asked.model), random.Random(asked.seed)
    known = cases(loaded, draw)
    with serving(loaded) as (url, server, service):
        asyncio.run(soak(url, known, draw, WARM_UP, asked.at_once))
        left(server, service)
        before, begun = resident_bytes(), time.perf_counter()
        found = asyncio.run(soak(url, known, draw, asked.requests, asked.at_once))
        seconds = time.perf_counter() - begun
        remains = left(server, service)
        status = service.engine.status()
    result = {
        "requests": asked.requests,
        "at_once": asked.at_once,
        "seconds": seconds,
        "outcomes": dict(found),
        "preemptions": status.preemptions,
        "output_tokens": status.output_tokens,
        "resident_megabytes": {"before": before / 1e6, "after": resident_bytes() / 1e6},
        "left": asdict(remains),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
