"""What every pair of document store and vector store must do, on both: SQLite with files, and PostgreSQL with pgvector."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from retrieval_support import Knowledge, write

from appliance.store import pgindex, schema
from appliance.store.locks import Locked
from retrieval import ann, lexical
from retrieval.compact import compact
from retrieval.generation import LEAN
from retrieval.index import verify
from retrieval.maintain import remove, rollback
from retrieval.staging import IngestSettings
from retrieval.types import DocumentKey, Scope

HERE = Path(__file__).parent
SETTINGS = IngestSettings(40, 80, segment_chunks=1)
OTHERS = ("embedded", "segment-renamed", "staged", "manifest-written", "collected")
STEPS = ["segment-written", "before-commit", "committed", *(pytest.param(step, marks=pytest.mark.slow) for step in OTHERS)]
Open = Callable[..., Knowledge]


@pytest.fixture(params=["sqlite", "postgresql"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same base again and again, on PostgreSQL from machines with folders of their own."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    opened: list[Knowledge] = []

    def open(machine: str = "one") -> Knowledge:
        opened.append(Knowledge(tmp_path / (machine if url else "one"), url=url))
        return opened[-1]

    yield open
    for knowledge in opened:
        knowledge.db.close()


def _delete(knowledge: Knowledge, *ids: str) -> None:
    with knowledge.db.lock("index") as lock:
        keys = [DocumentKey("medical", id) for id in ids]
        remove(keys, store=knowledge.store, vectors=knowledge.vectors, lock=lock)


def _rollback(knowledge: Knowledge, generation: int) -> None:
    with knowledge.db.lock("index") as lock:
        rollback(generation, store=knowledge.store, vectors=knowledge.vectors, lock=lock)


def test_an_empty_base(base: Open) -> None:
    knowledge = base()
    assert knowledge.search("anything 任何").passages == ()
    assert knowledge.store.live_generation() is None
    assert verify(knowledge.store, knowledge.vectors) == []


def test_upsert(base: Open, docs: Path) -> None:
    knowledge = base()
    assert knowledge.ingest(docs).added == 4
    write(docs / "visits.txt", "VISITING RULES\n\nVisitors may come at noon only, with a badge.\n")
    report = knowledge.ingest(docs)
    assert (report.updated, report.unchanged, report.generation) == (1, 3, 2)
    (passage,) = [found for found in knowledge.search("when may visitors come").passages if found.document.id == "visits.txt"]
    assert "noon" in passage.chunk.text
    assert verify(knowledge.store, knowledge.vectors) == []


def test_chinese_text(base: Open, docs: Path) -> None:
    knowledge = base()
    knowledge.ingest(docs)
    best = knowledge.search("普通门诊诊查费是多少元").passages[0]
    assert best.document.id == "zh/fees.md" and "20元" in best.chunk.text
    assert best.dense_rank is not None and best.lexical_rank == 0
    document = knowledge.store.document(best.chunk.doc)
    assert document is not None and document.text[best.chunk.start : best.chunk.end] == best.chunk.text


def test_a_deleted_document_is_nowhere(base: Open, docs: Path) -> None:
    knowledge, other = base("one"), base("two")
    knowledge.ingest(docs, settings=SETTINGS)
    pinned = other.index()
    _delete(knowledge, "zh/fees.md")
    for index in (knowledge.index(), other.index(), pinned, pinned.refresh()):
        assert "zh/fees.md" not in {passage.document.id for passage in index.search("门诊诊查费 床位费", Scope(), 10).passages}
    assert knowledge.store.document(DocumentKey("medical", "zh/fees.md")) is None


def test_filters_are_inside_the_search(base: Open, tmp_path: Path) -> None:
    knowledge = base()
    for number in range(30):
        write(tmp_path / "secret" / f"{number}.txt", f"The dose of gentamicin is {number} mg once daily. 庆大霉素剂量。\n")
    write(tmp_path / "open" / "a.txt", "The dose is on the label of the bottle.\n")
    write(tmp_path / "law" / "b.txt", "A dose of patience helps with contracts.\n")
    knowledge.ingest(tmp_path / "secret", labels=frozenset({"ward", "senior"}))
    knowledge.ingest(tmp_path / "open")
    knowledge.ingest(tmp_path / "law", domain="law")
    question = "the dose of gentamicin 庆大霉素"
    assert set(knowledge.ids(question, Scope(), 3)) == {"a.txt", "b.txt"}
    assert set(knowledge.ids(question, Scope(None, frozenset({"ward"})), 3)) == {"a.txt", "b.txt"}
    assert knowledge.ids(question, Scope(frozenset({"law"}), frozenset({"ward", "senior"})), 3) == ["b.txt"]
    assert len(knowledge.ids(question, Scope(frozenset({"medical"}), frozenset({"ward", "senior"})), 30)) == 30
    assert knowledge.ids(question, Scope(frozenset())) == []


def test_reopening_changes_nothing(base: Open, docs: Path) -> None:
    knowledge = base("one")
    knowledge.ingest(docs, settings=SETTINGS)
    before = knowledge.search("dose 元 visitors", k=10).passages
    knowledge.db.close()
    for machine in ("one", "two"):
        assert base(machine).search("dose 元 visitors", k=10).passages == before


def test_an_index_is_pinned_to_its_generation(base: Open, docs: Path) -> None:
    knowledge = base()
    knowledge.ingest(docs, settings=SETTINGS)
    pinned = knowledge.index()
    write(docs / "visits.txt", "VISITING RULES\n\nNobody may come.\n")
    write(docs / "new.txt", "Visitors must leave their coats outside.\n")
    knowledge.ingest(docs, settings=SETTINGS)
    old = pinned.search("visitors may come", Scope(), 10)
    assert old.generation == 1 and {passage.document.id for passage in old.passages}.isdisjoint({"new.txt"})
    assert "14:00" in "".join(passage.chunk.text for passage in old.passages)
    assert pinned.refresh().search("visitors coats", Scope()).passages[0].document.id == "new.txt"


def test_rollback_and_what_was_deleted_since(base: Open, docs: Path) -> None:
    knowledge = base()
    knowledge.ingest(docs, settings=SETTINGS)
    write(docs / "visits.txt", "VISITING RULES\n\nNobody may come.\n")
    knowledge.ingest(docs, settings=SETTINGS)
    _delete(knowledge, "gentamicin.md")
    _rollback(knowledge, 1)
    found = knowledge.search("visitors may come dose of gentamicin", k=10)
    assert found.generation == 1
    assert "gentamicin.md" not in {passage.document.id for passage in found.passages}
    assert "14:00" in "".join(passage.chunk.text for passage in found.passages)
    _delete(knowledge, "visits.txt")
    assert "visits.txt" not in knowledge.ids("visitors may come", k=10)
    assert set(knowledge.ids("费 甲方 元", k=10)) == {"zh/fees.md", "zh/contract.txt"}
    assert verify(knowledge.store, knowledge.vectors) == []


def test_equal_texts_are_stored_once(base: Open, tmp_path: Path) -> None:
    knowledge = base()
    text = "# 收费标准\n\n普通门诊诊查费为每次20元。\n"
    write(tmp_path / "docs" / "a.md", text)
    write(tmp_path / "docs" / "b.md", text)
    knowledge.ingest(tmp_path / "docs")
    assert knowledge.embedder.passages == 1
    (passage,) = knowledge.search("门诊诊查费").passages
    assert {source.id for source in passage.sources} == {"a.md", "b.md"}
    _delete(knowledge, "a.md")
    (passage,) = knowledge.search("门诊诊查费").passages
    assert [source.id for source in passage.sources] == ["b.md"]


def test_compaction_purges_and_keeps_what_is_found(base: Open, docs: Path) -> None:
    knowledge, other = base("one"), base("two")
    for number in range(6):
        write(docs / f"{number}.txt", f"Rule {number}: lockers are cleaned on day {number}. 第{number}条规定。\n")
        knowledge.ingest(docs)
    _delete(knowledge, "3.txt", "zh/fees.md")
    pinned, question = other.index(), "lockers 规定 dose visitors"
    before = [passage.chunk for passage in pinned.search(question, Scope(), 20).passages]
    with knowledge.db.lock("index") as lock:
        report = compact(store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    assert report["after"] < report["before"] and report["purged"] > 0
    for index in (knowledge.index(), pinned, pinned.refresh()):
        assert [passage.chunk for passage in index.search(question, Scope(), 20).passages] == before
    assert verify(knowledge.store, knowledge.vectors) == []
    if knowledge.db.is_postgres:
        with knowledge.db.read() as connection:
            rows = connection.execute(sa.select(sa.func.count()).select_from(pgindex.row)).scalar_one()
        assert rows == sum(segment["rows"] for segment in report["segments"])


@pytest.mark.parametrize("step", STEPS)
def test_killed_in_the_middle_of_a_write(base: Open, docs: Path, tmp_path: Path, step: str) -> None:
    knowledge = base()
    knowledge.ingest(docs, settings=SETTINGS)
    write(docs / "visits.txt", "VISITING RULES\n\nVisitors may come at noon.\n")
    (docs / "zh" / "contract.txt").unlink()

    command = [sys.executable, str(HERE / "store_worker.py"), str(tmp_path / "one"), str(docs), step]
    command += [knowledge.db.url] if knowledge.db.is_postgres else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE), *sys.path]), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, env=environment, timeout=120).returncode == -signal.SIGKILL

    after = base()
    live = after.store.live_generation()
    assert live == (2 if step in ("committed", "collected") else 1)
    assert verify(after.store, after.vectors) == []
    assert ("zh/contract.txt" in after.ids("甲方 收货", k=10)) == (live == 1)
    report = after.ingest(docs, prune=True, settings=SETTINGS)
    assert (report.generation, report.failed) == (2, [])
    assert set(after.ids("visitors dose 元 noon", k=20)) == {"visits.txt", "gentamicin.md", "zh/fees.md"}
    assert verify(after.store, after.vectors) == []


def test_readers_see_one_generation_each(base: Open, tmp_path: Path) -> None:
    writer, reader = base("one"), base("two")

    def publish(edition: int) -> None:
        for number in range(6):
            write(tmp_path / "docs" / f"{number}.txt", f"Edition {edition} of rule {number}: 第{edition}版规定。\n")
        writer.ingest(tmp_path / "docs", settings=SETTINGS)

    publish(1)
    done = threading.Event()
    mixed: list[set[str]] = []
    seen: set[int | None] = set()

    def read() -> None:
        index = reader.index()
        while not done.is_set():
            index = index.refresh()
            found = index.search("edition rule 规定", Scope(), 20)
            editions = {passage.chunk.text.split()[1] for passage in found.passages}
            seen.add(found.generation)
            if len(found.passages) != 6 or editions != {str(found.generation)}:
                mixed.append(editions)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for edition in range(2, 5):
        publish(edition)
    done.set()
    for thread in threads:
        thread.join()
    assert not mixed
    assert len(seen) > 1


def test_writers_wait_for_each_other(base: Open) -> None:
    with base().db.write() as connection:
        connection.execute(schema.setting.insert().values(key="count", value="0"))

    def count(database: Knowledge) -> None:
        for _ in range(10):
            with database.db.write() as connection:
                value = connection.execute(sa.select(schema.setting.c.value).where(schema.setting.c.key == "count")).scalar_one()
                connection.execute(schema.setting.update().where(schema.setting.c.key == "count").values(value=str(int(value) + 1)))

    threads = [threading.Thread(target=count, args=(base(machine),)) for machine in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert base().db.setting("count") == "30"


def test_a_resource_has_one_writer(base: Open, docs: Path) -> None:
    knowledge, other = base("one"), base("two")
    with knowledge.db.lock("index") as held:
        held.beat()
        with pytest.raises(Locked, match=f"index is being written by .*:{os.getpid()}:"):
            other.ingest(docs)
        with other.db.lock("adapter:medical"), other.db.write() as connection:
            held.check(connection)
    assert other.ingest(docs).added == 4


def test_a_dead_writers_lock_is_free(base: Open, tmp_path: Path) -> None:
    knowledge = base()
    code = "import sys, time; from appliance.store.database import Database\n"
    code += "with Database(sys.argv[1]).lock('index'): print('held', flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", code, knowledge.db.url], stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        with pytest.raises(Locked), knowledge.db.lock("index"):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
    deadline = threading.Event()
    # The server notices a closed connection in its own time.
    for _ in range(100):
        try:
            with knowledge.db.lock("index"):
                return
        except Locked:
            deadline.wait(0.1)
    pytest.fail("the lock of a dead process was not freed")


@pytest.mark.parametrize("visible", [1.0, 0.3, 0.02])
def test_recall_against_exact(base: Open, monkeypatch: pytest.MonkeyPatch, visible: float) -> None:
    """Whatever share of the rows is visible, and in a language far from the question's as well."""
    monkeypatch.setattr(pgindex, "EXACT_ROWS", 100)
    monkeypatch.setattr(ann, "ANN_ROWS", 500)
    knowledge, random = base(), np.random.default_rng(7)
    languages = np.array(["en", "zh"])[(random.random(3000) < 0.2).astype(int)]
    apart = {"en": random.normal(size=64), "zh": random.normal(size=64)}
    rows = random.normal(size=(40, 64))[random.integers(0, 40, 3000)] + 0.6 * random.normal(size=(3000, 64))
    rows += np.stack([apart[name] for name in languages])
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    vectors, model = knowledge.vectors, "e" * 64
    hashes = {
        name: vectors.write_segment(name, rows[part], lexical.build(["a 中"] * 1000), model, languages=languages[part].tolist())
        for name, part in (("a", slice(0, 1000)), ("b", slice(1000, 2000)), ("c", slice(2000, 3000)))
    }
    every = np.arange(1000)
    merged, _ = vectors.merge("m", [(name, every) for name in hashes], languages.tolist(), hashes, model)
    vectors.keep({"m"}, set())
    found = vectors.open({"m": merged}, ["m"])
    assert vectors.sizes({"m": merged}, ["m"]) == ({"m": 3000}, [])
    mask = random.random(3000) < visible
    prepared = found.visible(Scope(), mask, np.unique(languages, return_inverse=True)[1].astype(np.int64))
    # The reference, with the mean of few chunks of a language leaning on that of all as in `retrieval.generation`.
    sums = {name: rows[mask & (languages == name)] for name in ("en", "zh")}
    means = {name: (seen.sum(axis=0) + LEAN * rows[mask].mean(axis=0)) / (len(seen) + LEAN) for name, seen in sums.items()}
    queries = rows[::100] + 0.1 * random.normal(size=(30, 64)).astype(np.float32)
    hits = 0
    for query in queries / np.linalg.norm(queries, axis=1, keepdims=True):
        places, cosines, ranked = found.dense(query, prepared, 10)
        shifted = np.where(mask, rows @ query - np.array([query @ means[name] for name in languages]), -np.inf)
        assert mask[places].all() and (np.diff(ranked) <= 1e-6).all()
        np.testing.assert_allclose(cosines, rows[places] @ query, atol=1e-5)
        np.testing.assert_allclose(ranked, shifted[places], atol=1e-4)
        hits += len(set(np.argsort(-shifted)[:10].tolist()) & set(places.tolist()))
    assert hits / 300 >= 0.98
