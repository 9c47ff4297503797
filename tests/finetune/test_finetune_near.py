from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from finetune.near import STOP_WEIGHT, THRESHOLD, Overlap, group, near_duplicates, overlaps
from retrieval.text import content_words, normalise_question, words


def _exact(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    """Every pair compared with every other, by the definition."""
    sets = [set(words(normalise_question(text))) for text in texts]
    frequency = Counter(word for found in sets for word in found)
    weight = {word: math.log(1 + len(texts) / count) * (1.0 if content_words(word) else STOP_WEIGHT) for word, count in frequency.items()}

    def similarity(a: set[str], b: set[str]) -> float:
        union = sum(weight[word] for word in a | b)
        return sum(weight[word] for word in a & b) / union if union else 0.0

    return {(i, j) for (i, a), (j, b) in combinations(enumerate(sets), 2) if similarity(a, b) >= threshold}


def test_prefix_filtering_finds_what_comparing_all_finds() -> None:
    dice = random.Random(1)
    names = [f"name{number}" for number in range(40)] + ["费用", "合同", "期限", "what", "the", "is"]
    texts = list({frozenset(text): " ".join(text) for text in (dice.sample(names, dice.randint(2, 7)) for _ in range(300))}.values())
    for threshold in (0.3, 0.5, 0.7):
        expected = _exact(texts, threshold)
        assert expected
        assert {(i, j) for i, j, _ in near_duplicates(texts, threshold)} == expected


def test_thousands_of_texts_of_the_same_few_words_hide_no_near_ones() -> None:
    """Each has more than a thousand candidates."""
    dice = random.Random(0)
    names = [f"word{number:02}" for number in range(24)]
    sets = list({tuple(sorted(dice.sample(names, 9))) for _ in range(2500)})
    texts = [" ".join(dice.sample(found, 9)) for found in sets]
    has = np.array([[name in found for name in names] for found in sets], float)
    common = (has * np.log(1 + len(texts) / has.sum(0))) @ has.T
    own = np.diag(common)
    near = np.triu(common / (own[:, None] + own - common) >= THRESHOLD, 1)
    expected = set(zip(*(places.tolist() for places in near.nonzero()), strict=True))
    assert len(expected) > 100
    assert {(i, j) for i, j, _ in near_duplicates(texts)} == expected
    home = {number: place for place, members in enumerate(group(texts)) for number in members}
    assert all(home[i] == home[j] for i, j in expected)
    # Of the first half, those that the second half asks too.
    half = len(texts) // 2
    assert {item.left for item in overlaps(texts[:half], texts[half:])} == {i for i, j in expected if i < half <= j}


def test_of_the_many_copies_of_a_form_some_are_listed_and_all_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.near.MAX_LISTED", 20)
    form = " ".join(f"form{number}" for number in range(120))
    texts = [f"{form} item{number}" for number in range(60)]
    times = Counter(right for _, right, _ in near_duplicates(texts))
    assert max(times.values()) == 20 and set(times) == set(range(1, 60))
    assert group(texts) == [list(range(60))]
    assert len(overlaps(texts[1::2], texts[::2])) == 30


def test_small_edits_are_near_and_other_subjects_are_not() -> None:
    texts = [
        "What are the symptoms of chronic kidney disease?",
        "what are the symptoms for Chronic Kidney Disease",
        "What are the symptoms of asthma?",
        "人民币账户的年度管理费用是多少？",
        "人民币账户年度的管理费用是多少呢",
        "美元贷款的逾期罚息怎么计算？",
        *(f"What are the symptoms of {name}?" for name in ("gout", "flu", "anemia", "rickets", "scurvy", "measles")),
    ]
    found = {(i, j) for i, j, _ in near_duplicates(texts)}
    assert (0, 1) in found
    assert not any(2 in pair or 5 in pair for pair in found)


def test_groups_join_equal_questions_in_any_number() -> None:
    assert group(["A fee?", "Other", "a FEE", "其他", "a fee!"]) == [[0, 2, 4], [1], [3]]
    assert group(["same"] * 50_000) == [list(range(50_000))]
    assert group([]) == []
    assert group(["?", "!", ""]) == [[0, 1, 2]]


def test_texts_of_the_same_words_are_listed_with_the_first_only() -> None:
    found = near_duplicates(["fee for cards", "Cards: fee for?", "for cards fee", "加班费", "其他"])
    assert found == [(0, 1, 1.0), (0, 2, 1.0)]


def test_overlaps_of_two_lists_name_the_closest() -> None:
    trained = ["门诊挂号费是多少？", "How long may visitors stay in the ward?", "Where is parking?", "Who signs?"]
    asked = [
        "Something else altogether",
        "how long may visitors stay in the ward",
        "门诊挂号费是多少",
        "How long may visitors stay in the wards?",
        "How long may visitors stay in this ward?",
    ]
    found = overlaps(asked, trained)
    assert [(item.left, item.right, item.exact) for item in found] == [(1, 1, True), (2, 0, True), (4, 1, False)]
    assert found[0] == Overlap(1, 1, 1.0, True)
    assert 0.8 <= found[2].similarity < 1
    assert overlaps([], trained) == overlaps(asked, []) == []
    assert [item.left for item in overlaps(["same"] * 20_000, ["Same?"] * 20_000)] == list(range(20_000))


def test_overlaps_agree_with_comparing_all() -> None:
    dice = random.Random(2)
    names = [f"name{number}" for number in range(30)] + ["费用", "合同", "the", "is"]
    texts = [" ".join(dice.sample(names, dice.randint(2, 6))) for _ in range(200)]
    left, right = texts[:120], texts[120:]
    near = _exact(texts, 0.6)
    expected = {i for i, j in near if i < 120 <= j} | {
        i for i, text in enumerate(left) if any(set(text.split()) == set(o.split()) for o in right)
    }
    assert {item.left for item in overlaps(left, right, 0.6)} == expected
