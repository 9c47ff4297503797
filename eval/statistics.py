"""Whether a difference between two arms is more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Method = Literal["percentile", "bca"]


class Interval(NamedTuple):
    """A mean difference with its confidence interval."""

    difference: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    n: int = 10_000,
    seed: int = 0,
    *,
    confidence: float = 0.95,
    method: Method = "percentile",
) -> Interval:
    """Mean of ``a - b`` over paired questions with its two-sided interval from `n` resamples of the questions.

    Percentile bootstrap: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13; "bca" (bias-corrected and
    accelerated, ibid. chapter 14) moves the percentiles where the differences are skewed, which few questions often are. Paired by
    question as in Koehn 2004, "Statistical significance tests for machine translation evaluation". The same seed gives the same
    interval. Raises ValueError when the sequences are empty, differ in length or hold values that are not finite, `n` < 1, or
    `confidence` is not between 0 and 1.
    """
    differences = _differences(a, b)
    if n < 1:
        raise ValueError(f"n: {n} resamples; give at least 1")
    _check_confidence(confidence)
    generator = np.random.default_rng(seed)
    # In slices of about a million draws, so that memory stays small for large sets.
    rows = max(1, 1_000_000 // len(differences))
    means = np.concatenate(
        [
            differences[generator.integers(0, len(differences), (min(rows, n - start), len(differences)))].mean(axis=1)
            for start in range(0, n, rows)
        ]
    )
    tail = (1 - confidence) / 2
    shares = _accelerated(differences, means, tail) if method == "bca" else (tail, 1 - tail)
    low, high = np.quantile(means, shares)
    return Interval(float(differences.mean()), float(low), float(high))


def questions_needed(a: Sequence[float], b: Sequence[float], above: float, confidence: float = 0.95) -> int | None:
    """How many questions would put the lower bound of ``mean(a - b)`` above `above`, if the mean and the spread stay what they are here.

    ``(z * s / (mean - above))**2`` of the normal interval; at least the number there is. None where the mean is not above `above`, so that
    no number would do, or where one question says nothing about the spread. Raises ValueError like `paired_bootstrap`.
    """
    differences = _differences(a, b)
    _check_confidence(confidence)
    room = float(differences.mean()) - above
    if room <= 0 or len(differences) < 2:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return max(len(differences), math.ceil((z * float(differences.std(ddof=1)) / room) ** 2))


def _differences(a: Sequence[float], b: Sequence[float]) -> NDArray[np.float64]:
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired values are needed, at least one pair; got {len(a)} and {len(b)}")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if not np.isfinite(differences).all():
        raise ValueError("all values must be finite numbers")
    return differences


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence}; give a share between 0 and 1, for example 0.95")


def _accelerated(differences: NDArray[np.float64], means: NDArray[np.float64], tail: float) -> tuple[float, float]:
    """The shares of the resampled means that bound the BCa interval; the plain ones where the differences do not vary."""
    normal = NormalDist()
    mean = differences.mean()
    # Ties count half, as resampled means of few distinct values often equal the mean.
    below = float((means < mean).mean() + (means == mean).mean() / 2)
    spread = float(((differences - mean) ** 2).sum())
    if spread == 0 or not 0 < below < 1:
        return tail, 1 - tail
    bias = normal.inv_cdf(below)
    # Of the mean, the jackknife's values are (sum - x) / (n - 1), so their deviations are those of x over n - 1.
    acceleration = float(((differences - mean) ** 3).sum()) / (6 * spread**1.5)

    def share(z: float) -> float:
        return normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))

    return share(normal.inv_cdf(tail)), share(normal.inv_cdf(1 - tail))
