"""How many generations are kept: what only older ones had goes, and what is left serves, stands in and is rolled back to as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from retrieval_support import Knowledge, write

from appliance.store import pgindex, schema
from appliance.store.documents import SqlDocumentStore
from retrieval.compact import compact
from retrieval.fallback import LiveIndex
from retrieval.folder import FolderVectors
from retrieval.index import verify
from retrieval.maintain import rebuild, remove, rollback
from retrieval.staging import IngestSettings
from retrieval.types import DocumentKey, RetrievalError, Scope

SETTINGS = IngestSettings(40, 80, segment_chunks=2)


@pytest.fixture(params=["folder", pytest.param("postgres", marks=pytest.mark.slow)])
def keep(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int], Knowledge]]:
    """A base that keeps so many generations."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    made = Knowledge(tmp_path / "workspace", url=url)

    def keeping(number: int) -> Knowledge:
        made.store = SqlDocumentStore(made.db, number)
        return made

    yield keeping
    made.db.close()


def _refresh(knowledge: Knowledge, docs: Path, number: int) -> None:
    """The generation `number`: a document says another fee."""
    write(docs / "zh" / "fees.md", f"# 收费标准\n\n普通门诊诊查费为每次{number}00元。\n")
    knowledge.ingest(docs, settings=SETTINGS)
    assert knowledge.store.live_generation() == number


def _back(knowledge: Knowledge, generation: int) -> None:
    with knowledge.db.lock("index") as lock:
        rollback(generation, store=knowledge.store, vectors=knowledge.vectors, lock=lock)


def _texts(knowledge: Knowledge) -> str:
    with knowledge.db.read() as connection:
        return "\n".join(connection.execute(sa.select(schema.content_text.c.text)).scalars())


def _stored(knowledge: Knowledge) -> tuple[list[str], set[str]]:
    """The manifests and the segments that there are."""
    if isinstance(knowledge.vectors, FolderVectors):
        manifests = sorted(path.name for path in knowledge.vectors.manifests.iterdir())
        return manifests, {path.name for path in knowledge.vectors.segments.iterdir()}
    with knowledge.db.read() as connection:
        manifests = sorted(connection.execute(sa.select(pgindex.manifest.c.name)).scalars())
        return manifests, set(connection.execute(sa.select(pgindex.segment.c.id)).scalars())


def test_what_only_older_generations_had_goes(keep: Callable[[int], Knowledge], docs: Path) -> None:
    knowledge = keep(3)
    pinned = None
    for number in range(1, 7):
        _refresh(knowledge, docs, number)
        pinned = pinned or knowledge.index()
        assert knowledge.store.generations() == list(range(max(1, number - 2), number + 1))
    texts = _texts(knowledge)
    assert [number for number in range(1, 7) if f"{number}00元" in texts] == [4, 5, 6]
    manifests, segments = _stored(knowledge)
    assert manifests == ["4.json", "5.json", "6.json"]
    # What all generations share, and a segment for each of the three.
    assert len(segments) == len(knowledge.store.members(4).segments) + 2
    assert verify(knowledge.store, knowledge.vectors) == []

    for gone in (1, 3, 7):
        with pytest.raises(RetrievalError, match=rf"no generation {gone} to roll back to; kept are 4, 5, 6 .*keep_generations"):
            _back(knowledge, gone)
    for number in (4, 6, 5):
        _back(knowledge, number)
        assert f"{number}00元" in knowledge.search("门诊诊查费").passages[0].chunk.text
    # Whoever still searches a generation that went finds what has not changed since.
    assert pinned is not None
    found = "".join(passage.chunk.text for passage in pinned.search("visitors 门诊诊查费", Scope(), 20).passages)
    assert "Visitors may come" in found and "诊查费" not in found


def test_the_live_generation_its_parent_and_the_newest_stay(keep: Callable[[int], Knowledge], docs: Path) -> None:
    knowledge = keep(4)
    for number in range(1, 5):
        _refresh(knowledge, docs, number)
    keep(2)
    _back(knowledge, 2)
    _refresh(knowledge, docs, 5)
    assert knowledge.store.generations() == [2, 5], "made from 2"
    _back(knowledge, 2)
    knowledge.ingest(docs, settings=SETTINGS, domain="other")
    assert knowledge.store.live_generation() == 6 and knowledge.store.generations() == [2, 6]
    assert "200元" in "".join(passage.chunk.text for passage in knowledge.search("门诊诊查费", k=20).passages)
    assert verify(knowledge.store, knowledge.vectors) == []


def test_a_removed_document_stays_removed(keep: Callable[[int], Knowledge], docs: Path) -> None:
    knowledge = keep(2)
    for number in (1, 2):
        _refresh(knowledge, docs, number)
    with knowledge.db.lock("index") as lock:
        parts = {"store": knowledge.store, "vectors": knowledge.vectors, "lock": lock}
        remove([DocumentKey("medical", "visits.txt")], **parts)  # type: ignore[arg-type]
        compact(**parts)  # type: ignore[arg-type]
    for generation in knowledge.store.generations():
        _back(knowledge, generation)
        assert "visits.txt" not in knowledge.ids("visitors", k=20) and len(knowledge.ids("dose 违约金 诊查费", k=20)) > 2


def test_a_rebuild_does_not_double_the_files_for_good(keep: Callable[[int], Knowledge], docs: Path) -> None:
    knowledge = keep(2)
    _refresh(knowledge, docs, 1)
    before = _stored(knowledge)[1]
    with knowledge.db.lock("index") as lock:
        parts = {"store": knowledge.store, "vectors": knowledge.vectors, "embedder": knowledge.embedder, "lock": lock}
        rebuild(settings=SETTINGS, **parts)  # type: ignore[arg-type]
        assert before < _stored(knowledge)[1]
        rebuild(settings=SETTINGS, **parts)  # type: ignore[arg-type]
    after = _stored(knowledge)[1]
    assert not before & after and len(after) == 2 * len(before)


def test_the_parent_stands_in_with_the_fewest_kept(keep: Callable[[int], Knowledge], docs: Path) -> None:
    knowledge = keep(2)
    for number in range(1, 5):
        _refresh(knowledge, docs, number)
    info = knowledge.store.generation(4)
    assert info is not None
    if not isinstance(knowledge.vectors, FolderVectors):
        with knowledge.db.write() as connection:
            connection.execute(pgindex.manifest.update().where(pgindex.manifest.c.name == info.manifest).values(content="{}"))
    else:
        (knowledge.vectors.manifests / info.manifest).write_text("{}")
    serving = LiveIndex(knowledge.store, knowledge.vectors).serving(knowledge.embedder)
    assert (serving.index.generation, serving.live) == (3, 4) and serving.index.search("visitors", Scope()).passages
