"""Utility, the measures of an outcome and of an arm."""

import numpy as np
import pytest
import sacrebleu

from eval.cost import NO_ENGINE, Price, cost
from eval.metrics import METRICS, WHOLE, of_arm, of_outcome, percentile
from eval.types import EvalError, Item, Outcome
from eval.utility import Scoring, UtilitySettings, utility

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
    assert utility(Item("1", "q", gold), Outcome("rag", shuffled), Scoring(UtilitySettings(long_words=50))) == 1.0


def test_a_refusal_scores_no_words_and_undefined_measures_are_left_out():
    found = of_outcome(FEE, Outcome("refuse", "€4.90 a month", refused=True))
    assert found["token_f1"] == found["bleu"] == found["rougeL"] == 0
    assert found["refusal_correct"] == 0
    assert not {"citation_precision", "recall@5", "latency_ms"} & set(found)
    unanswerable = of_outcome(NONE, Outcome("refuse", "", refused=True, retrieved=("a",), citations=("a",)))
    assert unanswerable == {"utility": 1.0, "answered": 0.0, "refusal_correct": 1.0, "hallucination": 0.0}
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


def test_the_declared_metric_and_experts_decide_the_worth():
    numeric = Item("n", "2023年营收是多少？", "1.2亿元", lang="zh", metric="numeric_match")
    assert utility(numeric, Outcome("rag", "2023年营收为12000万元。")) == 1
    assert utility(numeric, Outcome("rag", "营收为1.3亿元")) == -0.5
    assert utility(Item("s", "谁？", "张三", lang="zh", metric="numeric_match"), Outcome("rag", "张三")) == 1
    letter = Item("c", "几天？", "7日", lang="zh", metric="choice", choices=(("A", "3日"), ("B", "7日")))
    assert utility(letter, Outcome("rag", "选B")) == 1 and utility(letter, Outcome("rag", "A")) == -0.5
    experts = Scoring(experts={("1", "nonsense"): 0.75, ("4", "here"): -1.0, ("1", ""): 0.5})
    # The answer was scored, whichever arm gave it, and whether it was asked itself or chosen by the router.
    assert utility(FEE, Outcome("rag", "nonsense"), experts) == utility(FEE, Outcome("base", "nonsense"), experts) == 0.75
    assert utility(FEE, Outcome("base", "other nonsense"), experts) == -0.5
    assert utility(FEE, Outcome("rag", "nonsense", refused=True), experts) == 0
    assert utility(Item("4", "Where?"), Outcome("rag", "here"), experts) == -1
    assert utility(FEE, Outcome("rag", error="unavailable: gone"), experts) is None
    assert utility(FEE, Outcome("rag", error="it stopped"), experts) == 0


def test_the_task_decides_where_no_metric_is_declared():
    risk = Item("r", "Which risk?", "high risk", task="classify")
    assert utility(risk, Outcome("base", "low risk")) == -0.5
    assert utility(risk, Outcome("base", "Category: High risk.")) == 1
    assert utility(Item("r", "q", "high risk", task="classify", metric="token_f1"), Outcome("base", "low risk")) == 0.5
    drugs = Item("e", "Which drugs?", "aspirin\nibuprofen", task="extract")
    assert utility(drugs, Outcome("base", "ibuprofen; aspirin")) == 1
    assert utility(drugs, Outcome("base", "aspirin")) == pytest.approx(2 / 3)
    assert utility(drugs, Outcome("base", "not aspirin but ibuprofen tablets")) == -0.5
    short = Item("s", "摘要", "门诊时间延长。", lang="zh", task="summary")
    assert utility(short, Outcome("base", "延长门诊时间")) == of_outcome(short, Outcome("base", "延长门诊时间"))["rougeL"] < 1
    declared = Item("q", "q", "a; b", metric="item_f1")
    assert of_outcome(declared, Outcome("rag", "b; a"))["item_f1"] == utility(declared, Outcome("rag", "b; a")) == 1


def test_what_answers_cost():
    prices = {"default": Price(read_1k=1.0, generated_1k=4.0, hour=3.6), NO_ENGINE: Price(hour=36.0)}
    answer = Outcome("rag", "x", engine="default", tokens=1500, generated=500, latency_ms=1000)
    assert cost(answer, prices) == pytest.approx(1.0 + 2.0 + 0.001)
    assert cost(Outcome("quote", "x", latency_ms=100), prices) == pytest.approx(0.001)
    assert cost(Outcome("rag", "x", engine="default", tokens=1500, latency_ms=5), prices) is None
    assert cost(Outcome("rag", "x", engine="other", tokens=1, generated=1), prices) is None
    assert cost(Outcome("rag", "x", engine="default", error="unavailable: no"), prices) is None
    row = of_arm([FEE, FEE], [answer, answer], Scoring(prices=prices))
    assert row["cost"] == pytest.approx(3.001) and row["generated"] == 500


def test_hallucinations_citations_and_the_share_answered():
    items = [FEE, NONE, NONE, Item("5", "q", "a", ("a", "b"))]
    outcomes = [
        Outcome("rag", "€4.90", citations=("fees.md",), retrieved=("fees.md",), grounded=1.0),
        Outcome("rag", "Ms Vale", grounded=0.0),
        Outcome("rag", "", refused=True),
        Outcome("rag", "a", citations=("a", "c"), retrieved=("a",), grounded=0.5),
    ]
    row = of_arm(items, outcomes)
    assert row["hallucination"] == 0.5 and row["answered"] == 0.75 and row["grounded"] == 0.5
    assert row["citation_precision"] == 0.75 and row["citation_recall"] == 0.75
    assert row["refusal_precision"] == 1 and row["refusal_recall"] == 0.5
    # A failure answered nobody, and refused nobody either.
    assert of_outcome(NONE, Outcome("rag", error="it stopped")).keys() == {"utility", "answered"}


def test_every_measure_has_its_name_in_the_list():
    items = [
        Item("n", "How much?", "€4.90", ("a",), metric="numeric_match"),
        Item("c", "q", "a", metric="choice"),
        Item("l", "q", "a", task="classify"),
        Item("e", "q", "a; b", task="extract"),
        NONE,
    ]
    full = Outcome(
        "rag", "a", citations=("a",), retrieved=("a",), latency_ms=1, first_token_ms=1, tokens=1, generated=1, engine="e", grounded=1
    )
    row = of_arm(items, [full] * 4 + [Outcome("rag", refused=True)], Scoring(prices={"e": Price(1.0, 1.0)}))
    single = {name for item in items for name in of_outcome(item, full, Scoring(prices={"e": Price(1.0, 1.0)}))}
    assert row.keys() | single == METRICS
    assert row.keys() - single | {"bleu", "chrf"} == WHOLE


def test_percentiles_are_those_of_numpy():
    values = [float(n * n % 97) for n in range(60)]
    outcomes = [Outcome("rag", "x", latency_ms=value, first_token_ms=value / 2) for value in values]
    row = of_arm([FEE] * 60, outcomes)
    for share in (50, 95, 99):
        assert row[f"latency_p{share}_ms"] == pytest.approx(np.percentile(values, share))
        assert row[f"first_token_p{share}_ms"] == pytest.approx(np.percentile(values, share) / 2)
