"""One client's connection, which ends where nothing moves on it any more, or where a request's head has no end."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from appliance.gateway.errors import ApiError


class Connection(HttpToolsProtocol):
    """Ends itself when a client takes more than `patience` seconds for a request's head or for the next piece of its body, or has not read
    what was sent for as long.

    A client that goes away is known by that; one that stays and does nothing would keep its turn and its engine's for ever. Timed by what
    the transport tells, so that a token that leaves at once costs nothing.

    A head of more than `head_bytes` is refused with 431, give or take one read: the parser would gather it without end, from anybody.
    """

    patience: ClassVar[float] = 30.0
    head_bytes: ClassVar[int] = 1 << 16

    # Bytes since the parser last got a piece of a body, or to the end of a head or a request: those of a head, or what follows a body.
    _head = 0

    # What the client is to send, and what it is to read.
    _sending: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        self._head += len(data)
        super().data_received(data)
        if self._head > self.head_bytes and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._sending is None:
            self._expect()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._head = 0
        self._expect()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._head = 0
        self._expect()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head = 0
        self._expect_nothing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self._read()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._expect_nothing()
        self._sending = self.loop.call_later(self.patience, self._overdue)

    def _expect_nothing(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _overdue(self) -> None:
        if self.flow.read_paused:
            # The client may not send: what it has sent is not dealt with yet.
            self._expect()
        else:
            self.transport.abort()

    def _refuse(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # An answer is on its way, or waits for the rest of the body.
            self.transport.abort()
            return
        refusal = ApiError(431, f"the head of the request is larger than {self.head_bytes} bytes", code="head_too_large").response()
        head = (f"{name}: {value}\r\n" for name, value in {**refusal.headers, "connection": "close"}.items())
        self.transport.write(f"HTTP/1.1 431 Request Header Fields Too Large\r\n{''.join(head)}\r\n".encode("latin-1") + refusal.body)
        self.transport.close()

    def _read(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
