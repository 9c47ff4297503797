"""The writing half of the document store: staging, the one commit, rollback, and collecting garbage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import sqlalchemy as sa

from appliance.store import committing, compaction, staged
from appliance.store.audit_log import NAMED
from appliance.store.committing import document_info
from appliance.store.database import Database, utcnow
from appliance.store.schema import chunk, content, deletion, document, document_version, generation, generation_document, segment
from appliance.store.texts import read_text
from retrieval.store import (
    ContentKey,
    GenerationInfo,
    KnownContent,
    LiveDocument,
    Lock,
    MergedSegment,
    NewContent,
    NewVersion,
    Part,
    SegmentRows,
    StoredChunks,
    WriteManifest,
)
from retrieval.types import Document, DocumentKey, RetrievalError


class SqlWriter:
    """`retrieval.store.Writer`; every method is one short transaction."""

    def __init__(self, database: Database, lock: Lock, keep_generations: int | None = None) -> None:
        self._database = database
        self._lock = lock
        self._keep = keep_generations

    def beat(self) -> None:
        self._lock.beat()

    def find_contents(self, key: ContentKey, title: str, doc: DocumentKey) -> Sequence[KnownContent]:
        version, held = document_version, generation_document
        bearer = sa.select(document.c.doc_id, document.c.labels).join(version, version.c.id == document.c.version_id)
        bearer = bearer.where(version.c.content_id == content.c.id, version.c.title == content.c.title)
        query = (
            sa.select(content.c.id, content.c.title, chunk.c.segment_id)
            .outerjoin(chunk, chunk.c.content_id == content.c.id)
            .where(content.c.domain == key.domain, content.c.sha256 == key.sha256, content.c.recipe == key.recipe)
            .where(content.c.labels == staged.labels_key(key.labels), content.c.chunks.is_not(None))
            .distinct()
        )
        segments: defaultdict[int, set[str]] = defaultdict(set)
        titles: dict[int, str] = {}
        with self._database.read() as connection:
            for id, found_by, name in connection.execute(query):
                titles[id] = found_by
                segments[id] |= {name} if name is not None else set()
            found: list[KnownContent] = []
            for id in sorted(titles, reverse=True):
                others = connection.execute(bearer.where(content.c.id == id).where(document.c.doc_id != doc.id)).all()
                if titles[id] == title or any(frozenset(other.labels) == key.labels for other in others):
                    is_held = sa.exists().where(held.c.version_id == version.c.id, version.c.content_id == id)
                    found.append(KnownContent(id, frozenset(segments[id]), bool(connection.execute(sa.select(is_held)).scalar_one())))
        return found

    def find_part(self, key: ContentKey, title: str) -> Part | None:
        same = sa.and_(content.c.domain == key.domain, content.c.sha256 == key.sha256, content.c.recipe == key.recipe)
        same &= (content.c.labels == staged.labels_key(key.labels)) & (content.c.title == title) & content.c.chunks.is_(None)
        with self._database.read() as connection:
            id = connection.execute(sa.select(sa.func.max(content.c.id)).where(same)).scalar_one()
            if id is None:
                return None
            stored = chunk.c.content_id == id
            count, end = connection.execute(sa.select(sa.func.count(), sa.func.max(chunk.c.end)).where(stored)).one()
            segments = connection.execute(sa.select(chunk.c.segment_id).where(stored).distinct()).scalars()
            return Part(KnownContent(id, frozenset(segments), held=False), count, end or 0)

    def stage(self, segment_id: str | None, embedding_hash: str, chunks: int, contents: Sequence[NewContent]) -> list[int]:
        with self._database.write() as connection:
            if segment_id is not None:
                row = {"id": segment_id, "embedding_hash": embedding_hash, "chunks": chunks, "live": 0, "created_at": utcnow()}
                connection.execute(segment.insert().values(row))
            return staged.insert_contents(connection, contents, segment_id)

    def describe(self, versions: Sequence[NewVersion]) -> list[int]:
        with self._database.write() as connection:
            return staged.describe(connection, versions)

    def version(self, doc: LiveDocument) -> Document | None:
        version = document_version
        with self._database.read() as connection:
            row = connection.execute(sa.select(version).where(version.c.id == doc.version_id)).one_or_none()
            return None if row is None else Document(document_info(row, doc.labels), read_text(connection, row.content_id))

    def strays(self, put: Collection[LiveDocument], remove: Collection[DocumentKey]) -> Sequence[LiveDocument]:
        with self._database.read() as connection:
            return committing.strays(connection, put, remove)

    def segments(self) -> dict[str, SegmentRows]:
        with self._database.read() as connection:
            return compaction.segment_rows(connection)

    def stored(self, segments: Collection[str]) -> StoredChunks:
        with self._database.read() as connection:
            return compaction.stored_chunks(connection, segments)

    def commit(
        self,
        put: Collection[LiveDocument],
        remove: Collection[DocumentKey],
        embedding_hash: str,
        write_manifest: WriteManifest,
        why: str,
        merged: Sequence[MergedSegment] = (),
    ) -> GenerationInfo:
        with self._database.write() as connection:
            self._lock.check(connection)
            parent = self._database.pointer("index", connection)
            new = int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(generation.c.id), 0))).scalar_one()) + 1
            keys = [*(item.key for item in put), *remove]
            touched = committing.live_contents(connection, keys)
            touched.update(committing.version_contents(connection, [item.version_id for item in put]).values())
            before = committing.live_chunks(connection, touched)
            committing.drop(connection, remove)
            committing.erase(connection, remove)
            committing.put(connection, put)
            # After a rollback the live documents are not those of the newest generation, whose memberships are the open ones.
            committing.hold(connection, new, keys if str(new - 1) == (parent or "0") else None)
            if merged:
                compaction.move_chunks(connection, merged)
            chunks = committing.count_live(connection, before, committing.live_chunks(connection, touched))
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
            self._database.move_pointer(connection, "index", str(new), why, _facts(put, remove))
        return info

    def touch(self, documents: Collection[LiveDocument]) -> None:
        if not documents:
            return
        statement = (
            document.update()
            .where(document.c.domain == sa.bindparam("key_domain"), document.c.doc_id == sa.bindparam("key_id"))
            .values(file_size=sa.bindparam("size"), file_mtime_ns=sa.bindparam("mtime"), file_sha256=sa.bindparam("hash"))
            .values(file_warned=sa.bindparam("warned"))
        )
        facts = [
            {"size": item.file_size, "mtime": item.file_mtime_ns, "hash": item.file_sha256, "warned": committing.warned(item)}
            for item in documents
        ]
        with self._database.write() as connection:
            connection.execute(statement, [{**_key(item.key), **fact} for item, fact in zip(documents, facts, strict=True)])

    def rollback(self, generation_id: int) -> None:
        held, version = generation_document, document_version
        query = (
            sa.select(version.c.domain, version.c.doc_id, version.c.id.label("version_id"), version.c.updated_at.label("added_at"))
            .add_columns(held.c.root, labels_now().label("labels"))
            .select_from(held.join(version, version.c.id == held.c.version_id))
            .where(in_generation(generation_id), not_deleted())
        )
        with self._database.write() as connection:
            self._lock.check(connection)
            if connection.execute(sa.select(generation.c.id).where(generation.c.id == generation_id)).one_or_none() is None:
                raise RetrievalError(f"there is no generation {generation_id}")
            rows = [dict(row) for row in connection.execute(query).mappings()]
            connection.execute(document.delete())
            if rows:
                connection.execute(document.insert(), rows)
            committing.recount_live(connection)
            self._database.move_pointer(connection, "index", str(generation_id), f"rollback to generation {generation_id}")

    def collect(self) -> tuple[set[str], set[str]]:
        with self._database.write() as connection:
            live = self._database.pointer("index", connection)
            if self._keep is not None and live is not None:
                committing.drop_generations(connection, int(live), self._keep)
            held = sa.exists().where(generation_document.c.version_id == document_version.c.id)
            connection.execute(document_version.delete().where(~held))
            connection.execute(content.delete().where(~sa.exists().where(document_version.c.content_id == content.c.id)))
            connection.execute(segment.delete().where(~sa.exists().where(chunk.c.segment_id == segment.c.id)))
            segments = set(connection.execute(sa.select(segment.c.id)).scalars())
            manifests = set(connection.execute(sa.select(generation.c.manifest)).scalars())
        self._database.scrub()
        return segments, manifests


def in_generation(generation_id: int | sa.BindParameter[int]) -> sa.ColumnElement[bool]:
    """Whether a row of generation_document is part of the generation."""
    held = generation_document
    return sa.and_(held.c.since <= generation_id, sa.or_(held.c.until.is_(None), held.c.until > generation_id))


def labels_now() -> sa.ColumnElement[list[str]]:
    """The labels of a document of a generation: those of the live document, whichever the generation; who may see it is decided now."""
    version = document_version
    live = sa.select(document.c.labels).where(document.c.domain == version.c.domain, document.c.doc_id == version.c.doc_id)
    return sa.func.coalesce(live.scalar_subquery(), generation_document.c.labels, type_=generation_document.c.labels.type)


def not_deleted() -> sa.ColumnElement[bool]:
    """Whether the deletion ledger does not name the document version."""
    version = document_version
    same = (deletion.c.domain == version.c.domain, deletion.c.doc_id == version.c.doc_id, deletion.c.sha256 == version.c.sha256)
    return ~sa.exists().where(*same)


def is_current() -> sa.ColumnElement[bool]:
    """Whether the live document has the text of the document version, whichever the generation."""
    version, now = document_version, document_version.alias("now")
    same = (document.c.domain == version.c.domain, document.c.doc_id == version.c.doc_id, now.c.sha256 == version.c.sha256)
    return sa.exists().where(document.c.version_id == now.c.id, *same)


def _facts(put: Collection[LiveDocument], remove: Collection[DocumentKey]) -> dict[str, object]:
    """What the audit log keeps of a commit; of many documents the first."""
    return {
        "put": len(put),
        "put_ids": [f"{item.key.domain}/{item.key.id}" for item, _ in zip(put, range(NAMED), strict=False)],
        "labels": sorted({label for item in put for label in item.labels}),
        "removed": len(remove),
        "removed_ids": [f"{key.domain}/{key.id}" for key, _ in zip(remove, range(NAMED), strict=False)],
    }


def _key(key: DocumentKey) -> dict[str, str]:
    return {"key_domain": key.domain, "key_id": key.id}
