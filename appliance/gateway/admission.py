"""How many answers run at once, how many wait for their turn, and who is told to come back."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from appliance.gateway.errors import ApiError


class Admission:
    """At most `running` at once and `queued` waiting, first come first served. For one event loop."""

    def __init__(self, running: int, queued: int) -> None:
        self._limit, self._queue_limit = running, queued
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._seconds = 1.0
        self.running = 0
        self.refused = 0

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[float]:
        """Wait for a turn and hold it; the milliseconds it took. Raises ApiError 503 with Retry-After when the queue is full."""
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
            self.refused += 1
            wait = max(1, math.ceil(self._seconds * (len(self._waiting) + 1) / self._limit))
            message = f"{self.running} answers are running and {len(self._waiting)} are waiting; try again in {wait} s"
            raise ApiError(503, message, code="gateway_busy", headers={"Retry-After": str(wait)})
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                # The turn came at the very moment the client went.
                self._pass_on()
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1
