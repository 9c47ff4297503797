"""What the product reads of the live documents: their facts, spans of their text, their labels."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from appliance.store.database import Database
from appliance.store.document_writer import not_deleted
from appliance.store.documents import FACTS, document_info
from appliance.store.schema import chunk, document, document_version, generation
from retrieval.types import Chunk, DocumentInfo, DocumentKey, Passage

_LIVE = document.join(document_version, document.c.version_id == document_version.c.id)


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
            return [document_info(row) for row in connection.execute(query)]

    def current(self, key: DocumentKey) -> DocumentInfo | None:
        """The facts of a live document."""
        with self._database.read() as connection:
            row = connection.execute(sa.select(*FACTS, document.c.labels).select_from(_LIVE).where(_is(key))).one_or_none()
        return document_info(row) if row is not None else None

    def is_current(self, key: DocumentKey, sha256: str) -> bool:
        """Whether the document is live with exactly this content."""
        found = self.current(key)
        return found is not None and found.sha256 == sha256

    def text_slice(self, key: DocumentKey, sha256: str, start: int, end: int) -> str | None:
        """``text[start:end]`` of a live document, None if it is gone or its content is another."""
        # substr counts characters from 1 on SQLite and PostgreSQL alike; the whole text never leaves the database.
        span = sa.func.substr(document_version.c.text, start + 1, max(end - start, 0))
        query = sa.select(span).select_from(_LIVE).where(_is(key), document_version.c.sha256 == sha256)
        with self._database.read() as connection:
            found: str | None = connection.execute(query).scalar_one_or_none()
        return found

    def whole_passage(self, key: DocumentKey) -> Passage | None:
        """A live document as one passage."""
        info = self.current(key)
        if info is None:
            return None
        with self._database.read() as connection:
            text = connection.execute(sa.select(document_version.c.text).select_from(_LIVE).where(_is(key))).scalar_one()
        return Passage(Chunk("", key, 0, len(text), (), None, text), info, 1.0, None, None)

    def labels(self, domain: str | None = None) -> frozenset[str]:
        """Every label in use."""
        query = sa.select(document.c.labels).distinct()
        if domain is not None:
            query = query.where(document.c.domain == domain)
        with self._database.read() as connection:
            return frozenset(label for labels in connection.execute(query).scalars() for label in labels)

    def status(self) -> dict[str, Any]:
        """The live generation in numbers."""
        with self._database.read() as connection:
            live = self._database.pointer("index", connection)
            if live is None:
                return {"generation": None, "documents": 0, "chunks": 0}
            row = connection.execute(sa.select(generation).where(generation.c.id == int(live))).one()
            chunks = connection.execute(
                sa.select(sa.func.count()).select_from(chunk.join(document, document.c.version_id == chunk.c.version_id))
            ).scalar_one()
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
