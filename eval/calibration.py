"""Whether a stated confidence can be relied on, and what refusing the least sure questions gains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Bin(NamedTuple):
    """Questions of similar confidence: its mean, the share that was right, and how many there are."""

    confidence: float
    share: float
    n: int


class Point(NamedTuple):
    """What is left if only the surest share `coverage` of the questions is answered: the mean loss among them; `threshold` is the lowest
    confidence that is answered."""

    coverage: float
    risk: float
    threshold: float


def brier(confidences: Sequence[float], right: Sequence[float]) -> float:
    """Mean squared difference in [0, 1] between confidence and outcome (Brier 1950); 0 is best. Raises ValueError as `reliability` does."""
    sure, hit = _checked(confidences, right)
    return float(((sure - hit) ** 2).mean())


def reliability(confidences: Sequence[float], right: Sequence[float], bins: int = 10) -> list[Bin]:
    """The questions in `bins` intervals of equal width over [0, 1], without empty ones.

    `right` are outcomes in [0, 1]. Raises ValueError when the two differ in length, are empty, or hold values outside [0, 1].
    """
    sure, hit = _checked(confidences, right)
    places = np.minimum((sure * bins).astype(int), bins - 1)
    return [
        Bin(float(sure[here].mean()), float(hit[here].mean()), int(here.sum())) for place in range(bins) if (here := places == place).any()
    ]


def ece(confidences: Sequence[float], right: Sequence[float], bins: int = 10) -> float:
    """Expected calibration error in [0, 1]: the mean distance between confidence and share right over the bins of `reliability`, weighed by
    their size (Guo et al. 2017, "On calibration of modern neural networks"). Raises ValueError as `reliability` does."""
    found = reliability(confidences, right, bins)
    return sum(part.n * abs(part.confidence - part.share) for part in found) / len(confidences)


def risk_coverage(confidences: Sequence[float], losses: Sequence[float]) -> list[Point]:
    """The risk at every coverage, the surest questions first (El-Yaniv and Wiener 2010, "On the foundations of noise-free selective
    classification"); questions of equal confidence come in together. Raises ValueError when the two differ in length or are empty."""
    sure, lost = _paired(confidences, losses)
    order = np.argsort(-sure, kind="stable")
    sums = np.cumsum(lost[order])
    last = [place for place in range(len(order)) if place + 1 == len(order) or sure[order[place]] != sure[order[place + 1]]]
    return [Point((place + 1) / len(order), float(sums[place] / (place + 1)), float(sure[order[place]])) for place in last]


def area_under_risk(confidences: Sequence[float], losses: Sequence[float]) -> float:
    """The mean risk over all coverages (AURC, Geifman et al. 2019); lower is better. Raises ValueError as `risk_coverage` does."""
    found = risk_coverage(confidences, losses)
    before = [0.0, *(point.coverage for point in found)]
    return sum((point.coverage - start) * point.risk for point, start in zip(found, before, strict=False))


def threshold_for(confidences: Sequence[float], losses: Sequence[float], target: float) -> Point | None:
    """The point of the greatest coverage whose risk is at most `target`; None if there is none. Raises ValueError like `risk_coverage`."""
    within = [point for point in risk_coverage(confidences, losses) if point.risk <= target]
    return max(within, key=lambda point: point.coverage, default=None)


def _paired(one: Sequence[float], two: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    if len(one) != len(two) or not len(one):
        raise ValueError(f"a confidence and an outcome of each question are needed, at least one; got {len(one)} and {len(two)}")
    return np.asarray(one, dtype=np.float64), np.asarray(two, dtype=np.float64)


def _checked(confidences: Sequence[float], right: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    sure, hit = _paired(confidences, right)
    if not (((sure >= 0) & (sure <= 1)).all() and ((hit >= 0) & (hit <= 1)).all()):
        raise ValueError("confidences and outcomes must be between 0 and 1")
    return sure, hit
