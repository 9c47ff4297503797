"""Quotas of API keys: requests and tokens in any 60 seconds, counted in this process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

WINDOW = 60


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A quota that is used up; after `wait` seconds the next request may pass."""

    kind: Literal["requests", "tokens"]
    limit: int
    wait: float


class Quotas:
    """What each key used in the last minute, in steps of a second. Not thread-safe: for one event loop.

    Tokens count when an answer has ended, so that all those under way may exceed the quota together, once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By key: [second, requests, tokens], oldest first.
        self._used: dict[str, deque[list[int]]] = {}

    def admit(self, key: str, requests: int | None, tokens: int | None) -> Exceeded | None:
        """Count a request of `key` with these limits a minute; where one is used up, say which instead."""
        if requests is None and tokens is None:
            return None
        used = self._recent(key)
        for kind, place, limit in (("requests", 1, requests), ("tokens", 2, tokens)):
            if limit is not None and (wait := self._wait(used, place, limit)) > 0:
                return Exceeded("requests" if kind == "requests" else "tokens", limit, wait)
        self._now(key)[1] += 1
        return None

    def spend(self, key: str, tokens: int) -> None:
        """Count the tokens of a request that has ended."""
        if tokens:
            self._now(key)[2] += tokens

    def _recent(self, key: str) -> deque[list[int]]:
        used = self._used.setdefault(key, deque())
        while used and used[0][0] <= self._clock() - WINDOW:
            used.popleft()
        return used

    def _now(self, key: str) -> list[int]:
        used, second = self._recent(key), int(self._clock())
        if not used or used[-1][0] != second:
            used.append([second, 0, 0])
        return used[-1]

    def _wait(self, used: deque[list[int]], place: int, limit: int) -> float:
        """Seconds until less than `limit` lies within the window."""
        left = sum(step[place] for step in used)
        if left < limit:
            return 0.0
        for step in used:
            left -= step[place]
            if left < limit:
                return max(0.001, step[0] + WINDOW - self._clock())
        return float(WINDOW)
