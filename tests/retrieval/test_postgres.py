"""What only PostgreSQL has: its connections and locks, damage in its tables, its errors, and indexes built and dropped by size."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from retrieval_support import Knowledge, write

from appliance.errors import ApplianceError, DatabaseFailed, UsageError
from appliance.store import database as store_database
from appliance.store import pgindex, pgtend, postgres, schema
from appliance.store.database import Database
from appliance.store.locks import Locked
from retrieval import lexical
from retrieval.fallback import open_serving
from retrieval.index import verify
from retrieval.maintain import remove
from retrieval.types import IndexCorrupt, RetrievalError, Scope


@pytest.fixture
def base(postgres_url: str, tmp_path: Path) -> Iterator[Knowledge]:
    made = Knowledge(tmp_path / "one", url=postgres_url)
    yield made
    made.db.close()


def test_migrations_make_exactly_the_tables(base: Knowledge) -> None:
    every = sa.MetaData()
    for table in (*schema.metadata.sorted_tables, *pgindex.metadata.sorted_tables):
        table.to_metadata(every)
    with base.db.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), every) == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://root@localhost/x", "mysql is not supported"),
        ("postgresql://localhost/x", "names no user"),
        ("postgresql://u:hidden@localhost/x?sslmode=sometimes", "sslmode=sometimes is not known"),
        ("postgresql://u:hidden@localhost/x?sslmode=verify-full&sslrootcert=/no/such.pem", "no file sslrootcert=/no/such.pem"),
    ],
)
def test_a_url_that_cannot_be_right(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Database(url)
    assert "hidden" not in str(caught.value)


def test_a_server_that_does_not_answer(postgres_url: str) -> None:
    for url in ("postgresql://u:hidden@127.0.0.1:1/x", postgres_url.replace("/test_", "/no_such_")):
        with pytest.raises(ApplianceError, match="check") as caught:
            Database(url).migrate()
        assert "hidden" not in str(caught.value)


def test_an_old_pgvector_is_refused(base: Knowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_PGVECTOR", (99, 0))
    with base.db.write() as connection, pytest.raises(ApplianceError, match=r"has pgvector 0\.\d+\.\d+, needed is 99\.0 or later"):
        postgres.require_pgvector(connection)


def test_a_lock_is_lost_with_its_connection(base: Knowledge) -> None:
    with base.db.lock("index") as held, base.db.session() as session:
        holders = "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory'"
        assert session.exec_driver_sql(holders).scalar_one() == 1
        with pytest.raises(Locked, match="lost with its connection"), base.db.write() as connection:
            held.check(connection)
    with base.db.lock("index"):
        pass


def test_a_read_sees_one_snapshot(base: Knowledge) -> None:
    count = sa.select(sa.func.count()).select_from(schema.setting)
    with base.db.read() as connection:
        before = connection.execute(count).scalar_one()
        base.db.secret()
        assert connection.execute(count).scalar_one() == before
    with base.db.read() as connection:
        assert connection.execute(count).scalar_one() == before + 1


def test_a_restarted_connection_is_noticed(base: Knowledge, docs: Path) -> None:
    base.ingest(docs)
    with base.db.session() as session:
        others = "pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert session.exec_driver_sql(f"SELECT count(pg_terminate_backend(pid)) FROM {others}").scalar_one() >= 1
    assert base.ids("gentamicin dose")[0] == "gentamicin.md"


def test_a_connection_that_ends_in_the_middle(base: Knowledge) -> None:
    query = sa.select(sa.func.count()).select_from(schema.setting)
    with pytest.raises(DatabaseFailed, match="does not answer"), base.db.read() as connection:
        connection.execute(query)
        with base.db.session() as session:
            ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'"
            session.exec_driver_sql(ends)
        for _ in range(100):
            connection.execute(query)
    assert base.db.setting("anything") is None


def test_a_writer_that_never_ends(base: Knowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**postgres._SESSION, "startup_params": {"lock_timeout": "100ms"}}
    monkeypatch.setattr(postgres, "_SESSION", settings)
    other = Database(base.db.url)
    with base.db.write(), pytest.raises(DatabaseFailed, match="another process has been writing for too long"), other.write():
        pass
    other.close()


def test_a_huge_file_has_a_size(base: Knowledge, docs: Path) -> None:
    base.ingest(docs)
    with base.db.write() as connection:
        connection.execute(schema.document.update().values(file_size=5 << 30))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE vector_row SET embedding = embedding * embedding WHERE position = 1", "vectors are not those that were written"),
        ("DELETE FROM vector_row WHERE position = 1", "vectors, expected|vectors are not those"),
        ("UPDATE vector_postings SET data = substr(data, 2)", "postings are not those that were written"),
        ("UPDATE vector_segment SET description = replace(description, '\"dim\": 64', '\"dim\": 65')", "not the one that the generation"),
        ("DELETE FROM vector_postings; DELETE FROM vector_segment", "is missing"),
        ("UPDATE vector_manifest SET content = content || ' '", "sha256 differs"),
        ("DELETE FROM vector_manifest", "the manifest 1.json is missing"),
    ],
)
def test_damage_is_named_and_rebuilt(base: Knowledge, docs: Path, damage: str, words: str) -> None:
    base.ingest(docs)
    with base.db.write() as connection:
        for statement in damage.split("; "):
            connection.exec_driver_sql(statement)
    problems = verify(base.store, base.vectors)
    assert problems and all("appliance index rebuild" in problem for problem in problems)
    assert any(re.search(words, problem) for problem in problems)


def test_a_damaged_generation_is_stood_in_for(base: Knowledge, docs: Path) -> None:
    base.ingest(docs)
    write(docs / "new.txt", "Lockers are cleaned on Monday. 储物柜每周一清洁。\n")
    base.ingest(docs)
    with base.db.write() as connection:
        connection.exec_driver_sql("UPDATE vector_manifest SET content = '' WHERE name = '2.json'")
    serving = open_serving(base.store, base.vectors, base.embedder)
    assert serving.index.generation == 1 and "generation 2 is damaged" in serving.problem
    with base.db.write() as connection:
        connection.exec_driver_sql("DELETE FROM vector_manifest")
    with pytest.raises(IndexCorrupt):
        open_serving(base.store, base.vectors, base.embedder)


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"short"), lambda path: path.unlink()])
def test_a_spoilt_copy_is_fetched_again(base: Knowledge, docs: Path, spoil: Callable[[Path], object]) -> None:
    base.ingest(docs)
    before, opened = base.search("dose 元").passages, base.index()
    (copy,) = base.folder.glob("*.postings")
    assert not opened.altered()
    spoil(copy)
    assert opened.altered()
    assert base.search("dose 元").passages == before


def test_copies_of_purged_segments_are_deleted(base: Knowledge, docs: Path, tmp_path: Path) -> None:
    other = Knowledge(tmp_path / "two", url=base.db.url)
    base.ingest(docs)
    assert other.search("dose").passages
    old = {path.name for path in other.folder.iterdir()}
    with base.db.lock("index") as lock:
        everything = [document.key for document in base.store.live_documents()]
        remove(everything, store=base.store, vectors=base.vectors, lock=lock)
    assert other.search("dose").passages == ()
    assert old and not old & {path.name for path in other.folder.iterdir()}
    other.db.close()


def test_a_full_server_changes_nothing(base: Knowledge, docs: Path) -> None:
    base.ingest(docs)
    body = "BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = 'disk_full'; END"
    function = f"CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"
    with base.db.write() as connection:
        connection.exec_driver_sql(function)
        connection.exec_driver_sql("CREATE TRIGGER t BEFORE INSERT ON vector_row FOR EACH ROW EXECUTE FUNCTION full_disk()")
    write(docs / "new.txt", "Lockers are cleaned on Monday.\n")
    with pytest.raises(RetrievalError, match=r"the disk is full .*: nothing was changed"):
        base.ingest(docs)
    assert base.store.live_generation() == 1
    with base.db.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER t ON vector_row")
    assert base.ingest(docs).added == 1


def test_indexes_come_with_size_and_go_with_their_language(base: Knowledge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgindex, "EXACT_ROWS", 100)
    random = np.random.default_rng(0)
    rows = random.normal(size=(300, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    postings, vectors = lexical.build(["a"] * 300), base.vectors
    hashes = {
        "en": vectors.write_segment("en", rows, postings, "e" * 64, languages=["en"] * 300),
        "zh": vectors.write_segment("zh", rows[:50], lexical.build(["中"] * 50), "e" * 64, languages=["zh"] * 50),
    }
    assert vectors.facts(hashes)["en"].search["method"] == "exact"
    vectors.keep(hashes, set())
    facts = vectors.facts(hashes)
    recall = facts["en"].search["recall"]
    assert facts["en"].search == {"method": "hnsw", "ef_search": 200, "recall": recall, "target": 0.98, "queries": 128}
    assert set(recall) == {"passages", "questions"} and min(recall.values()) >= 0.98 and facts["en"].bytes > 300 * 32 * 4
    assert facts["zh"].search["method"] == "exact"
    opened = vectors.open(hashes, hashes)
    prepared = opened.visible(Scope(), np.ones(350, dtype=bool), np.array([0] * 300 + [1] * 50))
    query = "SELECT indexrelname, idx_scan FROM pg_stat_user_indexes WHERE indexrelname LIKE 'vector_row_hnsw%%'"
    with base.db.session() as session:
        session.exec_driver_sql("SELECT pg_stat_reset()")
    assert opened.offsets["en"] + 7 in opened.dense(rows[7], prepared, 2)[0]
    base.db.close()
    with base.db.session() as session:
        ((name, scans),) = session.exec_driver_sql(query).all()
        assert scans == 1
        vectors.keep({"zh"}, set())
        assert session.exec_driver_sql(query).all() == []
        assert session.exec_driver_sql("SELECT count(*) FROM vector_row").scalar_one() == 50
    assert name.startswith("vector_row_hnsw_")


def test_an_index_is_searched_as_far_as_it_needs_and_measured_again_when_the_rows_have_doubled(
    base: Knowledge, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed, measure, vectors = 10_000, pgtend._found, base.vectors

    def poor(session: sa.Connection, *given: Any) -> float:
        """An index that finds half of what is wanted unless it is searched as far as is needed."""
        ef_search = int(session.exec_driver_sql("SELECT current_setting('hnsw.ef_search')").scalar_one())
        return measure(session, *given) if ef_search >= needed else 0.5

    monkeypatch.setattr(pgindex, "EXACT_ROWS", 100)
    monkeypatch.setattr(pgtend, "_found", poor)
    rows = np.random.default_rng(0).normal(size=(800, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    hashes: dict[str, str] = {}

    def add(name: str, start: int, end: int) -> dict[str, Any]:
        texts = lexical.build(["储物柜"] * (end - start))
        hashes[name] = vectors.write_segment(name, rows[start:end], texts, "e" * 64, languages=["zh"] * (end - start))
        vectors.keep(hashes, set())
        return dict(vectors.facts(hashes)[name].search)

    def indexes() -> int:
        with base.db.session() as session:
            return int(session.exec_driver_sql("SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'vector_row_hnsw%%'").scalar_one())

    def nearest() -> None:
        opened = vectors.open(hashes, hashes)
        prepared = opened.visible(Scope(), np.ones(opened.size, dtype=bool), np.zeros(opened.size, dtype=np.int64))
        for query in rows[:10]:
            best = np.sort(rows[: opened.size] @ query)[::-1][:10]
            np.testing.assert_allclose(opened.dense(query, prepared, 10)[1], best, atol=1e-5)

    assert add("a", 0, 200) == {"method": "exact", "why": "recall@10 is 0.5 at hnsw.ef_search = 1000, wanted 0.98"} and indexes() == 0
    nearest()
    # Not measured again before the rows have doubled.
    needed = 400
    assert add("b", 200, 390)["method"] == "exact" and indexes() == 0
    found = add("c", 390, 400)
    assert (found["method"], found["ef_search"], indexes()) == ("hnsw", 400, 1) and min(found["recall"].values()) >= 0.98
    nearest()
    with base.db.read() as connection:
        (known,) = pgindex.measured(connection).values()
        assert known.measured_rows == 400 and pgindex.use_index(connection, known.id)
        assert connection.exec_driver_sql("SELECT current_setting('hnsw.ef_search')").scalar_one() == "400"
    needed = 10_000
    assert add("d", 400, 800)["method"] == "exact" and indexes() == 0
    nearest()


def test_an_index_of_an_earlier_version_serves_as_before_and_is_measured_at_the_next_write(
    postgres_server: Callable[[str], str], tmp_path: Path
) -> None:
    name = f"old_{secrets.token_hex(6)}"
    with closing(postgres.open_session(postgres_server("postgres"))) as session:
        session.exec_driver_sql(f"CREATE DATABASE {name}")
    database = Database(postgres_server(name))
    config = Config()
    config.set_main_option("script_location", str(Path(store_database.__file__).parent / "migrations"))
    with database.engine.connect().execution_options(appliance_write=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0015")
        connection.exec_driver_sql(
            "INSERT INTO vector_space (embedding_hash, lang, dim, recall) VALUES ('e', 'zh', 8, 0.99), ('e', 'en', 8, NULL)"
        )
    database.migrate()
    with database.read() as connection:
        ((number, found),) = pgindex.measured(connection).items()
        assert (found.lang, found.ef_search, found.measured_rows, found.recall_questions) == ("zh", 200, 0, 0.99)
        assert pgindex.use_index(connection, number) and not pgindex.use_index(connection, number + 1)
    database.close()


def test_the_longest_id(base: Knowledge, tmp_path: Path) -> None:
    # Letters in no order, so that the server cannot compress them.
    letters = "".join(chr(code) for code in np.random.default_rng(0).integers(0x4E00, 0x9FA5, 700))
    rows = [{"id": letters[:666], "text": "Lockers are cleaned. 储物柜"}, {"id": letters, "text": "Not this one."}]
    corpus = write(tmp_path / "corpus.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    report = base.ingest(corpus)
    assert report.added == 1 and "2000 bytes are possible" in report.failed[0].error
    assert base.ids("储物柜") == [letters[:666]]
