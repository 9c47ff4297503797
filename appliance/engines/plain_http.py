"""An httpx transport for servers that stream over plain HTTP: httpx's own spends several times as long on every piece.

It parses with httptools (llhttp), as uvicorn does on the other side; everything else of httpx stays as it is.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import httpx

# Bytes that nobody has taken yet, from which on the server is made to wait.
_WAITING = 1 << 20
# Seconds for which an idle connection is used again; many servers close theirs after 5.
_IDLE_SECONDS = 4.0


def mounts(url: str, idle: int) -> dict[str, httpx.AsyncBaseTransport]:
    """What `httpx.AsyncClient` takes as `mounts` for the server of `url`: nothing for https, or where a proxy leads to it.

    At most `idle` connections are kept for the next requests.
    """
    parts = urlsplit(url)
    proxies = {} if parts.hostname in ("127.0.0.1", "::1", "localhost") else urllib.request.getproxies()
    proxied = bool(proxies.get("http") or proxies.get("all")) and not urllib.request.proxy_bypass(parts.netloc)
    return {} if parts.scheme != "http" or proxied else {f"http://{parts.netloc}": PlainTransport(idle)}


class PlainTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 without TLS, GET and POST, for one event loop. Honours the timeouts `connect` and `read`."""

    def __init__(self, idle: int) -> None:
        self._limit = idle
        self._idle: list[_Connection] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx. The connection is used again once the body was read to its end and the response closed."""
        timeouts = request.extensions.get("timeout", {})
        body = await request.aread()
        kept = self._waiting()
        if kept is not None:
            try:
                return await self._answer(kept, request, body)
            except httpx.RemoteProtocolError:
                if not kept.unanswered:
                    raise
        # None was kept, or the server let go of it while the request was on its way (RFC 9112, 9.3.1).
        return await self._answer(await _connect(request.url.host, request.url.port or 80, timeouts.get("connect")), request, body)

    async def _answer(self, connection: _Connection, request: httpx.Request, body: bytes) -> httpx.Response:
        connection.begin(request.extensions.get("timeout", {}).get("read"))
        try:
            connection.send(request, body)
            await connection.head()
        except BaseException:
            connection.close()
            raise
        return httpx.Response(connection.status, headers=connection.headers, stream=_Body(connection, self._give_back))

    async def aclose(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _waiting(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost and time.monotonic() - connection.idle_since < _IDLE_SECONDS:
                return connection
            connection.close()
        return None

    def _give_back(self, connection: _Connection) -> None:
        if connection.reusable and len(self._idle) < self._limit:
            connection.rest()
            self._idle.append(connection)
        else:
            connection.close()


async def _connect(host: str, port: int, patience: float | None) -> _Connection:
    try:
        async with asyncio.timeout(patience):
            _, connection = await asyncio.get_running_loop().create_connection(_Connection, host.strip("[]"), port)
    except TimeoutError as error:
        raise httpx.ConnectTimeout(f"no connection to {host}:{port} within {patience} s") from error
    except OSError as error:
        raise httpx.ConnectError(str(error)) from error
    return connection


class _Body(httpx.AsyncByteStream):
    def __init__(self, connection: _Connection, give_back: Any) -> None:
        self._connection, self._give_back = connection, give_back
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self._connection.read():
            yield piece

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._give_back(self._connection)


class _Connection(asyncio.Protocol):
    """One connection, and the response that is arriving on it."""

    def __init__(self) -> None:
        self.lost = False
        self.idle_since = 0.0
        self._transport: asyncio.Transport
        self._parser: Any = None

    # --- what the transport above does with it

    def begin(self, patience: float | None) -> None:
        """Expect a response; `patience` is how many seconds each piece of it may take."""
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []
        self._size = 0
        self._heard = self._headed = self._complete = self._stays = self._paused = False
        self._error = ""
        self._patience = patience
        self._waiter: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)

    def send(self, request: httpx.Request, body: bytes) -> None:
        lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
        lines += [b"%s: %s" % field for field in request.headers.raw if field[0].lower() not in (b"transfer-encoding", b"content-length")]
        if body:
            lines.append(b"Content-Length: %d" % len(body))
        self._transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    async def head(self) -> None:
        """Wait for status and headers. Raises httpx.TransportError."""
        while not self._headed:
            if self._error or self.lost:
                raise httpx.RemoteProtocolError(self._error or "the server closed the connection without an answer")
            await self._more()

    async def read(self) -> bytes:
        """All of the body that has arrived since the last call; empty at its end. Raises httpx.TransportError."""
        while not self._pieces:
            if self._complete:
                return b""
            if self._error or self.lost:
                raise httpx.ReadError(self._error or "the server closed the connection in the middle of the body")
            await self._more()
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces, self._size = [], 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return piece

    @property
    def reusable(self) -> bool:
        return self._complete and self._stays and not self._pieces and not self.lost and not self._error

    @property
    def unanswered(self) -> bool:
        """It ended before a byte of the answer came."""
        return self.lost and not self._heard

    def rest(self) -> None:
        self._parser, self.idle_since = None, time.monotonic()

    def close(self) -> None:
        self._transport.abort()

    async def _more(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._patience):
                await self._waiter
        except TimeoutError as error:
            raise httpx.ReadTimeout(f"the server sent nothing for {self._patience} s") from error
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- what the event loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Other event loops' transports are of no class of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            # Nothing was asked.
            self.close()
            return
        self._heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._error = f"this is not HTTP/1.1: {error}"
            self.close()
        if self._size > _WAITING and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self._parser is None:
            return
        if error is not None:
            self._error = self._error or f"{type(error).__name__}: {error}"
        elif self._headed and not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
            # Such a body ends with its connection (RFC 9112, 6.3).
            self._complete = True
        self._wake()

    # --- what the parser tells

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        # Before the answer there may be others that only inform.
        self._headed = self.status >= 200
        self._stays = self._parser.should_keep_alive()
        if not self._headed:
            self.headers = []

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._size += len(body)

    def on_message_complete(self) -> None:
        self._complete = self._headed
