"""Whether the questions of now are still those that a router learnt from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from router.features import NAMES

# Population stability index from which a distribution has moved, and from which it has to be watched (Siddiqi 2006, "Credit risk
# scorecards", chapter 9).
MOVED: Final = 0.25
WATCH: Final = 0.1
# From fewer live questions than this nothing is said.
FEWEST: Final = 50

State = Literal["stable", "watch", "moved"]


@dataclass(frozen=True, slots=True)
class Shift:
    """How far one distribution has moved: its population stability index, the largest difference of the cumulative shares (the
    Kolmogorov-Smirnov distance over the bins), the index that chance alone exceeds in 5 of 100 cases, and what that comes to."""

    name: str
    psi: float
    ks: float
    by_chance: float
    state: State


def shift(name: str, expected: Sequence[float], seen: Sequence[float], n_expected: int, n_seen: int) -> Shift:
    """Compare two distributions over the same bins, as shares of `n_expected` and `n_seen` questions.

    ``psi = sum((seen - expected) * ln(seen / expected))`` with half a question in each empty bin. Without any change it is
    about ``(1 / n_expected + 1 / n_seen)`` times chi-squared with one degree of freedom less than bins (Yurdakul and Naranjo 2020,
    "Statistical properties of the population stability index"), whose 95th percentile is taken from Wilson and Hilferty's
    approximation (1931). Raises ValueError where the bins differ in number or a side has no questions.
    """
    if len(expected) != len(seen) or not n_expected or not n_seen:
        raise ValueError(f"{name}: {len(expected)} and {len(seen)} bins over {n_expected} and {n_seen} questions cannot be compared")
    pairs = [(max(e, 0.5 / n_expected), max(s, 0.5 / n_seen)) for e, s in zip(expected, seen, strict=True)]
    psi = sum((s - e) * math.log(s / e) for e, s in pairs)
    far, ks = 0.0, 0.0
    for e, s in zip(expected, seen, strict=True):
        far += s - e
        ks = max(ks, abs(far))
    free = len(expected) - 1
    chance = (1 / n_expected + 1 / n_seen) * free * (1 - 2 / (9 * free) + 1.645 * math.sqrt(2 / (9 * free))) ** 3 if free else 0.0
    state: State = "moved" if psi > max(MOVED, chance) else "watch" if psi > max(WATCH, chance) else "stable"
    return Shift(name, psi, ks, chance, state)


def shifts(bins: Mapping[str, Mapping[str, Sequence[float]]], rows: Sequence[Sequence[float]], n_expected: int) -> list[Shift]:
    """The shift of every feature that varied in training or varies now, the largest first; `bins` have `borders` and `shares`."""
    found: list[Shift] = []
    for place, name in enumerate(NAMES):
        known = bins.get(name)
        if known is None:
            continue
        counts = [0] * len(known["shares"])
        for row in rows:
            counts[sum(row[place] > border for border in known["borders"])] += 1
        if len(counts) > 1:
            found.append(shift(name, known["shares"], [count / len(rows) for count in counts], n_expected, len(rows)))
    return sorted(found, key=lambda one: -one.psi)


def mix_shift(expected: Mapping[str, float], seen: Mapping[str, float], n_expected: int, n_seen: int) -> Shift:
    """How far the shares of the arms have moved."""
    arms = sorted({*expected, *seen})
    return shift("arms", [expected.get(arm, 0.0) for arm in arms], [seen.get(arm, 0.0) for arm in arms], n_expected, n_seen)
