"""Consuming the answering's events for a client that may go away at any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from appliance.engines.breaker import Faults, State
from appliance.gateway.errors import CLIENT_GONE, report, shutting_down
from appliance.gateway.trace import Trace, trace_of
from appliance.types import Answer, Caller, Event, Finished, Request

T = TypeVar("T")

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_SEPARATORS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class Guard(Protocol):
    """What the metrics tell of an engine: the state of its circuit breaker and what went wrong."""

    @property
    def state(self) -> State: ...

    @property
    def faults(self) -> Faults: ...


class Answers(Protocol):
    """What the gateway needs of the answering."""

    def stream(self, request: Request, caller: Caller) -> AsyncIterator[Event]:
        """The events of one answer; raises UsageError, EngineError (EngineBusy, PromptTooLong), RetrievalError."""
        ...

    async def look(self, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)`, a few small reads of the database, without keeping the event loop waiting."""
        ...

    async def warm(self) -> None: ...

    async def close(self) -> None: ...

    def domains(self, caller: Caller) -> list[str]: ...

    def arms(self, domain: str, caller: Caller) -> list[str]: ...

    async def health(self) -> dict[str, Any]:
        """``{"index": {"ok", …}, "database": {"ok", …}, "engines": {name: {"ok", "detail"}}}``."""
        ...

    def guards(self) -> Mapping[str, Guard]:
        """The engines that run, by name."""
        ...


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client disconnects; then ClientDisconnect is raised.

    `work` runs in one task from start to end, so what it iterates may use timeouts around its own yields.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    job, watch = asyncio.create_task(work), asyncio.create_task(gone())
    left = False
    try:
        await asyncio.wait({job, watch}, return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return job.result()
        left = True
    finally:
        job.cancel()
        watch.cancel()
        try:
            await asyncio.gather(job, watch, return_exceptions=True)
        except asyncio.CancelledError:
            # The server's deadline is nothing to a client that has gone already.
            if not left:
                raise
    raise ClientDisconnect


async def finished(receive: Receive, events: AsyncGenerator[Event]) -> Answer:
    """The answer at the end of `events`. Raises what they raise, and ClientDisconnect."""

    async def drain() -> Answer:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Finished):
                    return event.answer
        raise RuntimeError("the events ended without an answer")

    return await unless_gone(receive, drain())


class EventStream(Response):
    """Server-sent events, each answering event as the bytes that `chunks` makes of it, ended by ``[DONE]``.

    Nothing is sent before the first text, so a failure until then is still an ordinary error with its status; a later one becomes
    an error event, and ``[DONE]`` is never sent after it.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Event], chunks: Callable[[Event], bytes]) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.chunks = events, chunks
        self._begun = self._ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = trace_of(scope)
        try:
            await unless_gone(receive, self._run(trace, send))
        except ClientDisconnect:
            trace.late_status = CLIENT_GONE
        except asyncio.CancelledError:
            # The server's deadline for open requests has passed. What has not begun is answered like all others.
            if not self._begun:
                raise
            if not self._ended:
                stopped = shutting_down()
                trace.late_status = stopped.status_code
                await self._put(send, frame(stopped.body()), more=False)

    async def _run(self, trace: Trace, send: Send) -> None:
        done = False
        try:
            async with aclosing(self.events) as events:
                async for event in events:
                    if data := self.chunks(event):
                        await self._put(send, data)
                    if done := isinstance(event, Finished):
                        break
            if not done:
                raise RuntimeError("the events ended without an answer")
        except Exception as error:
            if not self._begun:
                raise
            failure = report(error, trace.request_id)
            trace.late_status = failure.status_code
            await self._put(send, frame(failure.body()), more=False)
        else:
            await self._put(send, b"data: [DONE]\n\n", more=False)

    async def _put(self, send: Send, data: bytes, more: bool = True) -> None:
        if not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._ended = not more
        await send({"type": "http.response.body", "body": data, "more_body": more})


def frame(data: Mapping[str, Any]) -> bytes:
    """One server-sent event. The line separators that JSON leaves alone are escaped: some clients split lines at them."""
    return b"data: " + encoded(data) + b"\n\n"


def encoded(value: Any) -> bytes:
    """JSON for a line of an event stream."""
    text = _JSON.encode(value)
    return (text if text.isascii() else text.translate(_SEPARATORS)).encode()
