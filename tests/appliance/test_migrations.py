"""A workspace of the first version keeps its documents, adapters and ledger when its tables change."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from appliance.store import database as store_database
from appliance.store import schema
from appliance.store.database import Database
from appliance.store.documents import SqlDocumentStore
from appliance.store.postgres import open_session
from appliance.store.reading import DocumentReader
from retrieval.types import DocumentKey

NOW = "2026-01-02 03:04:05.000000"
LONG = "条款。" * 12_000
# What PostgreSQL does not take text for.
_TYPES = {
    **dict.fromkeys(("meta", "labels", "heading"), "json"),
    **dict.fromkeys(("updated_at", "added_at", "created_at", "deleted_at"), "timestamptz"),
}


def _at_first_version(url: str) -> Database:
    database = Database(url)
    config = Config()
    config.set_main_option("script_location", str(Path(store_database.__file__).parent / "migrations"))
    with database.engine.connect().execution_options(appliance_write=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    return database


def _fill(database: Database) -> None:
    texts = [(1, "a.md", "Alpha text", ["staff"]), (2, "b.md", LONG, []), (3, "b.md", "Newer text of b", [])]
    with database.engine.connect().execution_options(appliance_write=True) as connection, connection.begin():

        def insert(table: str, **values: object) -> None:
            marks = ", ".join(
                f"CAST(:{name} AS {_TYPES[name]})" if database.is_postgres and name in _TYPES else f":{name}" for name in values
            )
            columns = ", ".join(f'"{name}"' for name in values)
            connection.execute(sa.text(f"INSERT INTO {table} ({columns}) VALUES ({marks})"), values)

        for id, name, text, labels in texts:
            facts = {
                "domain": "legal",
                "doc_id": name,
                "sha256": str(id) * 64,
                "recipe": "how.what",
                "uri": name,
                "title": name,
                "lang": "zh",
            }
            insert("document_version", id=id, **facts, text=text, meta="{}", updated_at=NOW)
            until = 2 if id == 2 else None
            insert("generation_document", version_id=id, since=max(1, id - 1), until=until, labels=json.dumps(labels), root="/docs")
        insert("segment", id="s1", embedding_hash="e" * 64, chunks=3, created_at=NOW)
        for id, _, text, _ in texts:
            place = {"segment_id": "s1", "ordinal": id - 1, "start": 0, "end": min(len(text), 20), "heading": '["第一章"]'}
            insert("chunk", id=id, chunk_id=f"c{id}", version_id=id, **place)
        for id, name, labels in ((1, "a.md", ["staff"]), (3, "b.md", [])):
            insert("document", domain="legal", doc_id=name, version_id=id, root="/docs", labels=json.dumps(labels), added_at=NOW)
        for number in (1, 2):
            sizes = {"documents": 2, "chunks": 2}
            insert(
                "generation", id=number, manifest=f"{number}.json", manifest_sha256="m", embedding_hash="e" * 64, **sizes, created_at=NOW
            )
        insert("pointer", name="index", value="2", updated_at=NOW)
        insert("deletion", domain="legal", doc_id="gone.md", sha256="9" * 64, deleted_at=NOW)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'appliance.db'}"
        return
    server, name = request.getfixturevalue("postgres_server"), f"test_{secrets.token_hex(6)}"
    with closing(open_session(server("postgres"))) as session:
        session.exec_driver_sql(f"CREATE DATABASE {name}")
        yield server(name)
        session.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def test_migrations_make_exactly_the_schema(tmp_path: Path) -> None:
    migrated = _at_first_version(f"sqlite:///{tmp_path / 'migrated.db'}")
    new = Database(f"sqlite:///{tmp_path / 'new.db'}")
    for database in (migrated, new):
        database.migrate()
        with database.engine.connect() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": False})
            assert compare_metadata(context, schema.metadata) == []
            assert context.get_current_revision() is not None
        database.close()


def test_the_first_tables_become_the_present_ones_with_everything_in_them(url: str) -> None:
    database = _at_first_version(url)
    _fill(database)
    database.migrate()
    store, reader = SqlDocumentStore(database), DocumentReader(database)
    assert {live.key.id: live.labels for live in store.live_documents()} == {"a.md": frozenset({"staff"}), "b.md": frozenset()}
    assert store.document(DocumentKey("legal", "a.md")).text == "Alpha text"  # type: ignore[union-attr]
    old = store.members(1)
    found = store.chunks(1, old.chunk.tolist())
    assert sorted((sources[0].id, chunk.text) for chunk, sources in found.values()) == [("a.md", "Alpha text"), ("b.md", LONG[:20])]
    assert {chunk.heading for chunk, _ in found.values()} == {("第一章",)}
    assert [(version["since"], version["until"]) for version in reader.history(DocumentKey("legal", "b.md"))] == [(1, 2), (2, None)]
    assert reader.status()["chunks"] == 2
    with database.read() as connection:
        stored = connection.execute(sa.text("SELECT text FROM content_text WHERE content_id = 2 ORDER BY part")).scalars().all()
        assert len(stored) > 1 and "".join(stored) == LONG
        assert connection.execute(sa.text("SELECT count(*) FROM deletion")).scalar_one() == 1
        if not database.is_postgres:
            assert connection.execute(sa.text("PRAGMA foreign_keys")).scalar_one() == 1
            assert connection.execute(sa.text("PRAGMA foreign_key_check")).all() == []
    with database.lock("index") as lock:
        writer = store.writer(lock)
        made = writer.commit([], [DocumentKey("legal", "a.md")], "e" * 64, lambda generation, chunks: (f"{chunks}", "m"), "remove")
    assert (made.id, made.documents, made.chunks, made.manifest) == (3, 1, 1, "{'s1': 1}")
    database.close()
