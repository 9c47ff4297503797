"""The paired bootstrap."""

import math
import random

import pytest

from eval.statistics import (
    Method,
    difference,
    few_different,
    grouped_bootstrap,
    paired_bootstrap,
    preferred,
    questions_needed,
)


def test_a_clear_difference_is_shown():
    generator = random.Random(1)
    base = [generator.random() for _ in range(100)]
    better = paired_bootstrap([value + 0.2 + generator.gauss(0, 0.05) for value in base], base)
    assert better.shown and better.low < better.difference < better.high


def test_noise_is_shown_as_a_difference_about_once_in_twenty():
    generator = random.Random(4)
    trials = [[generator.gauss(0, 0.3) for _ in range(60)] for _ in range(400)]
    wrong = sum(paired_bootstrap(values, [0.0] * 60, n=1000).shown for values in trials)
    assert 0.02 <= wrong / 400 <= 0.09


def test_interval_is_close_to_the_normal_one():
    generator = random.Random(2)
    values = [generator.gauss(0.1, 1) for _ in range(400)]
    mean = sum(values) / 400
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / 399 / 400)
    found = paired_bootstrap(values, [0.0] * 400)
    assert found.difference == pytest.approx(mean)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.01)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.01)


def test_pairing_seed_and_one_question():
    a, b = [0.1, 0.5, 0.9], [0.0, 0.4, 0.8]
    assert paired_bootstrap(a, b).low == pytest.approx(0.1)
    values = [1.0, 0.0, 0.5, 0.2]
    assert paired_bootstrap(values, [0.0] * 4, seed=3) == paired_bootstrap(values, [0.0] * 4, seed=3)
    assert paired_bootstrap([1.0], [0.0]) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_questions_of_a_group_are_drawn_together(method: Method) -> None:
    # Twelve documents with ten questions each, which succeed or fail as one.
    values = [1.0 if n // 10 % 3 else -1.0 for n in range(120)]
    groups = [f"document {n // 10:02}" for n in range(120)]
    apart, together = (paired_bootstrap(values, [0.0] * 120, method=method, groups=each) for each in (None, groups))
    assert apart.difference == pytest.approx(together.difference) and apart.low > 0 > together.low
    # As sure as the twelve means are by themselves.
    alone = paired_bootstrap(values[::10], [0.0] * 12, method=method)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    each = paired_bootstrap(values, [0.0] * 120, method=method, groups=[str(n).rjust(3) for n in range(120)])
    assert tuple(each) == pytest.approx(tuple(apart))
    assert paired_bootstrap(values, [0.0] * 120, method=method, groups=["one"] * 120).low == pytest.approx(apart.difference)
    with pytest.raises(ValueError, match="2 names for 120 pairs"):
        paired_bootstrap(values, [0.0] * 120, groups=["a", "b"])


def test_a_large_set_is_sliced():
    found = paired_bootstrap([1.0] * 200_000, [0.5] * 200_000, n=20)
    assert found == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([math.inf], [1.0])])
def test_bad_values(a, b):
    with pytest.raises(ValueError, match=r"paired|finite"):
        paired_bootstrap(a, b)
    with pytest.raises(ValueError, match="n: 0"):
        paired_bootstrap([1.0], [1.0], n=0)


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_are_those_of_scipy(method, confidence):
    import numpy as np
    from scipy.stats import bootstrap

    generator = np.random.default_rng(5)
    for values in (generator.exponential(1.0, 40) - 0.5, generator.choice([0.0, 1.0, -0.5], 60)):
        reference = bootstrap(
            (values,),
            np.mean,
            method={"bca": "BCa"}.get(method, method),
            n_resamples=10_000,
            confidence_level=confidence,
            rng=np.random.default_rng(1),
        ).confidence_interval
        found = paired_bootstrap(values.tolist(), [0.0] * len(values), confidence=confidence, method=method)
        assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.03)


def test_skewed_differences_are_covered_better_by_bca():
    """Lognormal differences of known mean: the percentile interval misses it above more often than it should, BCa less."""
    generator = random.Random(11)
    mean = math.exp(0.5)
    missed = {"percentile": 0, "bca": 0}
    for _ in range(300):
        values = [generator.lognormvariate(0, 1) for _ in range(25)]
        for method in missed:
            missed[method] += paired_bootstrap(values, [0.0] * 25, n=800, method=method).high < mean
    assert missed["bca"] < missed["percentile"]


def test_constant_differences_have_no_width_by_either_method():
    assert paired_bootstrap([0.5] * 12, [0.25] * 12, method="bca") == (0.25, 0.25, 0.25)
    assert paired_bootstrap([1.0], [0.0], method="bca") == (1.0, 1.0, 1.0)


def test_the_number_of_questions_that_would_show_it():
    values = [0.6, -0.5] * 50
    needed = questions_needed(values, [0.0] * 100, above=-0.02)
    assert needed is not None and needed > 100
    generator = random.Random(3)
    more = [0.05 + generator.choice([0.55, -0.55]) for _ in range(4 * needed)]
    assert paired_bootstrap(more, [0.0] * len(more)).low > -0.02
    assert questions_needed([0.5] * 10, [0.0] * 10, above=0.0) == 10
    assert questions_needed([-0.5, 0.1], [0.0, 0.0], above=0.0) is None
    assert questions_needed([0.5], [0.0], above=0.0) is None
    with pytest.raises(ValueError, match=r"confidence: 1\.0"):
        questions_needed([0.5], [0.0], above=0.0, confidence=1.0)


def test_questions_about_one_document_are_not_taken_for_many():
    dice = random.Random(3)
    by_document = [dice.gauss(0.1, 0.5) for _ in range(20)]
    values = [worth for worth in by_document for _ in range(10)]
    groups = [f"{place}.md" for place in range(20) for _ in range(10)]
    together, few = grouped_bootstrap(values, [0.0] * 200, groups)
    alone = paired_bootstrap(values, [0.0] * 200, method="bca")
    assert few == "" and together.high - together.low > 2 * (alone.high - alone.low)
    assert grouped_bootstrap([0.1] * 3, [0.0] * 3, ["a", "b", "c"])[1] == "fewer than 10 questions"
    interval, few = grouped_bootstrap(values[:90], [0.0] * 90, groups[:90])
    assert few == "fewer than 10 separate documents" and interval == paired_bootstrap(values[:90], [0.0] * 90, method="bca")


def test_a_handful_of_questions_shows_nothing_however_many_were_asked() -> None:
    names = [str(number) for number in range(300)]
    for gained, why in ((4, "only 4 of 300 differ, 6 are needed"), (6, "")):
        values = [0.7] * gained + [0.0] * (300 - gained)
        interval, few = difference(values, [0.0] * 300, names)
        assert interval.low > 0 and few == why
    # Ten questions about one document differ once.
    assert few_different([0.7] * 10 + [0.0] * 290, [0.0] * 300, ["one"] * 10 + names[10:]) == "only 1 of 291 differ, 6 are needed"
    # Where nothing is shown anyway there is nothing to explain.
    assert difference([0.0] * 300, [0.0] * 300, names)[1] == ""


def test_who_is_preferred() -> None:
    assert preferred([1.0] * 20) == "first" and preferred([0.0] * 12 + [0.5] * 8) == "second"
    assert preferred([1.0, 0.0] * 10) == "no difference shown"
    assert preferred([1.0] * 3) == "no difference shown (fewer than 10 questions)"
    assert preferred([1.0] * 4 + [0.5] * 16) == "no difference shown (only 4 of 20 differ, 6 are needed)"
