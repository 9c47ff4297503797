"""Support and predicted quality: bounded, monotone, and fair to Chinese and to passages in another language."""

import itertools

import pytest

from router.predict import predict, support
from router.settings import PolicySettings
from router.signals import features
from router.types import ARMS

SETTINGS = PolicySettings()


def supported(found):
    return support(features(found), SETTINGS)


def test_support_grows_with_cosine_and_coverage(situation):
    steps = [(0.7, 0.0), (0.85, 0.2), (0.85, 0.6), (0.89, 0.6), (0.95, 1.0)]
    values = [supported(situation(dense=dense, coverage=coverage)) for dense, coverage in steps]
    assert values == sorted(values) and values[0] == 0 and values[-1] == 1
    assert supported(situation(dense=None)) == 0


def test_equal_cosines_say_less_in_chinese_and_more_across_languages(situation):
    english, chinese = (supported(situation("q", lang, 0.87, 0.0)) for lang in ("en", "zh"))
    across = supported(situation("每月管理费是多少？", "zh", 0.87, 0.0, passage_lang="en"))
    assert chinese < english < across


def test_without_a_cosine_the_words_count_alone(situation):
    found = {name: value for name, value in features(situation(coverage=0.7)).items() if name != "e_dense_top"}
    assert support(found, SETTINGS) == 0.7


def test_quality_is_bounded_and_refusing_is_worth_less_the_better_the_evidence(situation, adapter):
    for near, stale in itertools.product((None, 0.85, 1.0), (0.0, 1.0)):
        worth = []
        for dense in (0.7, 0.86, 0.95):
            found = situation(dense=dense, adapter=adapter(nearest_question=near, stale_share=stale), verified=0.4)
            expected = predict(ARMS, found, features(found), SETTINGS)
            assert set(expected) == set(ARMS) and all(0 <= entry.quality <= 1 for entry in expected.values())
            assert expected["verified"].quality == pytest.approx(0.4)
            worth.append(expected["refuse"].quality)
        assert worth == sorted(worth, reverse=True)
