"""Running the app under uvicorn: binding, logging, and an orderly end."""

from __future__ import annotations

import errno
import gc
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from appliance.errors import ApplianceError
from appliance.gateway.connection import Connection

# Seconds that a thread may run on while another waits.
_SWITCH = 0.0005


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI, drain: float, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._app, self._drain, self._ready = app, drain, ready
        self._leave_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A second signal does not wait.
        wait = 0.0 if self._leave_at is not None else self._drain
        self._app.state.lifecycle.draining = True
        self._leave_at = time.monotonic() + wait
        if wait == 0:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self._leave_at is not None and time.monotonic() >= self._leave_at)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            # Else the signal is raised again after an orderly end, and the process does not exit with 0.
            self._captured_signals.clear()


def serve(
    app: FastAPI,
    host: str,
    port: int,
    *,
    grace_seconds: int = 30,
    drain_seconds: float = 0,
    announce: Callable[[str], None] = print,
    admin: tuple[str, int] | None = None,
    announce_admin: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or SIGINT; then ``/readyz`` says so at once, new requests are taken for another `drain_seconds`, and open streams
    have `grace_seconds` to end before this returns.

    `announce` gets the real address (port 0 picks a free port) once requests are accepted. Raises ApplianceError when the
    address cannot be bound.

    With `admin` (host, port), administration is served at that address and nowhere else; `announce_admin` gets it.
    """
    sockets = [bind(host, port), *([] if admin is None else [bind(*admin)])]
    if admin is not None:
        app.state.lifecycle.admin_port = sockets[1].getsockname()[1]

    def ready() -> None:
        for tell, bound, name in zip((announce, announce_admin), sockets, (host, *(admin or ())[:1]), strict=False):
            tell(f"http://{f'[{name}]' if ':' in name else name}:{bound.getsockname()[1]}")

    # A stream waits for the threads that read the database; not for Python's usual 5 ms each time.
    sys.setswitchinterval(_SWITCH)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=grace_seconds,
    )
    _Server(config, app, drain_seconds, ready).run(sockets=sockets)


def settle() -> None:
    """Leave everything that is loaded now out of later garbage collections: with a model's libraries in memory each full one would stop
    every stream for some 400 ms."""
    gc.collect()
    gc.freeze()


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address; raises ApplianceError that says why not and what to do."""
    if not 0 <= port <= 65535:
        # The system would quietly use the remainder.
        raise ApplianceError(f"cannot listen on {host}:{port}: a port is a number from 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name with both kinds of address is served on IPv4, which every client tries.
        family, kind, protocol, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        remedy = {
            errno.EADDRINUSE: "the port is in use; stop the other process or choose another --port",
            errno.EACCES: "this user may not use the port; choose one above 1023",
            errno.EADDRNOTAVAIL: "this machine does not have that address; choose another --host",
        }.get(error.errno or 0, str(error))
        raise ApplianceError(f"cannot listen on {host}:{port}: {remedy}") from error
    return bound
