"""Agreement against published examples and scikit-learn."""

from __future__ import annotations

import random

import pytest

from eval.agreement import Level, Weights, cohen_kappa, krippendorff_alpha

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": the data of sections A, B and C ("." is missing).
BINARY = ("0100000010", "1110010000")
NOMINAL = ("aabbdcccedda", "babbbccceddd")
FOUR = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def units(rows: tuple[str, ...]) -> list[list[str | None]]:
    return [[None if value == "." else value for value in unit] for unit in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("rows", "level", "published"),
    [
        (BINARY, "nominal", 0.095),
        (NOMINAL, "nominal", 0.692),
        (FOUR, "nominal", 0.743),
        (FOUR, "ordinal", 0.815),
        (FOUR, "interval", 0.849),
    ],
)
def test_alpha_is_that_of_the_paper(rows: tuple[str, ...], level: Level, published: float) -> None:
    found = krippendorff_alpha(units(rows), level)
    assert found.value == pytest.approx(published, abs=0.0006)
    assert found.low is not None and found.high is not None and found.low <= found.value <= found.high
    if rows is FOUR:
        # The last unit was judged once, so nothing there can be paired.
        assert (found.units, found.ratings) == (11, 40)


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_kappa_is_that_of_scikit_learn(weights: Weights) -> None:
    from sklearn.metrics import cohen_kappa_score

    dice = random.Random(3)
    first = [dice.randint(1, 5) for _ in range(200)]
    second = [value if dice.random() < 0.6 else dice.randint(1, 5) for value in first]
    expected = cohen_kappa_score(first, second, weights=None if weights == "none" else weights)
    found = cohen_kappa(first, second, weights, (1, 2, 3, 4, 5))
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low is not None and found.high is not None and found.low < expected < found.high and found.high - found.low < 0.4


def test_kappa_of_cohens_textbook_table() -> None:
    # Yes/no of two readers on 50 applications: 20 both yes, 15 both no, 5 and 10 apart; kappa = (0.7 - 0.5) / (1 - 0.5).
    first = ["是"] * 25 + ["否"] * 25
    second = ["是"] * 20 + ["否"] * 5 + ["是"] * 10 + ["否"] * 15
    assert cohen_kappa(first, second).value == pytest.approx(0.4)


def test_the_distance_of_unused_categories_counts() -> None:
    first, second = [1, 1, 5, 5, 1], [1, 5, 5, 5, 2]
    assert cohen_kappa(first, second, "linear", (1, 2, 3, 4, 5)).value != cohen_kappa(first, second, "linear").value


def test_what_nobody_judged_twice_is_undefined() -> None:
    for found in (cohen_kappa([], []), krippendorff_alpha([]), krippendorff_alpha([[1, None], [None, 2]]), cohen_kappa([1], [None])):
        assert (found.value, found.low, found.high, found.units) == (None, None, None, 0)
    assert cohen_kappa(["好"] * 5, ["好"] * 5).value is None and krippendorff_alpha([["好", "好"]] * 5).value is None
    assert krippendorff_alpha([[1, 1], [2, 2]]).value == 1


def test_the_same_seed_gives_the_same_interval() -> None:
    data = units(FOUR)
    assert krippendorff_alpha(data, "ordinal", seed=1) == krippendorff_alpha(data, "ordinal", seed=1)
    assert krippendorff_alpha(data, "ordinal", n=0).low is None


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="same units; got 1 and 2"):
        cohen_kappa([1], [1, 2])
    with pytest.raises(ValueError, match="9 is none of the categories 1, 2"):
        cohen_kappa([1, 9], [1, 2], "none", (1, 2))
    with pytest.raises(ValueError, match="resamples"):
        krippendorff_alpha([[1, 2]], n=-1)
