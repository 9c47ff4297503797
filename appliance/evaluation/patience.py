"""Asking an engine that others ask too: one that is busy is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from appliance.engines.base import EngineBusy

# How often an engine that is busy (a full queue, a rate limit) is asked, and the longest wait between, in seconds.
_TRIES, _LONGEST_WAIT = 6, 60.0

T = TypeVar("T")


async def while_busy(ask: Callable[[], Awaitable[T]]) -> T:
    """What `ask` returns; it is called again after each EngineBusy, whose last one is raised, as any other exception is at once."""
    for _ in range(_TRIES - 1):
        try:
            return await ask()
        except EngineBusy as error:
            await asyncio.sleep(min(error.retry_after, _LONGEST_WAIT))
    return await ask()
