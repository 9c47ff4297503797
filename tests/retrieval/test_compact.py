"""Compaction: merging finds the same passages, keeps older generations and rollback, and what was deleted leaves the disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from retrieval_support import HashingEmbedder, Knowledge, write

from retrieval import ann
from retrieval.compact import FANOUT, MAX_ROWS, SMALL, compact, due, tidy
from retrieval.index import Index, verify
from retrieval.lexical import term_hash
from retrieval.maintain import rebuild, remove, rollback
from retrieval.staging import IngestSettings
from retrieval.store import SegmentRows
from retrieval.types import DocumentKey, IndexCorrupt, Scope

QUERIES = ["adult dose of gentamicin", "visitors per patient", "诊查费", "逾期交货的违约金"]
# Every document gets a segment of its own.
SETTINGS = IngestSettings(40, 80, segment_chunks=1)
SECRET = "Zyxomab 是一种绝密药物，the secret dose is 42 mg.\n"


class Killed(Exception):
    """Stands for a process that ends."""


@pytest.fixture
def history(knowledge: Knowledge, docs: Path) -> Iterator[Knowledge]:
    """Three generations: the documents, one changed and one new, one of them removed."""
    knowledge.ingest(docs, settings=SETTINGS)
    write(docs / "visits.txt", "VISITING RULES\n\nVisitors may come at noon.\n")
    write(docs / "secret.md", SECRET)
    knowledge.ingest(docs, settings=SETTINGS)
    yield knowledge


def _compact(knowledge: Knowledge, **options: Any) -> dict[str, Any]:
    with knowledge.db.lock("index") as lock:
        return compact(store=knowledge.store, vectors=knowledge.vectors, lock=lock, **options)


def _remove(knowledge: Knowledge, id: str) -> None:
    with knowledge.db.lock("index") as lock:
        remove([DocumentKey("medical", id)], store=knowledge.store, vectors=knowledge.vectors, lock=lock)


def _found(index: Index) -> list[list[tuple[str, int, float | None, float | None]]]:
    """The passages of every query with their scores, which do not depend on how the rows are laid out."""
    return [
        sorted(
            (p.chunk.id, p.chunk.start, _round(p.dense_score), _round(p.lexical_score)) for p in index.search(query, Scope(), 50).passages
        )
        for query in QUERIES
    ]


def _round(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def _segments(knowledge: Knowledge) -> list[Path]:
    return sorted((knowledge.folder / "segments").iterdir())


def test_the_same_is_found_in_fewer_segments(history: Knowledge) -> None:
    before = [_found(history.index(generation)) for generation in (1, 2)]
    embedded = history.embedder.passages
    old = {path.name for path in _segments(history)}
    done = _compact(history)
    assert done["generation"] == 3 == history.store.live_generation()
    assert (done["before"], done["after"]) == (len(old), 2) and history.embedder.passages == embedded
    assert [(made["live"], made["search"]["method"]) for made in done["segments"]] == [(True, "exact")]
    # The segment of the older version stays as it is: nothing in it is dead, and there is no other like it.
    assert len(old.intersection(path.name for path in _segments(history))) == 1 and len(_segments(history)) == 2
    for generation, expected in ((1, before[0]), (2, before[1]), (3, before[1])):
        assert _found(history.index(generation)) == expected
        assert verify(history.store, history.vectors, generation) == []
    # The live generation needs the segment of live rows alone, and none of them is a tombstone.
    live = history.store.members(3)
    assert len(live.segments) == 1 and len(live.chunk) == done["segments"][0]["rows"]


def test_nothing_is_left_to_do(history: Knowledge) -> None:
    _compact(history)
    again = _compact(history)
    assert again["generation"] == 3 and again["segments"] == [] and again["before"] == again["after"] == 2


def test_an_empty_base(knowledge: Knowledge) -> None:
    assert _compact(knowledge) == {"generation": None, "before": 0, "after": 0, "purged": 0, "segments": []}


def test_rollback_after_compaction_and_on(history: Knowledge, docs: Path) -> None:
    before = _found(history.index(1))
    _compact(history)
    with history.db.lock("index") as lock:
        rollback(1, store=history.store, vectors=history.vectors, lock=lock)
    assert history.store.live_generation() == 1 and _found(history.index()) == before
    # What the merged segments hold is vouched for in what follows, too.
    write(docs / "new.md", "# Parking\n\nParking costs 5 euros. 停车每小时5元。\n")
    report = history.ingest(docs / "new.md", settings=SETTINGS)
    assert report.generation == 4 and history.ids("停车", k=1) == ["new.md"] and verify(history.store, history.vectors) == []
    assert history.store.generation(4) is not None
    info = history.store.generation(4)
    assert info is not None and set(history.vectors.read_manifest(info)) == set(history.store.members(4).segments)
    _compact(history)
    assert _found(history.index(1)) == before and history.ids("停车", k=1) == ["new.md"]


def test_what_was_removed_leaves_the_disk(history: Knowledge) -> None:
    vector = history.embedder.encode_passages([SECRET])[0]
    row = next(segment for segment in history.index()._opened.segments if np.allclose(segment.vectors, vector, atol=1e-5))  # type: ignore[attr-defined]
    stored = np.asarray(row.vectors).tobytes()
    terms = [np.uint64(term_hash(term)).tobytes() for term in ("zyxomab", "绝密")]
    # Together with others in one segment, so that the file stays when the document goes.
    _compact(history)

    def holding(needle: bytes) -> list[str]:
        return [path.name for path in history.folder.rglob("*") if path.is_file() and needle in path.read_bytes()]

    assert holding(stored) == ["vectors.npy"] and all(holding(term) == ["lexical.bin"] for term in terms)
    _remove(history, "secret.md")
    done = _compact(history)
    assert done["purged"] == 1 and holding(stored) == [] and not any(holding(term) for term in terms)
    assert "secret.md" not in history.ids("Zyxomab 绝密", k=50)
    for generation in (1, 2):
        with history.db.lock("index") as lock:
            rollback(generation, store=history.store, vectors=history.vectors, lock=lock)
        assert "secret.md" not in history.ids("Zyxomab 绝密", k=50)


def test_a_reader_goes_on_in_its_generation(history: Knowledge) -> None:
    pinned = history.index()
    before = _found(pinned)
    _compact(history)
    assert _found(pinned) == before
    fresh = pinned.refresh()
    assert fresh.generation == 3 and _found(fresh) == before


@pytest.mark.parametrize(
    "step", ["segment-written", "segment-renamed", "ready", "manifest-written", "before-commit", "committed", "collecting"]
)
def test_interrupted_at_a_step(history: Knowledge, step: str) -> None:
    """The old state or the new one, and a second compaction completes it. (Killed processes: `test_crash`.)"""
    before = [_found(history.index(generation)) for generation in (1, 2)]

    def stop(name: str) -> None:
        if name == step and (step != "collecting" or history.store.live_generation() == 3):
            raise Killed

    with pytest.raises(Killed):
        _compact(history, step=stop)
    live = history.store.live_generation()
    assert live == (3 if step in ("committed", "collecting") else 2)
    for _ in range(2):
        for generation, expected in ((1, before[0]), (2, before[1])):
            assert _found(history.index(generation)) == expected
        assert _found(history.index()) == before[1] and verify(history.store, history.vectors) == []
        _compact(history)
    assert len(_segments(history)) == 2 and history.store.live_generation() == 3


def test_damage_stops_it(history: Knowledge) -> None:
    path = history.folder / "segments" / history.store.members(2).segments[0] / "vectors.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    before = {path.name for path in _segments(history)}
    with pytest.raises(IndexCorrupt, match=r"vectors\.npy"):
        _compact(history)
    assert history.store.live_generation() == 2 and before == {path.name for path in _segments(history) if path.suffix != ".tmp"}


def test_damage_of_a_merged_segment_is_noticed_in_every_generation(history: Knowledge) -> None:
    """The database vouches for it where an older manifest does not name it: a consistent forgery is noticed, too."""
    _compact(history)
    for place in _segments(history):
        path = place / "segment.json"
        path.write_text(path.read_text("utf-8").replace('"chunks"', '"chunks" '), "utf-8")
    for generation in (1, 2, 3):
        with pytest.raises(IndexCorrupt, match=r"segment\.json"):
            history.index(generation)


def test_two_models_stay_apart(history: Knowledge) -> None:
    """After a change of the model the older generations keep their vectors in segments of their own."""
    before = _found(history.index())
    old, history.embedder = history.embedder, HashingEmbedder("hashing-2")
    with history.db.lock("index") as lock:
        rebuild(store=history.store, vectors=history.vectors, embedder=history.embedder, lock=lock, settings=SETTINGS)
    assert _compact(history)["generation"] == 4
    models = {segment.embedding_hash for segment in history.index()._opened.segments}  # type: ignore[attr-defined]
    assert models == {history.embedder.hash}
    assert _found(history.index()) == before
    assert _found(Index.open(history.store, history.vectors, old, 2)) == before


def test_a_big_merge_gets_an_inverted_file(knowledge: Knowledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both languages, by labels and after a removal: the search through the file finds what exact search does."""
    monkeypatch.setattr(ann, "ANN_ROWS", 400)
    monkeypatch.setattr(ann, "FEW", 20)
    # Few rows are hard: what suffices for a big segment is nearly all of a small one.
    monkeypatch.setattr(ann, "TARGET", 0.9)
    monkeypatch.setattr("retrieval.generation.FEW", 20)
    words = [f"topic{n}" for n in range(40)]
    for number in range(250):
        topic = words[number % 40]
        write(tmp_path / "docs" / f"{number}.md", f"# {topic}\n\nAbout {topic}, rule {number} of {topic} and item{number % 7}.\n")
        write(tmp_path / "docs" / f"{number}-zh.md", f"# {topic} 规定\n\n关于 {topic} 的第{number}条规定，收费为{number}元。\n")
    labels = frozenset({"secret"})
    knowledge.ingest(tmp_path / "docs", labels=labels)
    write(tmp_path / "open" / "open.md", "# topic3\n\nAbout topic3, an open rule. 公开规定。\n")
    knowledge.ingest(tmp_path / "open")
    scopes = [Scope(labels=labels), Scope()]
    expected = [knowledge.search("topic3 的规定 rule", scope, 10) for scope in scopes]
    done = _compact(knowledge)
    assert [made["search"]["method"] for made in done["segments"]] == ["ivf-sq8"]
    for scope, before in zip(scopes, expected, strict=True):
        after = knowledge.search("topic3 的规定 rule", scope, 10)
        found = {p.chunk.id for p in after.passages}
        assert len(found & {p.chunk.id for p in before.passages}) >= 0.8 * len(before.passages)
        assert after.signals["dense_top"] == pytest.approx(before.signals["dense_top"], abs=1e-5)
    assert [p.document.id for p in knowledge.search("topic3", Scope(), 10).passages] == ["open.md"]
    gone = next(p.document.id for p in expected[0].passages)
    _remove(knowledge, gone)
    assert gone not in knowledge.ids("topic3 的规定 rule", Scope(labels=labels), 50)


def test_what_is_due() -> None:
    def rows(count: int, size: int, live: int | None = None, model: str = "m") -> dict[str, SegmentRows]:
        return {f"{model}{size}-{live}-{n}": SegmentRows(model, size, size if live is None else live) for n in range(count)}

    assert due({}) == due(rows(FANOUT - 1, 1000)) == set()
    assert due(rows(FANOUT, 1000)) == set(rows(FANOUT, 1000))
    # Classes of size: the smaller go along with the larger, not the other way round.
    few, many = rows(3, 1000), rows(FANOUT, 10 * SMALL)
    assert due(few | many) == few.keys() | many.keys()
    assert due(rows(FANOUT, 1000) | rows(3, 10 * SMALL)) == rows(FANOUT, 1000).keys()
    # Dead rows: a third of a big segment is; history, other models and full segments stay by themselves.
    assert due(rows(1, 10_000, 6_000)) == rows(1, 10_000, 6_000).keys()
    assert due(rows(1, 10_000, 8_000)) == due(rows(1, 1_000, 10)) == due(rows(3, 10_000, 0)) == set()
    assert due(rows(FANOUT - 1, 1000) | rows(2, 1000, 0) | rows(2, 1000, model="n")) == set()
    assert due(rows(2 * FANOUT, MAX_ROWS)) == set()


def test_copies_are_as_many_as_the_logarithm() -> None:
    """A base that grows by small ingests: few segments at any time, and each row is copied a few times only."""
    segments: dict[str, SegmentRows] = {}
    copied = 0
    for number in range(2_000):
        segments[str(number)] = SegmentRows("m", 500, 500)
        if chosen := due(segments):
            total = sum(segments.pop(id).rows for id in chosen)
            segments[f"merged-{number}"] = SegmentRows("m", total, total)
            copied += total
        assert len(segments) <= 4 * FANOUT
    assert copied / (2_000 * 500) <= 4


def test_tidy_after_many_ingests(knowledge: Knowledge, tmp_path: Path) -> None:
    for number in range(FANOUT):
        write(tmp_path / "docs" / f"{number}.md", f"# Rule {number}\n\nRule {number} about the ward. 规定{number}。\n")
        with knowledge.db.lock("index") as lock:
            assert tidy(store=knowledge.store, vectors=knowledge.vectors, lock=lock) is None
        knowledge.ingest(tmp_path / "docs")
    before = _found(knowledge.index())
    with knowledge.db.lock("index") as lock:
        done = tidy(store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    assert done is not None and done["after"] == 1 and _found(knowledge.index()) == before
