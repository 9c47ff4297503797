"""Damaged files of a generation are noticed and named, and the index can be rebuilt from the stored texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from retrieval_support import Knowledge, write

from retrieval.index import verify
from retrieval.maintain import rebuild, rollback
from retrieval.staging import IngestSettings
from retrieval.types import IndexCorrupt, Scope

FILES = ["vectors.npy", "lexical.npz", "segment.json", "manifest"]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _delete(path: Path) -> None:
    path.unlink()


def _victim(knowledge: Knowledge, name: str) -> Path:
    if name == "manifest":
        return knowledge.folder / "manifests" / f"{knowledge.store.live_generation()}.json"
    return next((knowledge.folder / "segments").iterdir()) / name


@pytest.mark.parametrize("damage", [_flip, _truncate, _delete])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_noticed_and_named(knowledge: Knowledge, docs: Path, name: str, damage: Callable[[Path], None]) -> None:
    knowledge.ingest(docs)
    path = _victim(knowledge, name)
    damage(path)
    with pytest.raises(IndexCorrupt, match="rebuild") as raised:
        knowledge.index()
    assert str(path) in str(raised.value)
    assert any(str(path) in problem for problem in verify(knowledge.store, knowledge.vectors))


@pytest.mark.parametrize("name", FILES)
def test_rebuild_repairs(knowledge: Knowledge, docs: Path, name: str) -> None:
    knowledge.ingest(docs)
    before = knowledge.search("违约金", k=20)
    _flip(_victim(knowledge, name))
    with knowledge.db.lock("index") as lock:
        done = rebuild(
            store=knowledge.store, vectors=knowledge.vectors, embedder=knowledge.embedder, lock=lock, settings=IngestSettings(40, 80)
        )
    assert done == {"generation": 2, "documents": 4, "chunks": len(knowledge.index())}
    after = knowledge.search("违约金", k=20)
    assert [passage.chunk for passage in after.passages] == [passage.chunk for passage in before.passages]
    assert knowledge.ingest(docs).unchanged == 4


def test_the_previous_generation_serves(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    write(docs / "new.md", "# New\n\nA new document about parking.\n")
    knowledge.ingest(docs)
    newest = max((knowledge.folder / "segments").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    _flip(newest / "vectors.npy")
    with pytest.raises(IndexCorrupt):
        knowledge.index()
    with knowledge.db.lock("index") as lock:
        with pytest.raises(IndexCorrupt):
            rollback(2, store=knowledge.store, vectors=knowledge.vectors, lock=lock)
        rollback(1, store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    assert knowledge.index().search("visitors", Scope()).passages


def test_an_ingest_over_a_damaged_manifest_stops(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    _flip(_victim(knowledge, "manifest"))
    write(docs / "new.md", "# New\n\nMore.\n")
    with pytest.raises(IndexCorrupt, match="rebuild"):
        knowledge.ingest(docs)
    assert knowledge.store.live_generation() == 1
