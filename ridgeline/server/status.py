"""What the page at ``/`` shows: model, machine, engine, and where on the roofline its last step was."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from ridgeline.analysis.here import gpu_name, stored_here
from ridgeline.engine.engine import Engine
from ridgeline.engine.status import Status
from ridgeline.hardware.host import this_host
from ridgeline.ops.formats import product_format
from ridgeline.server.gate import Admission
from ridgeline.server.service import Service
from ridgeline.server.stream import EVENTS, EventStream, event

if TYPE_CHECKING:
    from ridgeline.loading import Loaded

#: Seconds between two events of a stream, and those that rates are taken over.
PERIOD = 0.5
RATE_SECONDS = 2.0

router = APIRouter()


class ModelStatus(BaseModel):
    """``weights`` is their format, ``window`` in tokens; ``chat`` whether it takes messages."""

    name: str
    parameters: int
    weights: str
    window: int
    chat: bool


class DeviceStatus(BaseModel):
    """FLOP/s of the format that linear layers multiply in, and bytes/s of memory, as ``ridgeline measure``
    found them on this machine; else unknown."""

    name: str
    peak_flops: float | None = None
    bandwidth: float | None = None
    measured: bool = False


class EngineStatus(BaseModel):
    """``running`` of at most ``sequences`` sequences; ``kv_used`` of ``kv_total`` cache blocks of
    ``block_size`` tokens; tokens a second over the last two, ``tokens_per_second`` of outputs; ``uptime`` in
    seconds."""

    running: int
    waiting: int
    sequences: int
    kv_used: int
    kv_total: int
    block_size: int
    preemptions: int
    tokens_per_second: float
    prompt_tokens_per_second: float
    requests_done: int
    alive: bool
    uptime: float


class Point(BaseModel):
    """A step on the roofline: FLOP/byte, and FLOP/s achieved; its pass through the model took ``seconds``."""

    intensity: float
    flops_per_second: float
    rows: int
    seconds: float
    flops: float
    bytes: float


class SpeculationStatus(BaseModel):
    """Since the server began: of the ``judged`` tokens, which came after accepted ones alone, ``acceptance``
    is the share that was accepted; ``tokens_per_trial`` the mean accepted length, the target's own token
    included; ``gain`` the speed over that of plain steps, and ``predicted_gain`` the same from acceptance and
    costs. What is not known yet is null."""

    trials: int
    proposed: int
    judged: int
    accepted: int
    acceptance: float | None
    tokens_per_trial: float | None
    gain: float | None
    predicted_gain: float | None


class ServerStatus(BaseModel):
    """There is a ``point`` while the engine computes, and ``speculation`` if the server does it."""

    model: ModelStatus
    device: DeviceStatus
    engine: EngineStatus
    point: Point | None
    speculation: SpeculationStatus | None


@dataclass
class StatusFeed:
    """Samples the engine of ``service`` twice a second, while :meth:`run` runs, for all who watch it."""

    service: Service
    _samples: deque[tuple[float, Status]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        loaded = self.service.loaded
        self._model = ModelStatus(
            name=self.service.name,
            parameters=loaded.model.parameter_count(),
            weights=loaded.config.format,
            window=loaded.config.window,
            chat=self.service.engine is not None and loaded.chat_template is not None,
        )
        self._device = _device(loaded)
        self._sample()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD)
            self._sample()

    def now(self) -> ServerStatus:
        moment, status = time.monotonic(), _status(self.service.engine)
        before, then = self._samples[0]
        seconds = max(moment - before, PERIOD)
        return ServerStatus(
            model=self._model,
            device=self._device,
            engine=EngineStatus(
                running=status.running,
                waiting=status.waiting,
                sequences=status.sequences,
                kv_used=status.blocks_used,
                kv_total=status.blocks,
                block_size=status.block_size,
                preemptions=status.preemptions,
                tokens_per_second=(status.output_tokens - then.output_tokens) / seconds,
                prompt_tokens_per_second=(status.prompt_tokens - then.prompt_tokens) / seconds,
                requests_done=status.answered,
                alive=status.alive,
                uptime=time.time() - self.service.started,
            ),
            point=_point(self.service.engine),
            speculation=_speculation(self.service.engine),
        )

    def _sample(self) -> None:
        now = time.monotonic()
        self._samples.append((now, _status(self.service.engine)))
        while now - self._samples[0][0] > RATE_SECONDS:
            self._samples.popleft()


def _status(engine: Engine | None) -> Status:
    """An encoder is computed without an engine, and always can be."""
    return Status(alive=True) if engine is None else engine.status()


def _point(engine: Engine | None) -> Point | None:
    """The last step's pass through the model, if the engine is computing."""
    step = None if engine is None or not engine.status().running else engine.last_step
    if step is None:
        return None
    return Point(
        intensity=step.flops / step.bytes,
        flops_per_second=step.flops / step.running,
        rows=step.rows,
        seconds=step.running,
        flops=step.flops,
        bytes=step.bytes,
    )


def _speculation(engine: Engine | None) -> SpeculationStatus | None:
    report = None if engine is None else engine.speculation
    if report is None:
        return None
    return SpeculationStatus(
        trials=report.trials,
        proposed=report.proposed,
        judged=report.judged,
        accepted=report.accepted,
        acceptance=report.acceptance,
        tokens_per_trial=report.tokens_per_trial,
        gain=report.measured_gain,
        predicted_gain=report.predicted_gain,
    )


def _device(loaded: Loaded) -> DeviceStatus:
    """What the model runs on, with its rates if it was measured."""
    device, on_gpu = stored_here(loaded), loaded.on_gpu
    if device is None:
        return DeviceStatus(name=gpu_name(loaded) if on_gpu else this_host().name)
    # A GPU makes floats of quantised weights, a CPU integers of both sides.
    format = loaded.model.plain_format if on_gpu else product_format(loaded.config.format)
    return DeviceStatus(
        name=device.title,
        peak_flops=device.matrix_rate(format),
        bandwidth=device.bandwidth,
        measured=True,
    )


@router.get("/v1/status")
async def status(request: Request) -> ServerStatus:
    """What the server is doing."""
    return request.app.state.feed.now()


@router.get("/v1/status/stream", response_class=StreamingResponse, responses=EVENTS)
async def status_stream(request: Request) -> EventStream:
    """The same twice a second, as events called ``status``, until the client leaves or the server drains."""
    return EventStream(_events(request.app.state.feed, request.app.state.admission))


async def _events(feed: StatusFeed, admission: Admission) -> AsyncIterator[str]:
    while not admission.draining:
        yield event(feed.now().model_dump_json(), "status")
        await asyncio.sleep(PERIOD)
