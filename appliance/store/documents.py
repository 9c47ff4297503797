"""The document store of the retrieval package on the workspace's database: reading generations. Writing is in `document_writer`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import sqlalchemy as sa

from appliance.store.database import Database
from appliance.store.document_writer import SqlWriter, in_generation, not_deleted
from appliance.store.schema import chunk, document, document_version, generation, generation_document
from retrieval.store import GenerationInfo, LiveDocument, Lock, Member, Place
from retrieval.types import Chunk, Document, DocumentInfo, DocumentKey

# The columns of `document_info`, besides the labels: those of the live document or of an older generation.
FACTS = (
    document_version.c.domain,
    document_version.c.doc_id,
    document_version.c.uri,
    document_version.c.title,
    document_version.c.lang,
    document_version.c.sha256,
    document_version.c.meta,
    document_version.c.updated_at,
)
# Parameters of one statement; SQLite allows 32,766, PostgreSQL 65,535.
_BATCH = 5_000


class SqlDocumentStore:
    """`retrieval.store.DocumentStore` on SQLAlchemy Core, portable between SQLite and PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def live_generation(self) -> int | None:
        found = self._database.pointer("index")
        return None if found is None else int(found)

    def generation(self, generation_id: int) -> GenerationInfo | None:
        with self._database.read() as connection:
            row = connection.execute(sa.select(generation).where(generation.c.id == generation_id)).one_or_none()
        if row is None:
            return None
        return GenerationInfo(row.id, row.manifest, row.manifest_sha256, row.embedding_hash, row.documents, row.chunks, row.parent)

    def members(self, generation_id: int) -> tuple[list[Member], list[Place]]:
        held = generation_document
        versions = (
            sa.select(held.c.version_id, document_version.c.domain, document_version.c.lang, held.c.labels)
            .join(document_version, document_version.c.id == held.c.version_id)
            .where(in_generation(generation_id), not_deleted())
        )
        places = (
            sa.select(chunk.c.segment_id, chunk.c.ordinal, chunk.c.id, chunk.c.version_id)
            .join(held, held.c.version_id == chunk.c.version_id)
            .join(document_version, document_version.c.id == held.c.version_id)
            .where(in_generation(generation_id), not_deleted())
            .order_by(chunk.c.segment_id, chunk.c.ordinal)
        )
        with self._database.read() as connection:
            return (
                [Member(version, domain, lang, frozenset(labels)) for version, domain, lang, labels in connection.execute(versions)],
                [Place(*row) for row in connection.execute(places)],
            )

    def chunks(self, generation_id: int, rows: Collection[int]) -> dict[int, tuple[Chunk, DocumentInfo]]:
        version = document_version
        query = (
            sa.select(
                chunk,
                *FACTS,
                generation_document.c.labels,
                # substr counts characters from 1, on SQLite and PostgreSQL alike; the whole text never leaves the database.
                sa.func.substr(version.c.text, chunk.c.start + 1, chunk.c.end - chunk.c.start).label("span"),
            )
            .join(version, version.c.id == chunk.c.version_id)
            .join(generation_document, generation_document.c.version_id == version.c.id)
            .where(in_generation(generation_id), not_deleted())
        )
        found: dict[int, tuple[Chunk, DocumentInfo]] = {}
        wanted = list(rows)
        with self._database.read() as connection:
            for start in range(0, len(wanted), _BATCH):
                for row in connection.execute(query.where(chunk.c.id.in_(wanted[start : start + _BATCH]))):
                    info = document_info(row)
                    found[row.id] = Chunk(row.chunk_id, info.key, row.start, row.end, tuple(row.heading), row.page, row.span), info
        return found

    def live_documents(self) -> Iterator[LiveDocument]:
        columns = (document_version.c.sha256, document_version.c.recipe)
        query = sa.select(document, *columns).join(document_version, document_version.c.id == document.c.version_id)
        with self._database.read() as connection:
            for row in connection.execute(query):
                yield LiveDocument(
                    key=DocumentKey(row.domain, row.doc_id),
                    version_id=row.version_id,
                    sha256=row.sha256,
                    recipe=row.recipe,
                    labels=frozenset(row.labels),
                    root=row.root,
                    file_size=row.file_size,
                    file_mtime_ns=row.file_mtime_ns,
                    file_sha256=row.file_sha256,
                )

    def document(self, key: DocumentKey) -> Document | None:
        version = document_version
        query = (
            sa.select(*FACTS, document.c.labels, version.c.text)
            .select_from(document.join(version, version.c.id == document.c.version_id))
            .where(document.c.domain == key.domain, document.c.doc_id == key.id, not_deleted())
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Document(document_info(row), row.text)

    def writer(self, lock: Lock) -> SqlWriter:
        return SqlWriter(self._database, lock)


def document_info(row: Any) -> DocumentInfo:
    """The facts of a document from a row with `FACTS` and labels."""
    return DocumentInfo(
        domain=row.domain,
        id=row.doc_id,
        uri=row.uri,
        title=row.title,
        lang=row.lang,
        labels=frozenset(row.labels),
        sha256=row.sha256,
        updated_at=row.updated_at,
        meta=row.meta,
    )
