"""One client's connection, which ends where nothing moves on it any more."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Connection(HttpToolsProtocol):
    """Ends itself when a client takes more than `patience` seconds for a request's head or for the next piece of its body, or has not read
    what was sent for as long.

    A client that goes away is known by that; one that stays and does nothing would keep its turn and its engine's for ever. Timed by what
    the transport tells, so that a token that leaves at once costs nothing.
    """

    patience: ClassVar[float] = 30.0

    # What the client is to send, and what it is to read.
    _sending: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._sending is None:
            self._expect()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._expect()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._expect()

    def on_message_complete(self) -> None:
        super().on_message_complete()
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

    def _read(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
