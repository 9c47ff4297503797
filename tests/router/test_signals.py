"""Features of questions and evidence, in both languages."""

import math

import pytest

from retrieval.types import Evidence
from router.signals import evidence_features, question_features


@pytest.mark.parametrize(
    ("question", "lang", "wanted"),
    [
        ("How many days of notice does clause 14 require?", "en", {"q_numbers", "q_clauses", "q_exact"}),
        ("What is the current fee as of 2026-02-01?", "en", {"q_numbers", "q_dates", "q_exact", "q_recent"}),
        ("Why is apixaban stopped before surgery?", "en", {"q_reason"}),
        ("Compare the 2025 and the 2026 schedule", "en", {"q_numbers", "q_dates", "q_compare"}),
        ("How should we handle a late parcel?", "en", {"q_reason"}),
        ("根据第十二条，违约金是多少？", "zh", {"q_clauses", "q_exact", "q_zh"}),
        ("目前最新的转账手续费标准", "zh", {"q_recent", "q_exact", "q_zh"}),
        ("为什么要在手术前停药？", "zh", {"q_reason", "q_zh"}),
        ("2025版和2026版有什么区别？", "zh", {"q_numbers", "q_dates", "q_compare", "q_zh"}),
        ("Tell me about parking", "en", set()),
    ],
)
def test_question_cues(question, lang, wanted):
    found = question_features(question, lang)
    assert {name for name, value in found.items() if value and name not in ("q_words", "q_chars")} == wanted


@pytest.mark.parametrize(
    ("question", "lang"), [("", "en"), ("？", "zh"), ("what is the fee " * 7000, "en"), ("手续费是多少" * 17_000, "zh")]
)
def test_empty_and_huge_questions(question, lang):
    found = question_features(question, lang)
    assert found["q_chars"] == len(question)
    assert all(math.isfinite(value) for value in found.values())
    assert found["q_words"] <= 2000


def test_evidence_without_passages_or_finite_signals():
    found = evidence_features(Evidence("q", (), None, {"dense_top": math.nan, "lexical_top": math.inf, "overlap": 0.5}), "en")
    assert found == {"e_overlap": 0.5, "e_foreign": 0.0, "e_top_chars": 0.0, "e_flagged": 0.0}
