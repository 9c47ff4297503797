"""Utility, the measures of an outcome and of an arm."""

import pytest
import sacrebleu

from eval.metrics import of_arm, of_outcome, percentile
from eval.types import EvalError, Item, Outcome
from eval.utility import UtilitySettings, utility

FEE = Item("1", "How much?", "€4.90 a month", ("fees.md",))
ZH = Item("2", "多少钱？", "每月4.9欧元", ("收费.md",), lang="zh")
NONE = Item("3", "Who owns it?", answerable=False)


@pytest.mark.parametrize(
    ("item", "outcome", "worth"),
    [
        (FEE, Outcome("rag", "€4.90 a month"), 1.0),
        (ZH, Outcome("rag", "每月4.9欧元。"), 1.0),
        (FEE, Outcome("rag", "I like trains"), -0.5),
        (FEE, Outcome("refuse", "I cannot answer €4.90 a month", refused=True), 0.0),
        (FEE, Outcome("rag", "  "), 0.0),
        (NONE, Outcome("refuse", "文档中没有", refused=True), 1.0),
        (NONE, Outcome("rag", "Ms Vale"), -0.5),
        (NONE, Outcome("rag", ""), 1.0),
        (FEE, Outcome("rag", error="the engine stopped"), 0.0),
        (FEE, Outcome("finetuned", error="unavailable: no adapter"), None),
        (Item("4", "Where?", "", ("a.md",)), Outcome("rag", "here"), None),
    ],
)
def test_utility_of_each_case(item, outcome, worth):
    assert utility(item, outcome) == worth


def test_long_answers_are_scored_in_order_and_a_declared_metric_wins():
    gold = " ".join(f"word{number}" for number in range(40))
    shuffled = " ".join(f"word{number}" for number in reversed(range(40)))
    assert utility(Item("1", "q", gold), Outcome("rag", shuffled)) == -0.5
    assert utility(Item("1", "q", gold, metric="token_f1"), Outcome("rag", shuffled)) == 1.0
    assert utility(Item("1", "q", "yes", metric="exact_match"), Outcome("rag", "yes indeed")) == -0.5
    assert utility(Item("1", "q", gold), Outcome("rag", shuffled), UtilitySettings(long_words=50)) == 1.0


def test_a_refusal_scores_no_words_and_undefined_measures_are_left_out():
    found = of_outcome(FEE, Outcome("refuse", "€4.90 a month", refused=True))
    assert found["token_f1"] == found["bleu"] == found["rougeL"] == 0
    assert found["refusal_correct"] == 0
    assert not {"citation_precision", "recall@5", "latency_ms"} & set(found)
    unanswerable = of_outcome(NONE, Outcome("refuse", "", refused=True, retrieved=("a",), citations=("a",)))
    assert unanswerable == {"utility": 1.0, "refusal_correct": 1.0}
    assert of_outcome(FEE, Outcome("hybrid", error="unavailable: no adapter")) == {}


def test_measures_of_an_arm():
    items = [FEE, ZH, NONE, FEE]
    outcomes = [
        Outcome(
            "rag", "€4.90 a month", citations=("fees.md", "other.md"), retrieved=("fees.md",), latency_ms=100, first_token_ms=40, tokens=10
        ),
        Outcome("rag", "每月4.9欧元", citations=("收费.md",), retrieved=("x", "收费.md"), latency_ms=300, first_token_ms=60, tokens=30),
        Outcome("refuse", "", refused=True, retrieved=("x",), latency_ms=20),
        Outcome("rag", error="unavailable: no index"),
    ]
    row = of_arm(items, outcomes)
    assert (row["n"], row["unavailable"], row["errors"], row["refused"]) == (3, 1, 0, 1)
    assert row["utility"] == row["token_f1"] == row["exact_match"] == 1
    assert row["refusal_correct"] == row["refusal_precision"] == row["refusal_recall"] == 1
    assert row["citation_precision"] == 0.75
    assert (row["recall@1"], row["recall@5"], row["mrr"]) == (0.5, 1, 0.75)
    assert (row["latency_p50_ms"], row["first_token_p50_ms"], row["tokens"]) == (100, 50, 20)
    assert row["latency_p95_ms"] == pytest.approx(280)
    english = sacrebleu.corpus_bleu(["€4.90 a month"], [["€4.90 a month"]], tokenize="13a").score
    chinese = sacrebleu.corpus_bleu(["每月4.9欧元"], [["每月4.9欧元"]], tokenize="zh").score
    assert row["bleu"] == pytest.approx((english + chinese) / 2)


def test_an_arm_that_answered_nothing():
    assert of_arm([FEE], [Outcome("hybrid", error="unavailable: no adapter")]) == {"n": 0, "refused": 0, "errors": 0, "unavailable": 1}


def test_percentile():
    assert percentile([4, 1, 3, 2], 50) == 2.5
    assert percentile([7], 95) == 7
    assert percentile([1, 2], 100) == 2
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 50)


@pytest.mark.parametrize(("key", "question"), [("", "q"), ("1", "  ")])
def test_an_item_needs_id_and_question(key, question):
    with pytest.raises(EvalError, match="must not be empty"):
        Item(key, question)
