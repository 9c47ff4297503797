"""Whether the questions of now are still those that a router learnt from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal

from router.features import NAMES, Row

# Population stability index from which a distribution has moved, and from which it has to be watched (Siddiqi 2006, "Credit risk
# scorecards", chapter 9).
MOVED: Final = 0.25
WATCH: Final = 0.1
# From fewer live questions than this nothing is said.
FEWEST: Final = 50
# So many decimals of a feature are compared.
_DIGITS: Final = 6

Bins = dict[str, dict[str, list[float]]]

State = Literal["stable", "watch", "moved"]


@dataclass(frozen=True, slots=True)
class Shift:
    """How far one distribution has moved: its population stability index, the largest difference of the cumulative shares (the
    Kolmogorov-Smirnov distance over the bins), the index that chance alone exceeds in 5 of 100 comparisons, of as many distributions as
    were compared at once, and what that comes to."""

    name: str
    psi: float
    ks: float
    by_chance: float
    state: State


def recorded(row: Row) -> Row:
    """The numbers of a question as they are kept and compared: rounded, so that equal ones stay equal."""
    return tuple(round(value, _DIGITS) for value in row)


def bins_of(rows: Sequence[Row]) -> Bins:
    """For each feature the inner borders of at most ten bins (`borders`), a value on a border belonging to the bin below it, and the share
    of the rows in each (`shares`): deciles, and where many share the least value a bin for what lies below it."""
    import numpy as np

    table = np.array([recorded(row) for row in rows])
    found: Bins = {}
    for place, name in enumerate(NAMES):
        column = table[:, place]
        borders = np.unique(np.quantile(column, np.linspace(0.1, 0.9, 9)))
        if borders[0] <= column.min():
            borders = np.insert(borders, 0, column.min() - 0.5 * 10**-_DIGITS)
        counts = np.bincount(np.searchsorted(borders, column, side="left"), minlength=len(borders) + 1)
        found[name] = {"borders": borders.tolist(), "shares": (counts / len(rows)).tolist()}
    return found


def shift(name: str, expected: Sequence[float], seen: Sequence[float], n_expected: int, n_seen: int, compared: int = 1) -> Shift:
    """Compare two distributions over the same bins, as shares of `n_expected` and `n_seen` questions; one of `compared` comparisons.

    ``psi = sum((seen - expected) * ln(seen / expected))`` over the bins that are not empty on both sides, with half a question where one
    is. Without any change it is about ``(1 / n_expected + 1 / n_seen)`` times chi-squared with one degree of freedom less than bins
    (Yurdakul and Naranjo 2020, "Statistical properties of the population stability index"), whose percentile is taken from Wilson and
    Hilferty's approximation (1931): the 95th, or with several comparisons the one that chance exceeds in 5 % of the cases in any of them
    (Bonferroni). Raises ValueError where the bins differ in number or a side has no questions.
    """
    if len(expected) != len(seen) or not n_expected or not n_seen:
        raise ValueError(f"{name}: {len(expected)} and {len(seen)} bins over {n_expected} and {n_seen} questions cannot be compared")
    pairs = [(max(e, 0.5 / n_expected), max(s, 0.5 / n_seen)) for e, s in zip(expected, seen, strict=True) if e or s]
    psi = sum((s - e) * math.log(s / e) for e, s in pairs)
    far, ks = 0.0, 0.0
    for e, s in zip(expected, seen, strict=True):
        far += s - e
        ks = max(ks, abs(far))
    free = len(pairs) - 1
    z = NormalDist().inv_cdf(1 - 0.05 / compared)
    chance = (1 / n_expected + 1 / n_seen) * free * (1 - 2 / (9 * free) + z * math.sqrt(2 / (9 * free))) ** 3 if free else 0.0
    state: State = "moved" if psi > max(MOVED, chance) else "watch" if psi > max(WATCH, chance) else "stable"
    return Shift(name, psi, ks, chance, state)


def shifts(bins: Mapping[str, Mapping[str, Sequence[float]]], rows: Sequence[Sequence[float]], n_expected: int) -> list[Shift]:
    """The shift of every feature that varied in training or varies now, the largest first; `bins` as `bins_of` makes them, `rows` as
    `recorded`."""
    varied: list[tuple[str, Sequence[float], list[float]]] = []
    for place, name in enumerate(NAMES):
        known = bins.get(name)
        if known is None:
            continue
        counts = [0] * len(known["shares"])
        for row in rows:
            counts[sum(row[place] > border for border in known["borders"])] += 1
        if sum(bool(count or share) for count, share in zip(counts, known["shares"], strict=True)) > 1:
            varied.append((name, known["shares"], [count / len(rows) for count in counts]))
    found = [shift(name, expected, seen, n_expected, len(rows), len(varied)) for name, expected, seen in varied]
    return sorted(found, key=lambda one: -one.psi)


def mix_shift(expected: Mapping[str, float], seen: Mapping[str, float], n_expected: int, n_seen: int) -> Shift:
    """How far the shares of the arms have moved."""
    arms = sorted({*expected, *seen})
    return shift("arms", [expected.get(arm, 0.0) for arm in arms], [seen.get(arm, 0.0) for arm in arms], n_expected, n_seen)
