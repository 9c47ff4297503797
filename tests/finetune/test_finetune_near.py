from __future__ import annotations

import math
import random
from collections import Counter
from itertools import combinations

from finetune.near import STOP_WEIGHT, group, near_duplicates
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
    texts = [" ".join(dice.sample(names, dice.randint(2, 7))) for _ in range(300)]
    for threshold in (0.3, 0.6, 0.9):
        expected = _exact(texts, threshold)
        assert expected
        assert {(i, j) for i, j, _ in near_duplicates(texts, threshold)} == expected


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
