"""The server's application: its endpoints, behind the gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from ridgeline import __version__
from ridgeline.server import chat, completions, embeddings, listing, status
from ridgeline.server.errors import ErrorBody, handle_errors
from ridgeline.server.gate import Admission, Gate, Limits
from ridgeline.server.page_files import page_routes
from ridgeline.server.service import Service
from ridgeline.server.status import StatusFeed


def make_app(service: Service, limits: Limits, admission: Admission, origins: Sequence[str] = ()) -> FastAPI:
    """The application for ``service``, which it closes at its end. Pages from ``origins`` may use it, too."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sampling = asyncio.create_task(app.state.feed.run())
        try:
            yield
        finally:
            sampling.cancel()
            with suppress(asyncio.CancelledError):
                await sampling
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Ridgeline",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.state.service = service
    app.state.admission = admission
    app.state.feed = StatusFeed(service)
    for part in (completions, chat, embeddings, listing, status):
        app.include_router(part.router)
    page = page_routes()
    app.router.routes.extend(page)
    handle_errors(app)
    app.add_middleware(
        Gate,
        limits=limits,
        admission=admission,
        open_paths=frozenset({"/health", *(route.path for route in page)}),
        count=lambda path, status: service.metrics.requests.labels(path, status).inc(),
    )
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app
