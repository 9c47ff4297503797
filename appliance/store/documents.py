"""The document store of the retrieval package on the workspace's database: reading generations. Writing is in `document_writer`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from appliance.store import similar
from appliance.store.committing import batches, document_info, having, live_document, live_rows
from appliance.store.database import Database
from appliance.store.document_writer import SqlWriter, in_generation, is_current, labels_now, not_deleted
from appliance.store.integers import integers
from appliance.store.schema import chunk, content, deletion, document, document_version, generation, generation_document, segment
from appliance.store.texts import Slice, read_slices, read_text
from retrieval import injection
from retrieval.store import GenerationInfo, Kind, LiveDocument, Lock, Members, Sources
from retrieval.types import Chunk, Document, DocumentInfo, DocumentKey, Scope

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


def _sources(current: bool) -> sa.Select[Any]:
    """The documents of a generation that have a content; with `current` only those that are live with it now."""
    version = document_version
    return (
        sa.select(version.c.content_id, *FACTS, labels_now().label("labels"))
        .join(generation_document, generation_document.c.version_id == version.c.id)
        .where(in_generation(sa.bindparam("generation")), not_deleted(), *([is_current()] if current else []))
        .where(version.c.content_id.in_(sa.bindparam("contents", expanding=True)))
        .order_by(version.c.updated_at, version.c.doc_id)
    )


# What every search asks, made once: making a statement takes longer than running it.
_CHUNKS = sa.select(chunk).where(chunk.c.id.in_(sa.bindparam("rows", expanding=True)))
_SOURCES = {current: _sources(current) for current in (False, True)}


class SqlDocumentStore:
    """`retrieval.store.DocumentStore` on SQLAlchemy Core, portable between SQLite and PostgreSQL."""

    def __init__(self, database: Database, keep_generations: int | None = None) -> None:
        """`keep_generations` are left when garbage is collected, the live one among them; None: all."""
        self._database = database
        self._keep = keep_generations

    def live_generation(self) -> int | None:
        found = self._database.pointer("index")
        return None if found is None else int(found)

    def generation(self, generation_id: int) -> GenerationInfo | None:
        with self._database.read() as connection:
            row = connection.execute(sa.select(generation).where(generation.c.id == generation_id)).one_or_none()
        if row is None:
            return None
        return GenerationInfo(row.id, row.manifest, row.manifest_sha256, row.embedding_hash, row.documents, row.chunks, row.parent)

    def generations(self) -> list[int]:
        with self._database.read() as connection:
            return list(connection.execute(sa.select(generation.c.id).order_by(generation.c.id)).scalars())

    def members(self, generation_id: int, current: bool = False) -> Members:
        held = generation_document
        versions = (
            # As text, since JSON would be decoded for every row.
            sa.select(document_version.c.content_id, document_version.c.domain, content.c.lang, sa.cast(labels_now(), sa.Text))
            .select_from(held)
            .join(document_version, document_version.c.id == held.c.version_id)
            .join(content, content.c.id == document_version.c.content_id)
            .where(in_generation(generation_id), not_deleted(), *([is_current()] if current else []))
        )
        in_segment = chunk.c.segment_id == sa.bindparam("name")
        places = sa.select(chunk.c.ordinal, chunk.c.id, chunk.c.content_id).where(in_segment)
        audiences: defaultdict[int, set[tuple[str, str, str]]] = defaultdict(set)
        names: list[str] = []
        parts: list[NDArray[np.int64]] = []
        with self._database.read() as connection:
            for id, *audience in connection.execute(versions):
                audiences[id].add((audience[0], audience[1], audience[2]))
            if not audiences:
                return Members.none()
            # Contents in ascending order and the kind of each; one without is in other generations, or on the deletion ledger.
            contents = np.sort(np.fromiter(audiences, dtype=np.int64, count=len(audiences)))
            numbers: dict[frozenset[tuple[str, str, str]], int] = {}
            kinds = np.array([numbers.setdefault(frozenset(audiences[id]), len(numbers)) for id in contents.tolist()], dtype=np.int64)
            for name in connection.execute(sa.select(segment.c.id).order_by(segment.c.id)).scalars().all():
                rows = integers(connection, places.params(name=name))
                at = np.minimum(np.searchsorted(contents, rows[:, 2]), len(contents) - 1)
                held_here = contents[at] == rows[:, 2]
                if held_here.any():
                    parts.append(np.column_stack((np.full(len(rows), len(names)), rows, kinds[at]))[held_here])
                    names.append(name)
        where, ordinal, row, text, kind = np.ascontiguousarray(np.concatenate(parts or [np.empty((0, 5), dtype=np.int64)]).T)
        small = [column.astype(np.int32) for column in (where, ordinal, kind)]
        return Members(tuple(names), tuple(_kind(group) for group in numbers), small[0], small[1], row, text, small[2])

    def chunks(
        self, generation_id: int, rows: Collection[int], scope: Scope | None = None, current: bool = False
    ) -> dict[int, tuple[Chunk, Sources]]:
        found: dict[int, tuple[Chunk, Sources]] = {}
        with self._database.read() as connection:
            for wanted in batches(rows):
                chunks = connection.execute(_CHUNKS, {"rows": wanted}).all()
                sources: defaultdict[int, list[DocumentInfo]] = defaultdict(list)
                parameters = {"generation": generation_id, "contents": list({row.content_id for row in chunks})}
                for row in connection.execute(_SOURCES[current], parameters):
                    info = document_info(row, row.labels)
                    if scope is None or Kind(info.domain, info.lang, frozenset((info.labels,))).visible(scope):
                        sources[row.content_id].append(info)
                visible = [(row, Slice(row.content_id, row.start, row.end)) for row in chunks if row.content_id in sources]
                texts = read_slices(connection, [span for _, span in visible])
                found.update((row.id, _chunk(row, texts[span], sources[row.content_id])) for row, span in visible)
        return found

    def merged(self) -> dict[str, str]:
        with self._database.read() as connection:
            return dict(connection.execute(sa.select(segment.c.id, segment.c.sha256).where(segment.c.sha256.is_not(None))).all())

    def live_documents(self) -> Iterator[LiveDocument]:
        with self._database.read() as connection:
            for row in connection.execute(live_rows()):
                yield live_document(row)

    def live(self, keys: Collection[DocumentKey]) -> Sequence[LiveDocument]:
        with self._database.read() as connection:
            return [live_document(row) for same in having(keys, document) for row in connection.execute(live_rows().where(same))]

    def live_under(self, root: str) -> Sequence[LiveDocument]:
        with self._database.read() as connection:
            return [live_document(row) for row in connection.execute(live_rows().where(document.c.root == root))]

    def holding(self, contents: Collection[int]) -> int:
        version = document_version
        query = sa.select(sa.func.count()).select_from(document.join(version, version.c.id == document.c.version_id))
        with self._database.read() as connection:
            return sum(connection.execute(query.where(version.c.content_id.in_(some))).scalar_one() for some in batches(contents))

    def removals(self, key: DocumentKey) -> dict[str, datetime]:
        named = sa.and_(deletion.c.domain == key.domain, deletion.c.doc_id == key.id)
        query = sa.select(deletion.c.sha256, deletion.c.deleted_at).where(named).order_by(deletion.c.deleted_at)
        with self._database.read() as connection:
            return dict(connection.execute(query).all())

    def copies(self, keys: Collection[DocumentKey]) -> Sequence[Sequence[DocumentKey]]:
        with self._database.read() as connection:
            return similar.copies(connection, keys)

    def alike(self, keys: Collection[DocumentKey]) -> Sequence[tuple[DocumentKey, DocumentKey, bytes, bytes]]:
        with self._database.read() as connection:
            return similar.alike(connection, keys)

    def document(self, key: DocumentKey) -> Document | None:
        version = document_version
        query = (
            sa.select(*FACTS, document.c.labels, version.c.content_id)
            .select_from(document.join(version, version.c.id == document.c.version_id))
            .where(document.c.domain == key.domain, document.c.doc_id == key.id, not_deleted())
        )
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
            return None if row is None else Document(document_info(row, row.labels), read_text(connection, row.content_id))

    def writer(self, lock: Lock) -> SqlWriter:
        return SqlWriter(self._database, lock, self._keep)


def _kind(audiences: Collection[tuple[str, str, str]]) -> Kind:
    """The kind of a content from the domain, language and labels (as JSON) of each of its documents."""
    domain, lang, _ = next(iter(audiences))
    return Kind(domain, lang, frozenset(frozenset(json.loads(labels)) for _, _, labels in audiences))


def _chunk(row: Any, text: str, sources: list[DocumentInfo]) -> tuple[Chunk, Sources]:
    # The title is that of the document it is shown with, which may not be the one that brought the text.
    heading, flags = tuple(row.heading), injection.shown(row.flags, sources[0].title, row.heading)
    return Chunk(row.chunk_id, sources[0].key, row.start, row.end, heading, row.page, text, row.lang, flags), tuple(sources)
