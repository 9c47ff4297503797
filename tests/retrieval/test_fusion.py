"""Fusing two orders, and choosing how on questions whose documents are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from retrieval.fusion import Candidates, Fusion
from retrieval.tune import DENSE, LEXICAL, Judged, grid, ranked, score, tune


def _found(dense: dict[int, float], lexical: dict[int, float], bound: float = 10.0, depth: int = 50, mixed: bool = False) -> Candidates:
    def columns(scores: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
        order = sorted(scores, key=lambda place: -scores[place])
        return np.array(order, dtype=np.int64), np.array([scores[place] for place in order], dtype=np.float32)

    (near, centred), (shared, bm25) = columns(dense), columns(lexical)
    return Candidates(near, centred + np.float32(0.8), centred, shared, bm25, bound, depth, mixed)


def test_reciprocal_ranks_at_equal_shares_are_the_plain_sum() -> None:
    found = _found({3: 0.2, 1: 0.1}, {1: 8.0, 7: 5.0})
    assert Fusion("rrf", 0.5).fuse(found) == [
        (1, pytest.approx(1 / 62 + 1 / 61)),
        (3, pytest.approx(1 / 61)),
        (7, pytest.approx(1 / 62)),
    ]


def test_the_convex_combination_is_of_shares_of_the_best() -> None:
    found = _found({3: 0.2, 1: 0.1}, {1: 8.0, 7: 4.0})
    fused = dict(Fusion("convex", 0.75, 0.0).fuse(found))
    # What the vectors left out has at most their last score; what shares no word has a lexical score of 0.
    assert fused == {3: pytest.approx(0.75), 1: pytest.approx(0.75 * 0.5 + 0.25), 7: pytest.approx(0.75 * 0.5 + 0.25 * 0.5)}


def test_what_a_full_list_left_out_has_its_last_score() -> None:
    found = _found({3: 0.2, 1: 0.1}, {1: 8.0, 7: 4.0}, depth=2)
    assert dict(Fusion("convex", 0.5, 0.0).fuse(found))[3] == pytest.approx(0.5 + 0.5 * 0.5)


def test_alone_each_retriever_keeps_its_order() -> None:
    found = _found({3: 0.3, 1: 0.2, 9: 0.1}, {7: 8.0, 9: 4.0, 3: 1.0})
    assert [place for place, _ in DENSE.fuse(found)] == [3, 1, 9]
    assert [place for place, _ in LEXICAL.fuse(found)][:3] == [7, 9, 3]


def test_weak_lexical_matches_count_only_among_passages_of_one_language() -> None:
    one, several = (_found({3: 0.2}, {7: 9.0, 5: 1.0}, mixed=mixed) for mixed in (False, True))
    assert {place for place, _ in Fusion().fuse(one)} == {3, 5, 7}
    assert {place for place, _ in Fusion().fuse(several)} == {3, 7}
    assert {place for place, _ in Fusion(floor=0.05).fuse(several)} == {3, 5, 7}


@pytest.mark.parametrize("kind", ["rrf", "convex"])
def test_with_one_or_no_list(kind: str) -> None:
    for weight in (0.0, 0.5, 1.0):
        fusion = Fusion(kind, weight)  # type: ignore[arg-type]
        assert fusion.fuse(Candidates.none()) == []
        assert [place for place, _ in fusion.fuse(_found({4: 0.1}, {}))] == [4]
        assert [place for place, _ in fusion.fuse(_found({}, {4: 2.0}))] == [4]
        negative = fusion.fuse(_found({4: -0.1, 2: -0.2}, {}))
        assert [place for place, _ in negative] == [4, 2] and all(math.isfinite(value) for _, value in negative)


@pytest.mark.parametrize("values", [("sum", 0.5, 0.0), ("rrf", 1.5, 0.0), ("convex", 0.5, -0.1), ("convex", math.nan, 0.0)])
def test_wrong_values(values: tuple[str, float, float]) -> None:
    with pytest.raises(ValueError, match="expected kind"):
        Fusion(*values)  # type: ignore[arg-type]


def _first(ranking: object, gold: object) -> float:
    return float(list(ranking)[:1] == list(gold))  # type: ignore[call-overload]


def _question(gold: str, lang: str, near: str) -> Judged:
    """The document `near` is first for the vectors, the other for the words."""
    other = {"a": "b", "b": "a"}[near]
    places = {1: (near,), 2: (other,)}
    return Judged(_found({1: 0.2, 2: 0.05}, {2: 8.0, 1: 6.0}), places, frozenset({gold}), lang)


def test_the_chosen_fusion_is_never_worse_than_the_better_single_retriever() -> None:
    words_right = [_question("b", lang, "a") for lang in ("en", "zh", "zh")]
    best, scores = tune(words_right, _first)
    by_fusion = {entry.fusion: entry for entry in scores}
    assert len(by_fusion) == len(scores) == len(grid())
    assert best.mean == 1.0 == by_fusion[LEXICAL].mean > by_fusion[DENSE].mean and best.by_lang == {"en": 1.0, "zh": 1.0}
    best, _ = tune([_question("a", "en", "a")] * 3 + [_question("b", "zh", "a")], _first)
    assert best.mean == 0.75 and best.by_lang == {"en": 1.0, "zh": 0.0}


def test_where_nothing_is_better_the_default_stays() -> None:
    best, _ = tune([_question("a", "en", "a")], lambda ranking, gold: 0.5)
    assert best.fusion == Fusion()


def test_a_document_counts_at_its_best_candidate_and_one_without_documents_not_at_all() -> None:
    found = _found({1: 0.3, 2: 0.2, 3: 0.1, 4: 0.05}, {})
    assert ranked(DENSE, Judged(found, {1: ("x",), 2: ("y", "z"), 3: ("x",)}, frozenset(), "en")) == ["x", "y", "z"]


def test_no_questions() -> None:
    with pytest.raises(ValueError, match="no questions"):
        score(Fusion(), [], _first)
