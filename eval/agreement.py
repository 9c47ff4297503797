"""How far several people (or a person and a model) agree: Cohen's kappa and Krippendorff's alpha, with bootstrap intervals.

Both are functions of one matrix that is a sum over the units judged, so that a resample of the units is a weighted sum of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Weights = Literal["none", "linear", "quadratic"]
Level = Literal["nominal", "ordinal", "interval"]
_Matrix = NDArray[np.float64]
# Values of one resampled slice, so that memory stays small where there are many values or units.
_SLICE = 4_000_000


class Agreement(NamedTuple):
    """An agreement with its interval; None where it is undefined (nothing judged twice, or nobody ever used a second value).

    `units` were judged by at least two, `ratings` is the number of judgements on them.
    """

    value: float | None
    low: float | None
    high: float | None
    units: int
    ratings: int


def cohen_kappa(
    first: Sequence[Any],
    second: Sequence[Any],
    weights: Weights = "none",
    categories: Sequence[Any] | None = None,
    *,
    n: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Agreement:
    """Kappa of two raters over the same units; a unit that one of them did not judge (None) is left out.

    Plain: Cohen 1960, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20(1). Weighted: Cohen
    1968, "Weighted kappa", Psychological Bulletin 70(4), with weights by the distance of the places in `categories` (default: the values
    there are, sorted), or its square. The interval is the percentile bootstrap of `n` resamples of the units.
    Raises ValueError for sequences of different lengths, or a value that is not in `categories`.
    """
    if len(first) != len(second):
        raise ValueError(f"kappa compares two raters on the same units; got {len(first)} and {len(second)} ratings")
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    places = _places([value for pair in both for value in pair], categories)
    size = len(places)
    units = np.zeros((len(both), size, size))
    for number, (a, b) in enumerate(both):
        units[number, places[a], places[b]] = 1
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(np.float64)
    cost = {"none": (distance > 0).astype(np.float64), "linear": distance, "quadratic": distance**2}[weights]

    def kappa(confusion: _Matrix) -> _Matrix:
        expected = confusion.sum(-1)[..., :, None] * confusion.sum(-2)[..., None, :]
        return _one_minus((confusion * cost).sum((-1, -2)) * confusion.sum((-1, -2)), (expected * cost).sum((-1, -2)))

    return _estimate(units, kappa, 2 * len(both), n, seed, confidence)


def krippendorff_alpha(
    ratings: Sequence[Sequence[Any]],
    level: Level = "nominal",
    *,
    n: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Agreement:
    """Alpha of any number of raters; `ratings` has one entry for each unit, which lists its ratings (None: not judged by that rater).

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability" (Annenberg School for Communication, departmental papers 43): the
    coincidence matrix of section C, with its difference functions for nominal and ordinal values, and for interval ones (numbers). The
    interval is the percentile bootstrap of `n` resamples of the units (Hayes and Krippendorff 2007 resample pairs instead).
    """
    judged = [[value for value in unit if value is not None] for unit in ratings]
    judged = [unit for unit in judged if len(unit) > 1]
    places = _places([value for unit in judged for value in unit], None)
    size = len(places)
    units = np.zeros((len(judged), size, size))
    for number, unit in enumerate(judged):
        counts = np.bincount([places[value] for value in unit], minlength=size).astype(np.float64)
        units[number] = (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    numbers = np.asarray([float(value) for value in places] if level == "interval" else range(size), dtype=np.float64)

    def alpha(coincidences: _Matrix) -> _Matrix:
        totals = coincidences.sum(-1)
        difference: _Matrix
        if level == "ordinal":
            # Ranks between two values: all of those from one to the other, the ends by half.
            ranks = np.cumsum(totals, axis=-1) - totals / 2
            difference = (ranks[..., :, None] - ranks[..., None, :]) ** 2
        elif level == "interval":
            difference = np.subtract.outer(numbers, numbers) ** 2
        else:
            difference = 1 - np.eye(size)
        expected = totals[..., :, None] * totals[..., None, :]
        observed = (coincidences * difference).sum((-1, -2)) * (totals.sum(-1) - 1)
        return _one_minus(observed, (expected * difference).sum((-1, -2)))

    return _estimate(units, alpha, sum(len(unit) for unit in judged), n, seed, confidence)


def _places(values: Sequence[Any], categories: Sequence[Any] | None) -> dict[Any, int]:
    known = sorted(set(values)) if categories is None else list(categories)
    if unknown := set(values) - set(known):
        raise ValueError(f"{sorted(map(repr, unknown))[0]} is none of the categories {', '.join(map(repr, known))}")
    return {value: place for place, value in enumerate(known)}


def _one_minus(observed: _Matrix, expected: _Matrix) -> _Matrix:
    """1 - observed / expected, NaN where nothing could have differed."""
    defined = expected > 0
    return np.where(defined, 1 - observed / np.where(defined, expected, 1), np.nan)


def _estimate(units: _Matrix, statistic: Callable[[_Matrix], _Matrix], ratings: int, n: int, seed: int, confidence: float) -> Agreement:
    if n < 0 or not 0 < confidence < 1:
        raise ValueError(f"n: {n} resamples at confidence {confidence}; give at least 0, and a share between 0 and 1")
    count, size = len(units), units.shape[1]
    value = float(statistic(units.sum(0))) if count else float("nan")
    if np.isnan(value):
        return Agreement(None, None, None, count, ratings)
    generator = np.random.default_rng(seed)
    flat = units.reshape(count, size * size)
    step = max(1, _SLICE // max(count, size * size))
    drawn = [
        statistic((generator.multinomial(count, [1 / count] * count, min(step, n - start)) @ flat).reshape(-1, size, size))
        for start in range(0, n, step)
    ]
    resampled = np.concatenate(drawn) if drawn else np.empty(0)
    # A resample in which everybody said the same says nothing.
    resampled = resampled[~np.isnan(resampled)]
    if count < 2 or not len(resampled):
        return Agreement(value, None, None, count, ratings)
    low, high = np.quantile(resampled, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Agreement(value, float(low), float(high), count, ratings)
