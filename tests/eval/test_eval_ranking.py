"""Retrieval, citation and refusal measures, worked by hand."""

import math

import pytest

from eval.ranking import citation_precision, ndcg_at, recall_at, reciprocal_rank, refusals


def test_recall_counts_documents_not_passages():
    ranked = ["a", "a", "b", "c"]
    assert recall_at(1, ranked, {"b"}) == 0
    assert recall_at(2, ranked, {"b"}) == 1
    assert recall_at(2, ranked, {"b", "c"}) == 0.5
    assert recall_at(10, [], {"b"}) == 0


def test_ndcg_worked_by_hand():
    # Gold at ranks 2 and 3 of two wanted: (1/log2 3 + 1/log2 4) / (1/log2 2 + 1/log2 3).
    expected = (1 / math.log2(3) + 0.5) / (1 + 1 / math.log2(3))
    assert ndcg_at(10, ["x", "文档一", "b"], {"文档一", "b"}) == pytest.approx(expected)
    assert ndcg_at(10, ["a", "b"], {"a", "b"}) == 1
    assert ndcg_at(1, ["b", "a"], {"a", "b"}) == 1
    assert ndcg_at(10, [], {"a"}) == 0


def test_reciprocal_rank():
    assert reciprocal_rank(["x", "x", "a"], {"a"}) == 0.5
    assert reciprocal_rank(["x"], {"a"}) == 0


def test_unknown_gold_is_an_error_not_a_zero():
    for measure in (lambda: recall_at(5, ["a"], ()), lambda: ndcg_at(10, ["a"], ()), lambda: reciprocal_rank(["a"], ())):
        with pytest.raises(ValueError, match="not known"):
            measure()


def test_citation_precision():
    assert citation_precision(["a", "b", "a", "x"], {"a", "b"}) == 0.75
    assert citation_precision([], {"a"}) is None


def test_refusals():
    found = refusals([True, True, False, False], [False, True, False, True])
    assert found == {"refusal_correct": 0.5, "refusal_precision": 0.5, "refusal_recall": 0.5, "hallucination": 0.5}
    assert refusals([False], [True]) == {"refusal_correct": 1.0}
    assert refusals([], []) == {}
