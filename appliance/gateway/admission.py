"""How many answers run at once, how many wait for their turn, and who is told to come back."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from appliance.gateway.errors import ApiError


class Admission:
    """At most `running` at once and `queued` waiting, first come first served, `patience` seconds at most. For one event loop."""

    def __init__(self, running: int, queued: int, patience: float) -> None:
        self._limit, self._queue_limit, self._patience = running, queued, patience
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._seconds = 1.0
        self.running = 0
        self.refused = 0

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[float]:
        """Wait for a turn and hold it; the milliseconds it took. Raises ApiError 503 with Retry-After when the queue is full, or when no
        turn came in time."""
        asked = time.perf_counter()
        if self.running < self._limit:
            self.running += 1
        else:
            await self._wait()
        began = time.perf_counter()
        try:
            yield (began - asked) * 1000
        finally:
            # A moving average, from which Retry-After is estimated.
            self._seconds += 0.1 * (time.perf_counter() - began - self._seconds)
            self._pass_on()

    async def _wait(self) -> None:
        if len(self._waiting) >= self._queue_limit:
            raise self._busy(f"{self.running} requests are running and {len(self._waiting)} are waiting")
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self._patience):
                await self._called(place)
        except TimeoutError:
            raise self._busy(f"{self.running} requests are running, and no turn came within {self._patience:g} s") from None

    async def _called(self, place: asyncio.Future[None]) -> None:
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                # The turn came at the very moment the client went.
                self._pass_on()
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def _busy(self, what: str) -> ApiError:
        self.refused += 1
        wait = max(1, math.ceil(self._seconds * (len(self._waiting) + 1) / self._limit))
        return ApiError(503, f"{what}; try again in {wait} s", code="gateway_busy", headers={"Retry-After": str(wait)})

    def _pass_on(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1


@dataclass(frozen=True, slots=True)
class Queues:
    """What waits for one kind of work never waits for another: a model that hangs keeps neither searches nor embeddings from their turn.

    `deciding` is the search, the choice of the arm, and the whole of an answer that needs no model (any more); `generating` the rest of
    the others.
    """

    deciding: Admission
    generating: Admission
    embedding: Admission

    @classmethod
    def of(cls, running: int, queued: int, patience: float) -> Queues:
        """The same limits for each; only that more embeddings at once than there are cores would slow everything else down."""
        embedding = min(running, os.cpu_count() or 1)
        return cls(*(Admission(limit, queued, patience) for limit in (running, running, embedding)))

    def named(self) -> dict[str, Admission]:
        """Each by its name."""
        return {"deciding": self.deciding, "generating": self.generating, "embedding": self.embedding}
