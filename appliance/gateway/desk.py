"""What every question passes on its way: the queues before it is decided and generated, the book of answers after."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from appliance.answers.feedback import Feedback
from appliance.engines.base import EngineError
from appliance.errors import ApplianceError
from appliance.gateway.admission import Queues
from appliance.gateway.events import Answers
from appliance.gateway.trace import Trace
from appliance.types import Caller, Decided, Event, Finished, Request
from retrieval.types import Evidence

logger = logging.getLogger("appliance.gateway")

# Seconds between two writings of the answers that feedback may be given on, and at most until what is too old is erased.
_FLUSH, _ERASE = 0.5, 60.0


class Desk:
    """Questions go to `answering` when it is their turn in `queues`; answers are noted in `feedback`."""

    def __init__(self, answering: Answers, queues: Queues, feedback: Feedback) -> None:
        self.answering, self.queues, self.feedback = answering, queues, feedback

    async def ask(self, trace: Trace, question: Request, caller: Caller) -> AsyncGenerator[Event]:
        """The events of one answer, each noted in `trace`. Raises ApiError (busy) and what the answering raises."""
        evidence: Evidence | None = None
        async with AsyncExitStack() as turn, _closing(self.answering.stream(question, caller)) as events:
            trace.queued = await turn.enter_async_context(self.queues.deciding.turn())
            try:
                async for event in events:
                    trace.note(event)
                    if isinstance(event, Decided):
                        evidence = event.evidence
                        if event.generates:
                            await turn.aclose()
                            trace.queued += await turn.enter_async_context(self.queues.generating.turn())
                    elif isinstance(event, Finished):
                        self.feedback.remember(event.answer, question.question, evidence, caller)
                    yield event
            except EngineError:
                # Nobody pays for what the engine failed at.
                trace.spent = 0
                raise

    async def write(self) -> None:
        """Keep writing the noted answers and erasing the old, until cancelled; then the last ones."""
        written = time.monotonic()
        try:
            while True:
                await asyncio.sleep(_FLUSH)
                if self.feedback.waiting() or time.monotonic() >= written + _ERASE:
                    await run_in_threadpool(self._flush)
                    written = time.monotonic()
        finally:
            await asyncio.shield(run_in_threadpool(self._flush))

    def _flush(self) -> None:
        try:
            self.feedback.flush()
        except (ApplianceError, SQLAlchemyError, OSError) as error:
            logger.error("answers cannot be noted, so no feedback can be given on them: %s", error)


@asynccontextmanager
async def _closing(events: AsyncIterator[Event]) -> AsyncGenerator[AsyncIterator[Event]]:
    try:
        yield events
    finally:
        if isinstance(events, AsyncGenerator):
            await events.aclose()
