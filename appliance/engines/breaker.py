"""A circuit breaker: an engine that keeps failing is left alone for a while, then tried with one request; and the count of what failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "half-open", "open"]


@dataclass(slots=True)
class Faults:
    """What went wrong with an engine since it was started; for the metrics."""

    failed: int = 0
    late: int = 0
    retried: int = 0
    refused: int = 0


class Breaker:
    """Closed lets requests pass. `failures` in a row open it: nothing passes for `pause` seconds. Then it is half-open: one request at a
    time passes, and what becomes of it closes or opens the breaker again (Nygard, Release It!, 2nd ed. 2018)."""

    def __init__(self, failures: int, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._pause, self._clock = failures, pause, clock
        self._failed = 0
        self._opened: float | None = None
        self._trying = False

    @property
    def state(self) -> State:
        if self._opened is None:
            return "closed"
        return "open" if self.wait() > 0 else "half-open"

    def wait(self) -> float:
        """Seconds until a request may be tried; 0 when it may be now, as far as time goes."""
        return 0.0 if self._opened is None else max(0.0, self._opened + self._pause - self._clock())

    def allows(self) -> bool:
        """Whether a request may pass now."""
        return self._opened is None or (self.wait() == 0 and not self._trying)

    def enter(self) -> bool:
        """A request passes; True if it is the one that a half-open breaker is tried with: it must end in `succeed`, `fail` or `leave`."""
        if self._opened is None:
            return False
        self._trying = True
        return True

    def succeed(self) -> None:
        self._failed, self._opened, self._trying = 0, None, False

    def fail(self) -> None:
        """A request failed through the engine's own fault."""
        self._failed += 1
        if self._opened is not None or self._failed >= self._limit:
            self.open()

    def open(self) -> None:
        """Let nothing pass for the pause, which begins now."""
        self._opened, self._trying = self._clock(), False

    def leave(self) -> None:
        """The request that was tried told nothing about the engine: another may be."""
        self._trying = False
