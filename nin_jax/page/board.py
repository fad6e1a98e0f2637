"""A page of runs, served on this machine: live curves, comparison, mistakes, and what a run sees in your picture.

    nin-jax board DIR... [--host=127.0.0.1] [--port=8470] [--trust]

DIR is a run directory or holds run directories. Nothing is written. Needs the extra `board`.

Whoever reaches the page sees the runs. By default that is this machine alone; `--host=NAME` listens on the address of
that name, and answers only requests that ask for it by this name. There is no password.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nin_jax import registry
from nin_jax.arguments import Parser
from nin_jax.console import exiting, say
from nin_jax.data.pictures import FOLDER_FORMATS, Unreadable, open_picture, reason
from nin_jax.errors import UserError, one_line
from nin_jax.page import run_files
from nin_jax.storage import expanded, local_path

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

MOST_BYTES = 20 * 2**20  # of a picture that is sent
MOST_WAITING = 32  # pictures and reports that wait for the one thread that computes
LOADED = 2  # networks kept in memory
FILES = {
    "/": ("board.html", "text/html"),
    "/board.css": ("board.css", "text/css"),
    "/board.js": ("board.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is answered by an HTTP status and one line."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status = status


class Networks:
    """Loads the networks of runs and computes with them, one job at a time, in a thread of its own."""

    def __init__(self, trust: bool) -> None:
        self.trust = trust
        self.thread = ThreadPoolExecutor(1, "networks")
        self.loaded: dict[Path, tuple[Any, Any]] = {}  # by run: which checkpoints there were, and the network
        self.reports: dict[Path, tuple[Any, dict[str, Any]]] = {}
        self.waiting = 0

    async def run(self, job: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a job. Raises `Refused` where too many wait, or where the job raises `UserError`."""
        if self.waiting >= MOST_WAITING:
            raise Refused(503, "too much is being computed; try again in a minute")
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, job, *arguments)
        except UserError as error:
            raise Refused(422, str(error)) from error
        finally:
            self.waiting -= 1

    def report(self, path: Path) -> dict[str, Any]:
        """The report of a run's newest checkpoint, computed once."""
        from nin_jax.page import report

        state = _checkpoints(path)
        if path not in self.reports or self.reports[path][0] != state:
            self.reports[path] = state, report.report(self._network(path))
        return self.reports[path][1]

    def answer(self, path: Path, picture: bytes) -> dict[str, Any]:
        """What a run's newest checkpoint sees in a picture."""
        from nin_jax.page import report

        try:
            opened = open_picture(picture, FOLDER_FORMATS)
        except Unreadable as error:
            raise Refused(415, f"this picture cannot be used: {reason(error)}") from error
        return report.answer(self._network(path), opened)

    def _network(self, path: Path) -> Any:
        from nin_jax.weights import zoo

        state = _checkpoints(path)
        if path not in self.loaded or self.loaded[path][0] != state:
            self.loaded.pop(path, None)
            while len(self.loaded) >= LOADED:
                self.loaded.pop(next(iter(self.loaded)))
            self.loaded[path] = state, zoo.load(path, trust=self.trust)
        return self.loaded[path][1]


def _plain(content: Any) -> Any:
    """Content with null for numbers that are not finite, which the JSON of browsers lacks."""
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _checkpoints(path: Path) -> Any:
    try:
        return sorted(entry.name for entry in (path / "checkpoints").iterdir())
    except OSError:
        return []


def application(directories: Sequence[Path], hosts: Sequence[str], *, trust: bool = False) -> Starlette:
    """The page of the runs in or below `directories`, for requests that ask for one of `hosts`; `trust` as of `load`."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import Response
    from starlette.routing import Route

    networks = Networks(trust)

    def reply(content: Any, status: int = 200) -> Response:
        return Response(json.dumps(_plain(content), allow_nan=False), status, HEADERS, "application/json")

    def refuse(request: Request, error: Any) -> Response:
        return reply({"error": str(error)}, error.status)

    def of(request: Request) -> Path:
        """The directory of the run that an address names by its key, so no address leads elsewhere."""
        found = run_files.find(directories).get(request.path_params["key"])
        if found is None:
            raise Refused(404, "there is no such run")
        return found[1]

    def file(request: Request) -> Response:
        name, kind = FILES[request.url.path]
        return Response((resources.files("nin_jax.page") / "board" / name).read_bytes(), 200, HEADERS, kind)

    def runs(request: Request) -> Response:
        return reply([run_files.overview(key, *found) for key, found in run_files.find(directories).items()])

    def rows(request: Request) -> Response:
        found, mark, everything = run_files.rows(of(request), request.query_params.get("since", ""))
        return reply({"rows": found, "mark": mark, "all": everything})

    def config(request: Request) -> Response:
        return reply(run_files.flat_config(of(request)))

    async def report(request: Request) -> Response:
        return reply(await networks.run(networks.report, await asyncio.to_thread(of, request)))

    async def answer(request: Request) -> Response:
        # A page of another site cannot send this kind of content without asking first, and nobody answers that question.
        if not request.headers.get("content-type", "").startswith("image/"):
            raise Refused(415, "send a picture, with its type in Content-Type")
        path, data = await asyncio.to_thread(of, request), bytearray()
        if int(request.headers.get("content-length", 0)) > MOST_BYTES:
            raise Refused(413, f"at most {MOST_BYTES // 2**20} MiB")
        async for part in request.stream():
            data += part
            if len(data) > MOST_BYTES:
                raise Refused(413, f"at most {MOST_BYTES // 2**20} MiB")
        return reply(await networks.run(networks.answer, path, bytes(data)))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        networks.thread.shutdown(wait=False, cancel_futures=True)

    return Starlette(
        routes=[
            *(Route(path, file) for path in FILES),
            Route("/runs", runs),
            Route("/runs/{key}/rows", rows),
            Route("/runs/{key}/config", config),
            Route("/runs/{key}/report", report),
            Route("/runs/{key}/answer", answer, methods=["POST"]),
        ],
        exception_handlers={Refused: refuse},
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        lifespan=lifespan,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Serves the page until Ctrl-C."""
    parser = Parser("nin-jax board", __doc__)
    parser.add_argument("directories", nargs="+", metavar="DIR")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8470)
    parser.add_argument("--trust", action="store_true", help="import the modules of your own that configs of runs name")
    arguments = parser.parse(sys.argv[1:] if argv is None else argv)
    if arguments.trust:
        registry.search_working_directory()
    try:
        import uvicorn
    except ImportError as error:
        raise UserError('the page of runs needs the extra: pip install "nin_jax[board]"') from error
    directories = []
    for text in arguments.directories:
        try:
            directory = expanded(local_path(text))
        except ValueError as error:
            raise UserError(f"{text}: {error}") from error
        if not directory.is_dir():
            raise UserError(f"{text} is not a directory")
        directories.append(directory)
    try:
        listening = socket.create_server((arguments.host, arguments.port))
    except (OSError, OverflowError, UnicodeError) as error:  # also a port above 65535, a name that is none
        raise UserError(f"--host={arguments.host} --port={arguments.port}: {one_line(error)}") from error
    found = run_files.find(directories)
    hosts = {arguments.host, *(("localhost", "127.0.0.1") if arguments.host in ("localhost", "127.0.0.1") else ())}
    server = uvicorn.Server(
        uvicorn.Config(
            application(directories, sorted(hosts), trust=arguments.trust),
            log_level="warning",
            server_header=False,
            timeout_keep_alive=5,
            limit_concurrency=200,
        )
    )
    say(f"{len(found)} runs on http://{arguments.host}:{listening.getsockname()[1]}/ (Ctrl-C ends it)")
    server.run(sockets=[listening])


if __name__ == "__main__":
    with exiting():
        main()
