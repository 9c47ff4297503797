"""The paired bootstrap."""

import math
import random

import pytest

from eval.statistics import paired_bootstrap


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


def test_a_large_set_is_sliced():
    found = paired_bootstrap([1.0] * 200_000, [0.5] * 200_000, n=20)
    assert found == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([math.inf], [1.0])])
def test_bad_values(a, b):
    with pytest.raises(ValueError, match=r"paired|finite"):
        paired_bootstrap(a, b)
    with pytest.raises(ValueError, match="n: 0"):
        paired_bootstrap([1.0], [1.0], n=0)
