"""The page at ``/``: files that are built beforehand and lie in the folder ``page``."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"

#: The page may load and reach nothing but this server.
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
#: The names of built assets contain a hash of what is in them; those of other files stay.
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"

_NO_PAGE = """\
This is Ridgeline. Its API is OpenAI's:
  POST /v1/completions, /v1/chat/completions, /v1/embeddings
  GET  /v1/models, /v1/status, /health, /metrics
  GET  /openapi.json describes all of it
"""


def page_routes(folder: Path = FOLDER) -> list[Route]:
    """A route for every file of the page, and ``/`` for its index; a text that names the API without one."""
    files = {f"/{file.relative_to(folder).as_posix()}": file for file in folder.rglob("*") if file.is_file()}
    if "/index.html" not in files:
        return [Route("/", _no_page)]
    files["/"] = files["/index.html"]
    return [Route(path, _serving(file, path.startswith("/assets/"))) for path, file in files.items()]


def _serving(file: Path, is_asset: bool):
    headers = SECURITY | {"Cache-Control": _FOR_EVER if is_asset else _ASK_AGAIN}

    async def serve(_: Request) -> Response:
        return FileResponse(file, headers=headers)

    return serve


async def _no_page(_: Request) -> Response:
    return PlainTextResponse(_NO_PAGE, headers=SECURITY)
