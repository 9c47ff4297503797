"""Searching: scopes, fusion, signals, pinned generations, threads."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from retrieval_support import Knowledge, write

from retrieval.fusion import Fusion
from retrieval.index import Index, Ranking
from retrieval.types import RetrievalError, Scope

SIGNALS = {
    *("dense_top", "dense_gap", "dense_entropy", "lexical_top", "lexical_gap", "lexical_share", "lexical_entropy", "agreement"),
    *("overlap", "term_coverage", "coverage_all", "title_coverage", "title_asked", "rarity", "rarest", "rarest_found"),
    *("documents", "top_days", "newest_days", "oldest_days", "passages"),
}


def test_an_empty_workspace_finds_nothing(knowledge: Knowledge) -> None:
    evidence = knowledge.search("anything 任何")
    assert (evidence.passages, evidence.generation) == ((), None)
    assert set(evidence.signals) == SIGNALS and not any(evidence.signals.values())


@pytest.mark.parametrize("query", ["", "  \n", "？！…", "zzzqqq", "the of and"])
def test_queries_with_nothing_in_them(knowledge: Knowledge, docs: Path, query: str) -> None:
    knowledge.ingest(docs)
    evidence = knowledge.search(query)
    assert evidence.signals["lexical_top"] == 0.0 and evidence.signals["term_coverage"] == 0.0
    assert (evidence.passages == ()) == (not query.strip())


def test_signals(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    evidence = knowledge.search("adult dose of gentamicin", k=3)
    signals = evidence.signals
    assert set(signals) == SIGNALS and all(isinstance(value, float) for value in signals.values())
    assert signals["term_coverage"] == signals["coverage_all"] == pytest.approx(1.0)
    assert signals["dense_top"] > 0 and signals["dense_gap"] >= 0 and signals["lexical_top"] > signals["lexical_gap"] >= 0
    assert 0 <= signals["newest_days"] <= signals["oldest_days"] < 1
    assert 0 < signals["overlap"] <= 1 and signals["passages"] == 3
    partly = knowledge.search("adult dose of vancomycin", k=1).signals
    assert 0 < partly["term_coverage"] < 1
    chinese = knowledge.search("普通门诊诊查费是多少？", k=1).signals
    assert chinese["term_coverage"] == pytest.approx(1.0)


def test_scores_are_reciprocal_ranks(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    evidence = knowledge.index().search("dose of gentamicin", Scope(), 20, ranking=Ranking(Fusion("rrf", 0.5)))
    for passage in evidence.passages:
        ranks = [rank for rank in (passage.dense_rank, passage.lexical_rank) if rank is not None]
        assert passage.score == pytest.approx(sum(1 / (61 + rank) for rank in ranks))
        assert (passage.dense_rank is None) == (passage.dense_score is None)
    scores = [passage.score for passage in evidence.passages]
    assert scores == sorted(scores, reverse=True)


def test_a_scope_filters_inside_the_search(knowledge: Knowledge, tmp_path: Path) -> None:
    """With one visible document among many better matches, it is still found, and its scores do not depend on the hidden ones."""
    hidden = [{"id": f"h{n}", "text": f"parking rule parking rule {n} 停车规定"} for n in range(80)]
    write(tmp_path / "hidden.jsonl", "".join(json.dumps(row) + "\n" for row in hidden))
    write(tmp_path / "seen.jsonl", json.dumps({"id": "s", "text": "One parking place exists. 停车"}) + "\n")
    knowledge.ingest(tmp_path / "seen.jsonl")
    alone = knowledge.search("parking rule", k=1)
    knowledge.ingest(tmp_path / "hidden.jsonl", labels=frozenset({"secret"}))
    knowledge.ingest(tmp_path / "hidden.jsonl", domain="legal")
    found = knowledge.search("parking rule", Scope(frozenset({"medical"}), frozenset()), k=5)
    assert [passage.document.id for passage in found.passages] == ["s"]
    assert found.passages[0].lexical_score == pytest.approx(alone.passages[0].lexical_score)
    assert found.signals["term_coverage"] == pytest.approx(alone.signals["term_coverage"])
    with_label = knowledge.search("停车规定", Scope(frozenset({"medical"}), frozenset({"secret"})), k=5)
    assert {passage.document.labels for passage in with_label.passages} == {frozenset({"secret"})}
    assert knowledge.search("parking", Scope(frozenset({"unknown"})), k=5).passages == ()
    assert knowledge.search("parking", Scope(frozenset()), k=5).passages == ()
    assert {passage.document.domain for passage in knowledge.search("停车", Scope(), k=100).passages} == {"medical", "legal"}


def test_a_huge_query(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    evidence = knowledge.search("gentamicin 门诊 " * 10_000)
    assert len(evidence.passages) == 5


def test_an_index_stays_with_its_generation(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    pinned = knowledge.index()
    assert pinned.refresh() is pinned
    write(docs / "visits.txt", "Visitors come at noon.\n")
    write(docs / "parking.md", "# Parking\n\nParking costs 5 euros.\n")
    knowledge.ingest(docs)
    old = pinned.search("visitors", Scope(), 1).passages[0].chunk.text
    assert pinned.generation == 1 and "14:00" in old
    fresh = pinned.refresh()
    assert fresh.generation == 2 and "noon" in fresh.search("visitors", Scope(), 1).passages[0].chunk.text
    assert len(fresh) == len(knowledge.index(2)) > len(pinned) - 1


def test_refresh_from_nothing(knowledge: Knowledge, docs: Path) -> None:
    empty = knowledge.index()
    knowledge.ingest(docs)
    assert len(empty) == 0 and len(empty.refresh()) > 0


def test_threads(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    index = knowledge.index()
    queries = ["dose of gentamicin", "visitors per patient", "诊查费", "违约金"] * 10
    expected = [[passage.chunk.id for passage in index.search(query, Scope()).passages] for query in queries]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda query: [passage.chunk.id for passage in index.search(query, Scope()).passages], queries))
    assert found == expected


def test_wrong_arguments(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    with pytest.raises(RetrievalError, match="generation 99"):
        Index.open(knowledge.store, knowledge.vectors, knowledge.embedder, 99)
    with pytest.raises(ValueError, match="k="):
        knowledge.index().search("x", Scope(), k=0)


@pytest.mark.parametrize(
    ("title", "question", "share"),
    [
        ("Depression", "What is depression?", 1.0),
        ("Postpartum depression", "What is depression?", 0.5),
        ("Fees of the depression clinics", "depression", 1 / 3),
        ("高血压用药", "高血压用药期间能喝酒吗？", 1.0),
        ("Ward 7", "depression", 0.0),
    ],
)
def test_how_much_of_a_title_is_asked_for(knowledge: Knowledge, tmp_path: Path, title: str, question: str, share: float) -> None:
    body = "高血压患者在用药期间不应饮酒。" if title.startswith("高") else "Depression is treated here, on every weekday."
    knowledge.ingest(write(tmp_path / "one" / "a.md", f"# {title}\n\n{body}\n"))
    assert knowledge.search(question).signals["title_asked"] == pytest.approx(share)
