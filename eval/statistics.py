"""Whether a difference between two arms is more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Method = Literal["percentile", "bca"]
# From fewer questions, or questions about fewer separate documents, a resampled interval is too narrow to show anything.
FEWEST: Final = 10
# So many questions, or groups of them, must differ at all before a difference is shown: four that all gain give an interval above zero,
# since hardly any resample holds none of them, but a sign test of five does not reach 95 % (2 * 0.5**5 > 0.05).
FEWEST_DIFFERENT: Final = 6


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
    groups: Sequence[str] | None = None,
) -> Interval:
    """Mean of ``a - b`` over paired questions with its two-sided interval from `n` resamples of the questions.

    With `groups`, one name a question, whole groups are resampled: questions about one document succeed and fail together, and taken one
    by one would promise more certainty than they give (Davison and Hinkley 1997, "Bootstrap methods and their application", section 3.8).

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
    sums, sizes = _grouped(differences, groups)
    generator = np.random.default_rng(seed)
    # In slices of about a million draws, so that memory stays small for large sets.
    rows = max(1, 1_000_000 // len(sums))
    slices = []
    for start in range(0, n, rows):
        drawn = generator.integers(0, len(sums), (min(rows, n - start), len(sums)))
        slices.append(sums[drawn].sum(axis=1) / (len(sums) if groups is None else sizes[drawn].sum(axis=1)))
    means = np.concatenate(slices)
    tail = (1 - confidence) / 2
    shares = _accelerated(sums, sizes, means, tail) if method == "bca" else (tail, 1 - tail)
    low, high = np.quantile(means, shares)
    return Interval(float(differences.mean()), float(low), float(high))


def grouped_bootstrap(a: Sequence[float], b: Sequence[float], groups: Sequence[str], *, confidence: float = 0.95) -> tuple[Interval, str]:
    """The BCa interval of `paired_bootstrap` over whole groups, and why it shows nothing, '' if it may.

    FEWEST pairs of FEWEST groups are needed. Fewer groups cannot be resampled: the interval is then over the single pairs.
    """
    separate = len(set(groups))
    few = f"fewer than {FEWEST} questions" if len(a) < FEWEST else f"fewer than {FEWEST} separate documents" if separate < FEWEST else ""
    return paired_bootstrap(a, b, confidence=confidence, method="bca", groups=None if few else groups), few


def difference(a: Sequence[float], b: Sequence[float], groups: Sequence[str]) -> tuple[Interval, str]:
    """As `grouped_bootstrap`, for whether ``a - b`` differs from nothing: that also needs FEWEST_DIFFERENT groups in which it does."""
    interval, few = grouped_bootstrap(a, b, groups)
    return interval, few or (few_different(a, b, groups) if interval.shown else "")


def preferred(shares: Sequence[float]) -> str:
    """Which of two is preferred: "first", "second", or that no difference is shown, and why if too few were asked. `shares` say of each
    question how far the first was preferred, in [0, 1], 0.5 for neither. Raises ValueError like `paired_bootstrap`."""
    interval, few = difference(shares, [0.5] * len(shares), [str(number) for number in range(len(shares))])
    if few or not interval.shown:
        return not_shown(few)
    return "first" if interval.low > 0 else "second"


def not_shown(few: str) -> str:
    """In words, that there may be nothing but chance; `few` is why nothing could be shown, '' if enough was asked."""
    return f"no difference shown ({few})" if few else "no difference shown"


def few_different(a: Sequence[float], b: Sequence[float], groups: Sequence[str] | None = None) -> str:
    """Why `a` and `b` differ in too few places to show anything, '' if in enough. Raises ValueError like `paired_bootstrap`."""
    sums, _ = _grouped(_differences(a, b), groups)
    different = int((np.abs(sums) > 1e-9).sum())
    return "" if different >= FEWEST_DIFFERENT else f"only {different} of {len(sums)} differ, {FEWEST_DIFFERENT} are needed"


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


def _grouped(differences: NDArray[np.float64], groups: Sequence[str] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sum of the differences of each group and the number of its questions; without groups each question is one."""
    if groups is None:
        return differences, np.ones(len(differences))
    if len(groups) != len(differences):
        raise ValueError(f"groups: {len(groups)} names for {len(differences)} pairs; give one for each")
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(place, weights=differences)
    return sums.astype(np.float64), np.bincount(place).astype(np.float64)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: {confidence}; give a share between 0 and 1, for example 0.95")


def _accelerated(sums: NDArray[np.float64], sizes: NDArray[np.float64], means: NDArray[np.float64], tail: float) -> tuple[float, float]:
    """The shares of the resampled means that bound the BCa interval; the plain ones where the differences do not vary."""
    normal = NormalDist()
    if len(sums) < 2:
        return tail, 1 - tail
    mean = sums.sum() / sizes.sum()
    # Ties count half, as resampled means of few distinct values often equal the mean.
    below = float((means < mean).mean() + (means == mean).mean() / 2)
    # How far the mean moves when a group is left out.
    moved = mean - (sums.sum() - sums) / (sizes.sum() - sizes)
    moved -= moved.mean()
    spread = float((moved**2).sum())
    if spread < 1e-24 or not 0 < below < 1:
        return tail, 1 - tail
    bias = normal.inv_cdf(below)
    acceleration = float((moved**3).sum()) / (6 * spread**1.5)

    def share(z: float) -> float:
        return normal.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))

    return share(normal.inv_cdf(tail)), share(normal.inv_cdf(1 - tail))
