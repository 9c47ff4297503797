"""The writing half of the document store: staging, the one commit, rollback, and collecting garbage."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.store.database import Database, utcnow
from appliance.store.schema import chunk, deletion, document, document_version, generation, generation_document, segment
from retrieval.store import GenerationInfo, KnownVersion, LiveDocument, Lock, NewVersion, WriteManifest
from retrieval.types import DocumentKey, RetrievalError

_SQLITE_FULL = 13


class SqlWriter:
    """`retrieval.store.Writer`; every method is one short transaction."""

    def __init__(self, database: Database, lock: Lock) -> None:
        self._database = database
        self._lock = lock

    def beat(self) -> None:
        self._lock.beat()

    def find_versions(self, key: DocumentKey, sha256: str) -> Sequence[KnownVersion]:
        version = document_version
        query = (
            sa.select(version.c.id, version.c.recipe, chunk.c.segment_id)
            .outerjoin(chunk, chunk.c.version_id == version.c.id)
            .where(version.c.domain == key.domain, version.c.doc_id == key.id, version.c.sha256 == sha256)
            .distinct()
        )
        segments: defaultdict[tuple[int, str], set[str]] = defaultdict(set)
        with self._database.read() as connection:
            for id, recipe, name in connection.execute(query):
                segments[id, recipe] |= {name} if name is not None else set()
        return [KnownVersion(id, recipe, frozenset(names)) for (id, recipe), names in sorted(segments.items(), reverse=True)]

    def stage(self, segment_id: str | None, embedding_hash: str, chunks: int, versions: Sequence[NewVersion]) -> list[int]:
        ids: list[int] = []
        with self._write() as connection:
            if segment_id is not None:
                row = {"id": segment_id, "embedding_hash": embedding_hash, "chunks": chunks, "created_at": utcnow()}
                connection.execute(segment.insert().values(row))
            for new in versions:
                id = self._insert_version(connection, new)
                ids.append(id)
                if new.chunks:
                    connection.execute(chunk.insert(), [_chunk_row(item, id, segment_id) for item in new.chunks])
        return ids

    def commit(
        self, put: Collection[LiveDocument], remove: Collection[DocumentKey], embedding_hash: str, write_manifest: WriteManifest, why: str
    ) -> GenerationInfo:
        with self._write() as connection:
            self._lock.check(connection)
            parent = self._database.pointer("index", connection)
            new = int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(generation.c.id), 0))).scalar_one()) + 1
            for key in remove:
                _erase(connection, key)
            _put(connection, put)
            _hold(connection, new)
            live = chunk.join(document, document.c.version_id == chunk.c.version_id)
            per_segment = sa.select(chunk.c.segment_id, sa.func.count()).select_from(live).group_by(chunk.c.segment_id)
            chunks = {name: int(count) for name, count in connection.execute(per_segment)}
            manifest, sha256 = write_manifest(new, chunks)
            info = GenerationInfo(
                id=new,
                manifest=manifest,
                manifest_sha256=sha256,
                embedding_hash=embedding_hash,
                documents=int(connection.execute(sa.select(sa.func.count()).select_from(document)).scalar_one()),
                chunks=sum(chunks.values()),
                parent=None if parent is None else int(parent),
            )
            row = {name: getattr(info, name) for name in GenerationInfo.__dataclass_fields__}
            connection.execute(generation.insert().values(**row, created_at=utcnow()))
            self._database.move_pointer(connection, "index", str(new), why)
        return info

    def touch(self, documents: Collection[LiveDocument]) -> None:
        if not documents:
            return
        statement = (
            document.update()
            .where(document.c.domain == sa.bindparam("key_domain"), document.c.doc_id == sa.bindparam("key_id"))
            .values(file_size=sa.bindparam("size"), file_mtime_ns=sa.bindparam("mtime"), file_sha256=sa.bindparam("hash"))
        )
        facts = [{"size": item.file_size, "mtime": item.file_mtime_ns, "hash": item.file_sha256} for item in documents]
        with self._write() as connection:
            connection.execute(statement, [{**_key(item.key), **fact} for item, fact in zip(documents, facts, strict=True)])

    def rollback(self, generation_id: int) -> None:
        held, version = generation_document, document_version
        query = (
            sa.select(version.c.domain, version.c.doc_id, version.c.id.label("version_id"), version.c.updated_at.label("added_at"))
            .add_columns(held.c.root, held.c.labels)
            .select_from(held.join(version, version.c.id == held.c.version_id))
            .where(in_generation(generation_id), not_deleted())
        )
        with self._write() as connection:
            self._lock.check(connection)
            if connection.execute(sa.select(generation.c.id).where(generation.c.id == generation_id)).one_or_none() is None:
                raise RetrievalError(f"there is no generation {generation_id}")
            rows = [dict(row) for row in connection.execute(query).mappings()]
            connection.execute(document.delete())
            if rows:
                connection.execute(document.insert(), rows)
            self._database.move_pointer(connection, "index", str(generation_id), f"rollback to generation {generation_id}")

    def collect(self) -> tuple[set[str], set[str]]:
        with self._write() as connection:
            held = sa.select(generation_document.c.version_id)
            connection.execute(document_version.delete().where(document_version.c.id.not_in(held)))
            connection.execute(segment.delete().where(segment.c.id.not_in(sa.select(chunk.c.segment_id))))
            segments = set(connection.execute(sa.select(segment.c.id)).scalars())
            manifests = set(connection.execute(sa.select(generation.c.manifest)).scalars())
        return segments, manifests

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        try:
            with self._database.write() as connection:
                yield connection
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlite_errorcode", None) == _SQLITE_FULL:
                raise OSError(errno.ENOSPC, "the database cannot grow") from error
            raise

    @staticmethod
    def _insert_version(connection: Connection, new: NewVersion) -> int:
        version = document_version
        same = sa.and_(version.c.domain == new.key.domain, version.c.doc_id == new.key.id, version.c.sha256 == new.sha256)
        # The content keeps the time it was first seen here, however it is cut or titled now.
        first_seen: datetime = connection.execute(sa.select(sa.func.min(version.c.updated_at)).where(same)).scalar_one() or utcnow()
        row = {
            "domain": new.key.domain,
            "doc_id": new.key.id,
            "sha256": new.sha256,
            "recipe": new.recipe,
            "uri": new.uri,
            "title": new.title,
            "lang": new.lang,
            "text": new.text,
            "meta": dict(new.meta),
            "updated_at": first_seen,
        }
        inserted = connection.execute(version.insert().values(row)).inserted_primary_key
        assert inserted is not None
        return int(inserted[0])


def _chunk_row(item: Any, version_id: int, segment_id: str | None) -> dict[str, Any]:
    return {
        "chunk_id": item.id,
        "version_id": version_id,
        "segment_id": segment_id,
        "ordinal": item.ordinal,
        "start": item.start,
        "end": item.end,
        "heading": list(item.heading),
        "page": item.page,
    }


def _erase(connection: Connection, key: DocumentKey) -> None:
    """Put every version of a document on the ledger and delete it; its chunks and memberships go with it."""
    version = document_version
    same = sa.and_(version.c.domain == key.domain, version.c.doc_id == key.id)
    now = utcnow()
    hashes = connection.execute(sa.select(version.c.sha256).where(same).distinct()).scalars().all()
    if hashes:
        rows = [{"domain": key.domain, "doc_id": key.id, "sha256": sha256, "deleted_at": now} for sha256 in hashes]
        connection.execute(deletion.insert(), rows)
    connection.execute(document.delete().where(document.c.domain == key.domain, document.c.doc_id == key.id))
    connection.execute(version.delete().where(same))


def _put(connection: Connection, put: Collection[LiveDocument]) -> None:
    """Replace the rows of live documents. Bringing deleted content in again is a new act: the ledger lets go of it."""
    if not put:
        return
    by_key = sa.and_(document.c.domain == sa.bindparam("key_domain"), document.c.doc_id == sa.bindparam("key_id"))
    added_at = sa.select(document.c.domain, document.c.doc_id, document.c.added_at)
    added = {(row.domain, row.doc_id): row.added_at for row in connection.execute(added_at)}
    connection.execute(document.delete().where(by_key), [_key(item.key) for item in put])
    ledger = deletion.delete().where(
        deletion.c.domain == sa.bindparam("key_domain"),
        deletion.c.doc_id == sa.bindparam("key_id"),
        deletion.c.sha256 == sa.bindparam("hash"),
    )
    connection.execute(ledger, [{**_key(item.key), "hash": item.sha256} for item in put])
    now = utcnow()
    rows = [
        {
            "domain": item.key.domain,
            "doc_id": item.key.id,
            "version_id": item.version_id,
            "root": item.root,
            "labels": sorted(item.labels),
            "file_size": item.file_size,
            "file_mtime_ns": item.file_mtime_ns,
            "file_sha256": item.file_sha256,
            "added_at": added.get(item.key, now),
        }
        for item in put
    ]
    connection.execute(document.insert(), rows)


def _hold(connection: Connection, new: int) -> None:
    """Make the memberships of generation `new` those of the live documents: close what left, open what came."""
    held = generation_document
    live = {
        row.version_id: (tuple(row.labels), row.root)
        for row in connection.execute(sa.select(document.c.version_id, document.c.labels, document.c.root))
    }
    is_open = {
        row.version_id: (tuple(row.labels), row.root)
        for row in connection.execute(sa.select(held.c.version_id, held.c.labels, held.c.root).where(held.c.until.is_(None)))
    }
    leaving = [{"version": version} for version, facts in is_open.items() if live.get(version) != facts]
    if leaving:
        close = held.update().where(held.c.version_id == sa.bindparam("version"), held.c.until.is_(None)).values(until=new)
        connection.execute(close, leaving)
    coming = [
        {"version_id": version, "since": new, "until": None, "labels": list(labels), "root": root}
        for version, (labels, root) in live.items()
        if is_open.get(version) != (labels, root)
    ]
    if coming:
        connection.execute(held.insert(), coming)


def in_generation(generation_id: int) -> sa.ColumnElement[bool]:
    """Whether a row of generation_document is part of the generation."""
    held = generation_document
    return sa.and_(held.c.since <= generation_id, sa.or_(held.c.until.is_(None), held.c.until > generation_id))


def not_deleted() -> sa.ColumnElement[bool]:
    """Whether the deletion ledger does not name the document version."""
    version = document_version
    same = (deletion.c.domain == version.c.domain, deletion.c.doc_id == version.c.doc_id, deletion.c.sha256 == version.c.sha256)
    return ~sa.exists().where(*same)


def _key(key: DocumentKey) -> dict[str, str]:
    return {"key_domain": key.domain, "key_id": key.id}
