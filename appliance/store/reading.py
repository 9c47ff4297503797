"""What the product reads of the live documents: their facts, spans of their text, their labels."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from appliance.store import similar
from appliance.store.committing import document_info
from appliance.store.database import Database
from appliance.store.document_writer import not_deleted
from appliance.store.documents import FACTS
from appliance.store.schema import chunk, content, document, document_version, generation, generation_document, segment
from appliance.store.texts import Slice, read_slices, read_text
from retrieval import injection
from retrieval.types import Chunk, DocumentInfo, DocumentKey, Passage

_LIVE = document.join(document_version, document.c.version_id == document_version.c.id)
_CONTENT = document_version.c.content_id


class DocumentReader:
    """The live documents of a workspace. Removed ones are never found here."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def documents(self, domain: str | None = None) -> list[DocumentInfo]:
        """Every live document, by domain and id."""
        query = sa.select(*FACTS, document.c.labels).select_from(_LIVE).where(not_deleted()).order_by(document.c.domain, document.c.doc_id)
        if domain is not None:
            query = query.where(document.c.domain == domain)
        with self._database.read() as connection:
            return [document_info(row, row.labels) for row in connection.execute(query)]

    def page(
        self, domain: str | None, limit: int, offset: int = 0, within: Collection[str] | None = None
    ) -> list[tuple[DocumentInfo, int]]:
        """Live documents by domain and id with the number of their chunks: `limit` of them after the first `offset`; those `within` some
        domains (None: all)."""
        query = sa.select(*FACTS, document.c.labels, content.c.chunks).select_from(_LIVE.join(content, content.c.id == _CONTENT))
        query = query.where(not_deleted()).order_by(document.c.domain, document.c.doc_id).limit(limit).offset(offset)
        if domain is not None:
            query = query.where(document.c.domain == domain)
        if within is not None:
            query = query.where(document.c.domain.in_(within))
        with self._database.read() as connection:
            return [(document_info(row, row.labels), row.chunks) for row in connection.execute(query)]

    def count(self, domain: str | None = None) -> int:
        """The number of live documents."""
        query = sa.select(sa.func.count()).select_from(document)
        if domain is not None:
            query = query.where(document.c.domain == domain)
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def seen(self, key: DocumentKey) -> dict[str, Any] | None:
        """Where a live document was last seen, and since when it is here."""
        columns = (document.c.root, document.c.file_size, document.c.added_at)
        with self._database.read() as connection:
            row = connection.execute(sa.select(*columns).select_from(_LIVE).where(_is(key))).one_or_none()
        return None if row is None else {**row._asdict(), "added_at": row.added_at.isoformat(timespec="seconds")}

    def history(self, key: DocumentKey) -> list[dict[str, Any]]:
        """The versions of a document that generations hold, oldest first: from `since` up to before `until` (None: all since)."""
        version, held = document_version, generation_document
        query = (
            sa.select(version.c.sha256, version.c.title, version.c.updated_at, held.c.since, held.c.until)
            .join(held, held.c.version_id == version.c.id)
            .where(version.c.domain == key.domain, version.c.doc_id == key.id, not_deleted())
            .order_by(held.c.since)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [{**row._asdict(), "updated_at": row.updated_at.isoformat(timespec="seconds")} for row in rows]

    def chunks(self, key: DocumentKey) -> list[Chunk]:
        """The chunks of a live document in the order of its text."""
        with self._database.read() as connection:
            live = sa.select(_CONTENT, document_version.c.title).select_from(_LIVE).where(_is(key))
            id, title = connection.execute(live).one_or_none() or (None, "")
            rows = connection.execute(sa.select(chunk).where(chunk.c.content_id == id).order_by(chunk.c.start, chunk.c.id)).all()
            texts = read_slices(connection, [Slice(row.content_id, row.start, row.end) for row in rows])
        return [
            Chunk(
                *(row.chunk_id, key, row.start, row.end, tuple(row.heading), row.page),
                *(texts[Slice(row.content_id, row.start, row.end)], row.lang, injection.shown(row.flags, title, row.heading)),
            )
            for row in rows
        ]

    def copies(self, domain: str | None = None) -> list[list[DocumentKey]]:
        """Every group of live documents that share a text and are indexed once."""
        with self._database.read() as connection:
            return similar.all_copies(connection, domain)

    def signatures(self, domain: str | None = None) -> dict[int, tuple[DocumentKey, bytes]]:
        """The MinHash of every live text, with the first document that has it."""
        with self._database.read() as connection:
            return similar.signatures(connection, domain)

    def current(self, key: DocumentKey) -> DocumentInfo | None:
        """The facts of a live document."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(*FACTS, document.c.labels).select_from(_LIVE).where(_is(key))).one_or_none()
        return document_info(row, row.labels) if row is not None else None

    def is_current(self, key: DocumentKey, sha256: str) -> bool:
        """Whether the document is live with exactly this content."""
        found = self.current(key)
        return found is not None and found.sha256 == sha256

    def text_slice(self, key: DocumentKey, sha256: str, start: int, end: int) -> str | None:
        """``text[start:end]`` of a live document, None if it is gone or its content is another."""
        query = sa.select(document_version.c.content_id).select_from(_LIVE).where(_is(key), document_version.c.sha256 == sha256)
        with self._database.read() as connection:
            id = connection.execute(query).scalar_one_or_none()
            return None if id is None else read_slices(connection, [wanted := Slice(id, start, end)])[wanted]

    def whole_passage(self, key: DocumentKey) -> Passage | None:
        """A live document as one passage."""
        info = self.current(key)
        if info is None:
            return None
        with self._database.read() as connection:
            id = connection.execute(sa.select(document_version.c.content_id).select_from(_LIVE).where(_is(key))).scalar_one()
            text = read_text(connection, id)
        return Passage(Chunk("", key, 0, len(text), (), None, text), info, 1.0, None, None)

    def labels(self, domain: str | None = None) -> frozenset[str]:
        """Every label in use."""
        # As text: PostgreSQL does not compare JSON.
        query = sa.select(sa.cast(document.c.labels, sa.Text)).distinct()
        if domain is not None:
            query = query.where(document.c.domain == domain)
        with self._database.read() as connection:
            return frozenset(label for labels in connection.execute(query).scalars() for label in json.loads(labels))

    def status(self) -> dict[str, Any]:
        """The live generation in numbers."""
        with self._database.read() as connection:
            live = self._database.pointer("index", connection)
            if live is None:
                return {"generation": None, "documents": 0, "chunks": 0}
            row = connection.execute(sa.select(generation).where(generation.c.id == int(live))).one()
            chunks = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(segment.c.live), 0))).scalar_one()
            documents = connection.execute(sa.select(sa.func.count()).select_from(document)).scalar_one()
        return {
            "generation": row.id,
            "documents": documents,
            "chunks": chunks,
            "embedding": row.embedding_hash,
            "created_at": row.created_at.isoformat(timespec="seconds"),
        }


def _is(key: DocumentKey) -> sa.ColumnElement[bool]:
    return sa.and_(document.c.domain == key.domain, document.c.doc_id == key.id, not_deleted())
