"""How many threads the products of the local engine take: every core while that is faster, one fewer beside other work.

The threads of a product wait for the slowest of them. On a machine of its own the last core makes a step shorter; where something else
wants that core, every product waits for it, and a step can take five times as long. Which of the two it is changes while a server runs,
and nothing but the steps themselves tells.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, MutableMapping

# Pairs of steps in a trial, one with each number of threads. The first with another number also builds its products.
_PAIRS = 5
# A step with more threads must take at most this share of the time: they cost the rest of the machine something.
_GAIN = 0.95
# Seconds from one trial to the next: while all cores are used a machine may become busy at any time; while they are not, a trial
# costs a busy machine long steps, so each that brings nothing doubles the time to the next.
_SOON, _LATE = 3.0, 48.0

_SPIN = "GOMP_SPINCOUNT"


def stay_awake(environ: MutableMapping[str, str] = os.environ) -> None:
    """Threads of this process wait awake for a moment before they sleep; for commands that generate answers, before torch is imported.

    An answer is thousands of short products, and a thread that slept comes too late for the next one. The moment is some 0.1 ms (libgomp's
    GOMP_SPINCOUNT).
    """
    environ.setdefault(_SPIN, "10000")


def asleep(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for other work: long products gain nothing by waiting awake, and lose beside others."""
    return {name: value for name, value in environ.items() if name != _SPIN}


class Team:
    """Chooses between `few` and `many` threads by pairs of steps that do the same work, one after the other.

    Ask `threads` before each step and tell `took` after it. With `few` = `many` nothing is ever tried.
    """

    def __init__(self, few: int, many: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._few, self._many, self._clock = few, many, clock
        self._usual, self._pause = few, _SOON
        self._due = clock() if few < many else float("inf")
        # Shape and seconds of the first step of a pair, and what the pairs so far say.
        self._first: tuple[int, float] | None = None
        self._ratios: list[float] = []

    def threads(self, shape: int | None = None) -> int:
        """For the next step. Steps of equal `shape` do the same work; None for one that does like no other, which is never a trial."""
        if shape is None or self._first is None or self._first[0] != shape:
            return self._usual
        return self._few if self._usual == self._many else self._many

    def took(self, shape: int, seconds: float) -> None:
        """The step that was asked for with this shape is over."""
        if self._clock() < self._due:
            return
        if self._first is None or self._first[0] != shape:
            self._first = (shape, seconds)
            return
        usual, self._first = self._first[1], None
        self._ratios.append(seconds / usual if self._usual == self._few else usual / seconds)
        if len(self._ratios) < _PAIRS:
            return
        self._usual = self._many if statistics.median(self._ratios) <= _GAIN else self._few
        self._pause = _SOON if self._usual == self._many else min(2 * self._pause, _LATE)
        self._due, self._ratios = self._clock() + self._pause, []
