"""Times that can be compared: nothing is loaded on the clock of the first question, and no arm finds what another one left behind."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from appliance.errors import ApplianceError
from appliance.service import Service


class Timing:
    """Prepares what arms are measured on, one arm after the other."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._arm: str | None = None
        self._one = asyncio.Lock()

    async def begin(self, arm: str) -> None:
        """To be called before each question. The first time it loads index, models and engines; with each new arm the vectors of questions
        and sentences are forgotten, which users of that arm alone would not find."""
        async with self._one:
            if self._arm is None:
                # What is wrong here is also what the question says.
                with suppress(ApplianceError):
                    await self._service.answering.warm()
            if arm != self._arm:
                self._arm = arm
                self._service.knowledge.forget_vectors()
