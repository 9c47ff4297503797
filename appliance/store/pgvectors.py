"""Segments and manifests in PostgreSQL: vectors as rows of pgvector's type, postings as blobs that each machine keeps a copy of.

As in a folder, a segment is written once and deleted as a whole. Its description holds the hashes of its vectors and postings; the hash
of the description is what a manifest vouches for.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by
from sqlalchemy.engine import Connection

from appliance.store import pgindex, pgtend
from appliance.store.database import Database
from appliance.store.pgsearch import OpenSegment, PgGeneration
from appliance.store.trouble import explained
from retrieval.ann import TARGET
from retrieval.embed import Vectors
from retrieval.lexical import Ordinals
from retrieval.postings import Postings
from retrieval.postings import merge as merge_postings
from retrieval.segments import REMEDY, hash_file, stamp
from retrieval.store import GenerationInfo
from retrieval.types import IndexCorrupt
from retrieval.vectors import Searchable, SegmentFacts, Step, no_step

_FORMAT = 1
# Bytes of one row of postings; a value may have at most 1 GB, and one that is sent as text half of it.
_PART = 8 << 20
# Rows that one statement deletes.
_DELETED = 100_000
# Rows whose vectors are hashed together.
_BLOCK = 1_024

Rows = np.ndarray[Any, np.dtype[np.void]]


class PgVectors:
    """`retrieval.vectors.VectorStore` on PostgreSQL with pgvector. `cache` is a folder of this machine for copies of the postings.

    The tables are written by the holder of the index's lock alone, so their transactions need not wait for other writers.
    """

    def __init__(self, database: Database, cache: Path) -> None:
        self._database = database
        self._cache = cache

    @property
    def location(self) -> str:
        return f"the database {self._database.name}"

    def write_segment(
        self, id: str, vectors: Vectors, postings: Postings, embedding_hash: str, step: Step = no_step, languages: Sequence[str] = ()
    ) -> str:
        names = languages or [""] * len(vectors)
        dim, rows = vectors.shape[1], _binary(vectors)
        blocks = [hashlib.sha256(rows[start : start + _BLOCK].tobytes()).digest() for start in range(0, len(rows), _BLOCK)]
        with self._new_file() as file:
            postings.save(file)
            with self._transaction() as connection:
                numbers = {name: pgindex.space_number(connection, embedding_hash, name, dim) for name in dict.fromkeys(names)}
                spaces = np.array([numbers[name] for name in names], dtype=np.int32)
                first = pgindex.take_positions(connection, len(vectors))
                positions = np.arange(first, first + len(vectors))
                _copy(connection, positions, spaces, rows)
                hashed = self._describe(connection, id, embedding_hash, dim, positions, spaces, _joined(blocks), file)
                step("segment-written")
        step("segment-renamed")
        return hashed

    def merge(
        self,
        id: str,
        parts: Sequence[tuple[str, Ordinals]],
        languages: Sequence[str],
        manifest: Mapping[str, str],
        embedding_hash: str,
        step: Step = no_step,
    ) -> tuple[str, dict[str, Any]]:
        """See the protocol. The vectors stay where they are, in the index of their language; the rows left out go with the old segments."""
        names = [name for name, _ in parts]
        if problems := self.sizes(manifest, names)[1]:
            raise IndexCorrupt("; ".join(problems))
        old = {segment.id: segment for segment in self.open(manifest, names).segments}
        positions = np.concatenate([old[name].positions[rows] for name, rows in parts])
        spaces = np.concatenate([old[name].spaces[rows] for name, rows in parts])
        with self._new_file() as file:
            merge_postings([(old[name].postings, rows) for name, rows in parts], file)
            with self._transaction() as connection:
                vectors_hash = _stored_hash(connection, positions)[1]
                written = self._describe(connection, id, embedding_hash, old[names[0]].dim, positions, spaces, vectors_hash, file)
                step("segment-written")
        step("segment-renamed")
        with self._database.read() as connection:
            return written, _search(pgindex.measured(connection), spaces)

    def segment_hash(self, id: str, sha256: str | None = None) -> str:
        with self._database.read() as connection:
            return _hash(self._found(connection, {id: sha256})[id])

    def write_manifest(
        self, generation: int, embedding_hash: str, chunks: Mapping[str, int], known: Mapping[str, str], step: Step = no_step
    ) -> tuple[str, str]:
        hashes = {id: known.get(id) or self.segment_hash(id) for id in chunks}
        segments = [{"id": id, "sha256": hashes[id], "chunks": count} for id, count in sorted(chunks.items())]
        content = json.dumps({"format": _FORMAT, "generation": generation, "embedding": embedding_hash, "segments": segments}, indent=1)
        name = f"{generation}.json"
        with self._transaction() as connection:
            # What an interrupted run left under this number was never committed.
            connection.execute(pgindex.manifest.delete().where(pgindex.manifest.c.name == name))
            connection.execute(pgindex.manifest.insert().values(name=name, content=content))
        step("manifest-written")
        return name, _hash(content)

    def read_manifest(self, info: GenerationInfo) -> dict[str, str]:
        with self._database.read() as connection:
            query = sa.select(pgindex.manifest.c.content).where(pgindex.manifest.c.name == info.manifest)
            content = connection.execute(query).scalar_one_or_none()
        if content is None:
            raise IndexCorrupt(f"{self.location}: the manifest {info.manifest} is missing; {REMEDY}")
        if _hash(content) != info.manifest_sha256:
            raise IndexCorrupt(f"{self.location}: the manifest {info.manifest} is not the one that was written (sha256 differs); {REMEDY}")
        return {entry["id"]: entry["sha256"] for entry in json.loads(content)["segments"]}

    def open(self, manifest: Mapping[str, str], wanted: Iterable[str], opened: Searchable | None = None) -> PgGeneration:
        known = {segment.id: segment for segment in opened.segments} if isinstance(opened, PgGeneration) else {}
        ids = sorted(wanted)
        with self._database.read() as connection:
            for id, text in self._found(connection, {id: manifest.get(id) for id in ids if id not in known}).items():
                facts = json.loads(text)
                positions = pgindex.positions(facts)
                rows = _count(connection, positions)
                if rows != len(positions):
                    raise self._damaged(id, f"{rows} vectors, expected {len(positions)}")
                file, sha256 = self._copy_of(facts["sha256"]["postings"]), facts["sha256"]["postings"]
                if stamp(file) is None or hash_file(file) != sha256:
                    with self._new_file() as fresh:
                        fresh.write_bytes(self._stored(connection, id, sha256))
                        fresh.replace(file)
                spaces = pgindex.spaces(facts)
                known[id] = OpenSegment(id, facts["dim"], positions, spaces, Postings.load(file), file, stamp(file))
            self._forget(connection)
        return PgGeneration(self._database, [known[id] for id in ids])

    def sizes(self, manifest: Mapping[str, str], wanted: Iterable[str]) -> tuple[dict[str, int], list[str]]:
        found: dict[str, int] = {}
        problems: list[str] = []
        with self._database.read() as connection:
            for id in sorted(wanted):
                try:
                    facts = json.loads(self._found(connection, {id: manifest.get(id)})[id])
                    positions = pgindex.positions(facts)
                    if _stored_hash(connection, positions) != (len(positions), facts["sha256"]["vectors"]):
                        raise self._damaged(id, "its vectors are not those that were written")
                    self._stored(connection, id, facts["sha256"]["postings"])
                    found[id] = len(positions)
                except IndexCorrupt as error:
                    problems.append(str(error))
        return found, problems

    def altered(self, opened: Searchable) -> bool:
        # What is in the database is the server's to watch over; what is mapped from this machine's disk is ours.
        segments = opened.segments if isinstance(opened, PgGeneration) else []
        return any(stamp(segment.file) != segment.stamp for segment in segments)

    def facts(self, ids: Iterable[str]) -> dict[str, SegmentFacts]:
        table = pgindex.postings
        sizes = sa.select(table.c.segment, sa.func.sum(sa.func.length(table.c.data))).group_by(table.c.segment)
        query = sa.select(pgindex.segment).where(pgindex.segment.c.id == sa.any_(_texts(ids)))
        found: dict[str, SegmentFacts] = {}
        with self._database.read() as connection:
            measured = pgindex.measured(connection)
            postings = {id: int(size) for id, size in connection.execute(sizes)}
            for id, text in connection.execute(query):
                facts = json.loads(text)
                numbers, counts = np.array(facts["spaces"]).T
                found[id] = SegmentFacts(4 * facts["dim"] * int(counts.sum()) + postings.get(id, 0), _search(measured, numbers))
        return found

    def keep(self, segments: Collection[str], manifests: Collection[str]) -> None:
        with self._transaction() as connection:
            connection.execute(pgindex.manifest.delete().where(pgindex.manifest.c.name != sa.all_(_texts(manifests))))
            kept, gone = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
            for id, text in connection.execute(sa.select(pgindex.segment)):
                (kept if id in segments else gone).append(pgindex.positions(json.loads(text)))
            # Rows of a segment that was merged belong to the new one as well.
            unused = np.setdiff1d(np.concatenate(gone), np.concatenate(kept))
            for start in range(0, len(unused), _DELETED):
                rows = pgindex.row.c.position == sa.any_(pgindex.array(unused[start : start + _DELETED]))
                connection.execute(pgindex.row.delete().where(rows))
            connection.execute(pgindex.segment.delete().where(pgindex.segment.c.id != sa.all_(_texts(segments))))
        with explained(self._database.name), self._database.session() as session:
            pgtend.tend(session)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with explained(self._database.name), self._database.engine.begin() as connection:
            yield connection

    @contextmanager
    def _new_file(self) -> Iterator[Path]:
        self._cache.mkdir(parents=True, exist_ok=True)
        path = self._cache / f"{secrets.token_hex(8)}.tmp"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _describe(
        self,
        connection: Connection,
        id: str,
        embedding_hash: str,
        dim: int,
        positions: NDArray[np.int64],
        spaces: NDArray[np.int32],
        vectors_hash: str,
        file: Path,
    ) -> str:
        """Insert a segment's row and the postings in `file`, which becomes this machine's copy; the hash of the description."""
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        runs = [[int(run[0]), len(run)] for run in np.split(positions, breaks)]
        same = [[number, len(list(rows))] for number, rows in itertools.groupby(spaces.tolist())]
        hashes = {"vectors": vectors_hash, "postings": hash_file(file)}
        facts = {"format": _FORMAT, "id": id, "embedding": embedding_hash, "dim": dim, "positions": runs, "spaces": same, "sha256": hashes}
        description = json.dumps(facts)
        connection.execute(pgindex.segment.insert().values(id=id, description=description))
        with file.open("rb") as data:
            for part, piece in enumerate(iter(lambda: data.read(_PART), b"")):
                connection.execute(pgindex.postings.insert().values(segment=id, part=part, data=piece))
        file.replace(self._copy_of(hashes["postings"]))
        return _hash(description)

    def _found(self, connection: Connection, wanted: Mapping[str, str | None]) -> dict[str, str]:
        """The descriptions of segments. Raises IndexCorrupt if one is missing, or not the one its hash names."""
        query = sa.select(pgindex.segment).where(pgindex.segment.c.id == sa.any_(_texts(wanted)))
        found = {row.id: row.description for row in connection.execute(query)}
        for id, sha256 in wanted.items():
            if id not in found:
                raise self._damaged(id, "it is missing")
            if sha256 is not None and _hash(found[id]) != sha256:
                raise self._damaged(id, "it is not the one that the generation's manifest names")
        return found

    def _stored(self, connection: Connection, id: str, sha256: str) -> bytes:
        table = pgindex.postings
        parts = connection.execute(sa.select(table.c.data).where(table.c.segment == id).order_by(table.c.part)).scalars()
        data = b"".join(parts)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise self._damaged(id, "its postings are not those that were written")
        return data

    def _copy_of(self, sha256: str) -> Path:
        return self._cache / f"{sha256}.postings"

    def _forget(self, connection: Connection) -> None:
        """Delete this machine's copies of postings that no segment has any more."""
        descriptions = connection.execute(sa.select(pgindex.segment.c.description)).scalars()
        kept = {self._copy_of(json.loads(text)["sha256"]["postings"]) for text in descriptions}
        for path in set(self._cache.glob("*.postings")) - kept:
            path.unlink(missing_ok=True)

    def _damaged(self, id: str, how: str) -> IndexCorrupt:
        return IndexCorrupt(f"{self.location}: segment {id}: {how}; {REMEDY}")


def _binary(vectors: Vectors) -> Rows:
    """The vectors [n, dim] as they are stored."""
    rows = np.zeros(len(vectors), dtype=pgindex.stored(vectors.shape[1]))
    rows["dim"] = vectors.shape[1]
    rows["values"] = vectors
    return rows


def _copy(connection: Connection, positions: NDArray[np.int64], spaces: NDArray[np.int32], vectors: Rows) -> None:
    """Bring in the rows by COPY in PostgreSQL's binary format: for each row int16 fields, for each field int32 bytes and the value."""
    layout = [("fields", ">i2"), ("n1", ">i4"), ("position", ">i8"), ("n2", ">i4"), ("space", ">i4"), ("n3", ">i4")]
    rows = np.zeros(len(vectors), dtype=[*layout, ("embedding", vectors.dtype)])
    rows["fields"], rows["n1"], rows["n2"], rows["n3"] = 3, 8, 4, vectors.dtype.itemsize
    rows["position"], rows["space"], rows["embedding"] = positions, spaces, vectors
    stream = io.BytesIO(b"PGCOPY\n\xff\r\n\x00" + bytes(8) + rows.tobytes() + b"\xff\xff")
    cursor: Any = connection.connection.cursor()
    cursor.execute("COPY vector_row (position, space, embedding) FROM STDIN WITH (FORMAT binary)", stream=stream)


def _stored_hash(connection: Connection, positions: NDArray[np.int64]) -> tuple[int, str]:
    """Number and hash of the vectors that are stored at these positions, in this order; see `write_segment`."""
    wanted = sa.func.unnest(pgindex.array(positions)).table_valued("position", with_ordinality="n").render_derived(name="wanted")
    binary = sa.func.vector_send(pgindex.row.c.embedding)
    joined = sa.func.string_agg(binary, aggregate_order_by(sa.cast(b"", sa.LargeBinary), wanted.c.n))
    # Written out: grouping by an expression with parameters is none by the same expression to the server.
    block: sa.ColumnElement[int] = sa.literal_column(f"(wanted.n - 1) / {_BLOCK}")
    query = sa.select(sa.func.count(), sa.func.sha256(joined)).join(wanted, wanted.c.position == pgindex.row.c.position)
    blocks = connection.execute(query.group_by(block).order_by(block)).all()
    return sum(count for count, _ in blocks), _joined([bytes(digest) for _, digest in blocks])


def _joined(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _count(connection: Connection, positions: NDArray[np.int64]) -> int:
    """How many of the positions have a row."""
    wanted = pgindex.row.c.position == sa.any_(pgindex.array(positions))
    return int(connection.execute(sa.select(sa.func.count()).where(wanted)).scalar_one())


def _search(measured: Mapping[int, sa.Row[Any]], spaces: NDArray[np.int32]) -> dict[str, Any]:
    """How rows of these spaces are searched, as `retrieval.vectors.SegmentFacts` has it: what is measured worst in any of them."""
    found = [measured[number] for number in np.unique(spaces).tolist() if number in measured]
    if not found:
        return {"method": "exact", "why": f"no language has more than {pgindex.EXACT_ROWS} rows"}
    served = [row for row in found if row.ef_search is not None]
    rows = served or found
    recall = {"passages": min(row.recall for row in rows), "questions": min(row.recall_questions for row in rows)}
    if not served:
        why = f"recall@10 is {min(recall.values())} at hnsw.ef_search = {pgtend.EF_SEARCH[-1]}, wanted {TARGET}"
        return {"method": "exact", "why": why}
    ef_search = max(row.ef_search for row in served)
    return {"method": "hnsw", "ef_search": ef_search, "recall": recall, "target": TARGET, "queries": pgtend.QUERIES}


def _texts(values: Iterable[str]) -> sa.ColumnElement[Any]:
    return sa.cast(list(values), ARRAY(sa.Text))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
