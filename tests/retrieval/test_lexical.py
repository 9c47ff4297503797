"""BM25 over segments equals the formula computed plainly over what is visible."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from retrieval.lexical import K1, MAX_QUERY_TERMS, B, Lexical, Postings, build, top
from retrieval.text import index_terms

WORDS = ["dose", "ward", "fee", "contract", "visit", "乙方", "付款", "期限", "剂量", "2026", "AC-02", "night"]


def _terms(query: str) -> dict[str, float]:
    return dict.fromkeys(index_terms(query), 1.0)


def _texts(count: int) -> list[str]:
    rng = random.Random(5)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(count)]


def _plain(texts: list[str], mask: list[bool], query: str) -> dict[int, float]:
    """The formula of the module, term by term."""
    documents = {ordinal: index_terms(text) for ordinal, text in enumerate(texts) if mask[ordinal]}
    average = sum(map(len, documents.values())) / len(documents)
    scores: dict[int, float] = {}
    for term in set(index_terms(query)):
        df = sum(term in terms for terms in documents.values())
        idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
        for ordinal, terms in documents.items():
            if tf := terms.count(term):
                score = idf * tf / (tf + K1 * (1 - B + B * len(terms) / average))
                scores[ordinal] = scores.get(ordinal, 0.0) + score
    return scores


@pytest.mark.parametrize("query", ["night fee on the ward", "乙方付款期限", "form AC-02 2026 剂量", "dose dose dose"])
@pytest.mark.parametrize("sizes", [[60], [20, 1, 39], [7] * 8 + [4]])
def test_scores_are_the_formula_over_the_visible(query: str, sizes: list[int]) -> None:
    texts = _texts(60)
    mask = [ordinal % 3 != 0 for ordinal in range(60)]
    ends = np.cumsum(sizes)
    lexical = Lexical([build(texts[end - size : end]) for size, end in zip(sizes, ends, strict=True)])
    ordinals, scores, bound = lexical.search(_terms(query), lexical.view(np.array(mask)), 60)
    expected = _plain(texts, mask, query)
    assert {int(o): pytest.approx(float(s), rel=1e-5) for o, s in zip(ordinals, scores, strict=True)} == expected
    assert list(scores) == sorted(scores, reverse=True) and scores[0] < bound


def test_a_weighted_term_counts_that_much_and_is_not_in_the_bound() -> None:
    texts = _texts(60)
    lexical = Lexical([build(texts)])
    view = lexical.view(np.ones(60, dtype=bool))
    whole, half = lexical.search({"乙方": 1.0}, view, 60), lexical.search({"乙方": 0.5, "night": 1.0}, view, 60)
    alone = dict(zip(lexical.search({"night": 1.0}, view, 60)[0], lexical.search({"night": 1.0}, view, 60)[1], strict=True))
    scores = dict(zip(half[0], half[1], strict=True))
    for ordinal, score in zip(whole[0], whole[1], strict=True):
        assert scores[ordinal] == pytest.approx(0.5 * score + alone.get(ordinal, 0.0), rel=1e-5)
    assert half[2] == pytest.approx(lexical.idf(["night"], view)[0])


@pytest.mark.parametrize("hidden", [False, True])
def test_passing_over_common_terms_changes_nothing(hidden: bool) -> None:
    """Many chunks and few results, so that long lists are only looked up for the chunks that can still be among the best."""
    random = np.random.default_rng(8)
    texts = [" ".join(f"w{n}" for n in random.zipf(1.3, 20) if n < 5_000) for _ in range(3_000)]
    lexical = Lexical([build(texts[:1_000]), build(texts[1_000:])])
    mask = random.random(3_000) < 0.5 if hidden else np.ones(3_000, dtype=bool)
    view = lexical.view(mask)
    for _ in range(60):
        terms = {f"w{n}": float(random.choice([1.0, 0.5])) for n in random.choice(60, 6) + 1} | {f"w{random.integers(100, 2_000)}": 1.0}
        every, all_scores, total = lexical.search(terms, view, 3_000)
        best, scores, bound = lexical.search(terms, view, 10)
        assert bound == total and scores == pytest.approx(all_scores[: len(scores)], rel=1e-5) and len(best) == min(10, len(every))
        assert set(best) <= {int(o) for o, s in zip(every, all_scores, strict=True) if s >= scores[-1] - 1e-5} and mask[best].all()


def test_nothing_found() -> None:
    lexical = Lexical([build(_texts(5))])
    everything, nothing = lexical.view(np.ones(5, dtype=bool)), lexical.view(np.zeros(5, dtype=bool))
    for query, view in (("unknownword", everything), ("", everything), ("the of", everything), ("dose ward fee", nothing)):
        assert len(lexical.search(_terms(query), view, 3)[0]) == 0
    empty = Lexical([])
    assert len(empty.search(_terms("dose"), empty.view(np.zeros(0, dtype=bool)), 3)[0]) == 0
    assert len(Lexical([build([""])]).search(_terms("dose"), Lexical([build([""])]).view(np.ones(1, dtype=bool)), 3)[0]) == 0


def test_a_huge_query_is_scored_by_its_rarest_terms() -> None:
    texts = [f"common{n} " * 3 for n in range(300)] + [" ".join(f"common{n}" for n in range(300)) + " rareword"]
    lexical = Lexical([build(texts)])
    query = " ".join(f"common{n}" for n in range(300)) + " rareword"
    assert len(index_terms(query)) > MAX_QUERY_TERMS
    ordinals, _, _ = lexical.search(_terms(query), lexical.view(np.ones(len(texts), dtype=bool)), 5)
    assert ordinals[0] == 300


def test_postings_survive_the_file(tmp_path: Path) -> None:
    made = build(_texts(20))
    made.save(tmp_path / "lexical.bin")
    read = Postings.load(tmp_path / "lexical.bin")
    for name in Postings.__slots__:
        assert np.array_equal(getattr(made, name), getattr(read, name))


def test_top_breaks_ties_by_position() -> None:
    scores = np.array([0, 2, 1, 2, 0, 1], dtype=np.float32)
    assert top(scores, 3)[0].tolist() == [1, 3, 2]
    assert top(scores, 50)[0].tolist() == [1, 3, 2, 5]
