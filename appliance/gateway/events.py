"""Consuming the answering's events for a client that may go away at any moment."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from appliance.gateway.errors import CLIENT_GONE, as_api_error
from appliance.gateway.trace import Trace, trace_of
from appliance.types import Answer, Caller, Event, Finished, Request

logger = logging.getLogger("appliance.gateway")
T = TypeVar("T")

_SEPARATORS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class Answers(Protocol):
    """What the gateway needs of the answering."""

    def stream(self, request: Request, caller: Caller) -> AsyncIterator[Event]:
        """The events of one answer; raises UsageError, EngineError (EngineBusy, PromptTooLong), RetrievalError."""
        ...

    async def warm(self) -> None: ...

    async def close(self) -> None: ...

    def domains(self, caller: Caller) -> list[str]: ...

    def arms(self, domain: str, caller: Caller) -> list[str]: ...

    async def health(self) -> dict[str, Any]:
        """``{"index": {"ok", …}, "database": {"ok", …}, "engines": {name: {"ok", "detail"}}}``."""
        ...


@asynccontextmanager
async def _closing(events: AsyncIterator[Event]) -> AsyncGenerator[AsyncIterator[Event]]:
    try:
        yield events
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled as soon as the client disconnects; then ClientDisconnect is raised.

    `work` runs in one task from start to end, so what it iterates may use timeouts around its own yields.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    job, watch = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({job, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientDisconnect
        return job.result()
    finally:
        job.cancel()
        watch.cancel()
        await asyncio.gather(job, watch, return_exceptions=True)


async def finished(scope: Scope, receive: Receive, events: AsyncIterator[Event]) -> Answer:
    """The answer at the end of `events`. Raises what they raise, and ClientDisconnect."""
    trace = trace_of(scope)

    async def drain() -> Answer:
        async with _closing(events) as open_events:
            async for event in open_events:
                trace.note(event)
                if isinstance(event, Finished):
                    return event.answer
        raise RuntimeError("the events ended without an answer")

    return await unless_gone(receive, drain())


class EventStream(Response):
    """Server-sent events made from answering events by `chunks`, ended by ``[DONE]``.

    Nothing is sent before the first text, so a failure until then is still an ordinary error with its status; a later one becomes
    an error event, and ``[DONE]`` is never sent after it.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[Event], chunks: Callable[[Event], Iterable[Mapping[str, Any]]]) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.chunks = events, chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = trace_of(scope)
        try:
            await unless_gone(receive, self._run(trace, send))
        except ClientDisconnect:
            trace.late_status = CLIENT_GONE
        except asyncio.CancelledError:
            # The server's deadline for ending streams has passed.
            trace.late_status = 503
            raise

    async def _run(self, trace: Trace, send: Send) -> None:
        begun = done = False

        async def put(data: bytes, more: bool = True) -> None:
            nonlocal begun
            if not begun:
                begun = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            async with _closing(self.events) as events:
                async for event in events:
                    trace.note(event)
                    if frames := b"".join(map(frame, self.chunks(event))):
                        await put(frames)
                    if done := isinstance(event, Finished):
                        break
            if not done:
                raise RuntimeError("the events ended without an answer")
        except Exception as error:
            if not begun:
                raise
            logger.exception("request %s failed after its stream had begun", trace.request_id)
            failure = as_api_error(error)
            trace.late_status = failure.status_code
            await put(frame(failure.body()), more=False)
        else:
            await put(b"data: [DONE]\n\n", more=False)


def frame(data: Mapping[str, Any]) -> bytes:
    """One server-sent event. The line separators that JSON leaves alone are escaped: some clients split lines at them."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_SEPARATORS)
    return f"data: {text}\n\n".encode()
