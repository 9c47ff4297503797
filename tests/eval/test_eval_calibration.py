"""Calibration and risk-coverage against scikit-learn and examples worked by hand."""

import random

import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from eval.calibration import area_under_risk, brier, ece, reliability, risk_coverage, threshold_for


def test_against_scikit_learn() -> None:
    draw = random.Random(3)
    sure = [draw.random() for _ in range(500)]
    right = [float(draw.random() < value**2) for value in sure]
    assert brier(sure, right) == pytest.approx(brier_score_loss(right, sure))
    shares, means = calibration_curve(right, sure, n_bins=10)
    found = reliability(sure, right)
    assert [part.share for part in found] == pytest.approx(list(shares))
    assert [part.confidence for part in found] == pytest.approx(list(means))
    assert ece(sure, right) == pytest.approx(sum(part.n * abs(part.share - part.confidence) for part in found) / 500)


def test_by_hand() -> None:
    assert ece([0.9, 0.9, 0.1, 0.1], [1, 0, 0, 0]) == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)
    assert brier([1, 0], [1, 0]) == ece([1, 0], [1, 0]) == 0
    assert [part.n for part in reliability([1.0, 0.0], [1, 1])] == [1, 1]


def test_risk_coverage() -> None:
    found = risk_coverage([0.9, 0.8, 0.8, 0.1], [0, 0, 1, 1])
    assert found == [(0.25, 0.0, 0.9), (0.75, pytest.approx(1 / 3), 0.8), (1.0, 0.5, 0.1)]
    assert area_under_risk([0.9, 0.8, 0.8, 0.1], [0, 0, 1, 1]) == pytest.approx(0.25 * 0 + 0.5 / 3 + 0.25 * 0.5)
    assert threshold_for([0.9, 0.8, 0.8, 0.1], [0, 0, 1, 1], 0.4) == found[1]
    assert threshold_for([0.5], [1], 0.4) is None


def test_bad_values() -> None:
    with pytest.raises(ValueError, match="at least one"):
        brier([], [])
    with pytest.raises(ValueError, match="at least one"):
        risk_coverage([0.5], [])
    with pytest.raises(ValueError, match="between 0 and 1"):
        ece([1.2], [1])
