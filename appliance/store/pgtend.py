"""HNSW indexes in PostgreSQL: built when a space has many rows, and searched as far as was measured to find enough of the exact best 10.

Measured as in the embedded store (`retrieval.ann`): on the vectors themselves, by passages that do not count themselves and by made-up
questions, which are harder to search for.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from appliance.store import pgindex
from retrieval.ann import MIXED, TARGET, mixed
from retrieval.embed import Vectors

# pgvector's bound for an HNSW index on half-precision values; wider vectors are searched exactly.
_MAX_DIM = 4_000
# Memory for building an index; a graph that does not fit is built many times slower.
_BUILD_MEMORY = "1GB"
# Candidates that HNSW keeps while it searches (`hnsw.ef_search`, at most 1,000): the least that finds enough is taken.
EF_SEARCH = (200, 400, 1_000)
QUERIES = 128
_BEST = 10
# Rows fetched for each one wanted: the index compares in half precision, what it finds is compared exactly. A search fetches 100.
_CANDIDATES = 4
# Cosines that differ by less are equal: of chunks with the same words any may be found.
_EQUAL = 1e-6
_BLOCK, _SEED = 4_096, 1234


def tend(session: Connection) -> None:
    """Drop the spaces that no segment has, index those with many rows, and renew the planner's statistics when needed.

    An index is measured when it is new, and when the rows have doubled since. `session` is outside a transaction. Building blocks no
    search; writing to the table waits, which only the caller could do.
    """
    space, rows = pgindex.space, _rows(session)
    for found in session.execute(sa.select(space)).all():
        number = found.id
        if not rows[number]:
            session.exec_driver_sql(f"DROP INDEX IF EXISTS {_name(number)}")
            session.execute(space.delete().where(space.c.id == number))
        elif rows[number] > pgindex.EXACT_ROWS and found.dim <= _MAX_DIM and rows[number] >= 2 * (found.measured_rows or 0):
            session.exec_driver_sql(f"SET maintenance_work_mem = '{_BUILD_MEMORY}'")
            definition = f"vector_row USING hnsw ((embedding::halfvec({found.dim})) halfvec_ip_ops) WHERE space = {number}"
            session.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {_name(number)} ON {definition}")
            search = _measured(session, number)
            session.execute(space.update().where(space.c.id == number).values(measured_rows=rows[number], **search))
            if search["ef_search"] is None:
                # It would only make writing slower; when the rows have doubled it is tried again.
                session.exec_driver_sql(f"DROP INDEX {_name(number)}")
    # The server renews them itself some time after a change; a base that has doubled cannot wait for that.
    counted = session.exec_driver_sql("SELECT reltuples FROM pg_class WHERE oid = 'vector_row'::regclass").scalar_one()
    if rows.total() > 2 * max(float(counted), 0):
        session.exec_driver_sql("ANALYZE vector_row (position, space), chunk, content, document_version, generation_document, document")


def _rows(session: Connection) -> Counter[int]:
    """The number of rows in each space, those once that belong to a merged segment and to the older one."""
    described = [json.loads(text) for text in session.execute(sa.select(pgindex.segment.c.description)).scalars()]
    positions = np.concatenate([np.empty(0, dtype=np.int64), *map(pgindex.positions, described)])
    spaces = np.concatenate([np.empty(0, dtype=np.int32), *map(pgindex.spaces, described)])
    numbers, counts = np.unique(spaces[np.unique(positions, return_index=True)[1]], return_counts=True)
    return Counter(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))


def _measured(session: Connection, number: int) -> dict[str, Any]:
    """How the space `number`, which has an index, is to be searched: the columns of `pgindex.space` but for the number of rows.

    `ef_search` is the least that finds `retrieval.ann.TARGET` of the exact best 10, of passages and of questions; None: search exactly,
    the recall is that of the last one tried. The queries are from all languages of the model. Changes the settings of `session`.
    """
    space, row = pgindex.space, pgindex.row
    model, dim = session.execute(sa.select(space.c.embedding_hash, space.c.dim).where(space.c.id == number)).one()
    spaces = sa.select(space.c.id).where(space.c.embedding_hash == model).scalar_subquery()
    # By a hash of the position: rows from all over the table, the same ones every time.
    scattered = sa.select(row.c.position, row.c.embedding).where(row.c.space.in_(spaces)).order_by(sa.func.hashint8(row.c.position))
    taken = session.execute(scattered.limit(QUERIES * MIXED)).all()
    vectors = np.array([embedding for _, embedding in taken], dtype=np.float32)
    sources, passages = np.array([position for position, _ in taken[:QUERIES]]), vectors[:QUERIES]
    kinds = {"passages": passages, "questions": mixed(passages, vectors[::-1], np.random.default_rng(_SEED))}
    least = _least(session, number, dim, np.concatenate(list(kinds.values())), np.tile(sources, len(kinds)))
    wanted = dict(zip(kinds, np.split(least, len(kinds)), strict=True))
    recall: dict[str, float] = {}
    # What is measured is the index, whatever the planner thinks of it.
    session.exec_driver_sql("SET enable_seqscan = off")
    for ef_search in EF_SEARCH:
        session.exec_driver_sql(f"SET hnsw.ef_search = {ef_search}")
        recall = {kind: round(_found(session, number, dim, queries, sources, wanted[kind]), 4) for kind, queries in kinds.items()}
        if min(recall.values()) >= TARGET:
            return {"ef_search": ef_search, "recall": recall["passages"], "recall_questions": recall["questions"]}
    return {"ef_search": None, "recall": recall["passages"], "recall_questions": recall["questions"]}


def _least(session: Connection, number: int, dim: int, queries: Vectors, sources: NDArray[np.int64]) -> Vectors:
    """The cosine of the tenth best row of the space to each query [n], the row it was made from excluded: one pass over the space."""
    best = np.full((len(queries), _BEST), -np.inf, dtype=np.float32)
    for positions, vectors in _blocks(session, number, dim):
        cosines = queries @ vectors.T
        cosines[sources[:, None] == positions[None, :]] = -np.inf
        best = np.partition(np.concatenate([best, cosines], axis=1), -_BEST, axis=1)[:, -_BEST:]
    least: Vectors = best.min(axis=1)
    return least


def _blocks(session: Connection, number: int, dim: int) -> Iterator[tuple[NDArray[np.int64], Vectors]]:
    """Positions [n] and vectors [n, dim] of a space, some thousand rows at a time."""
    row, last = pgindex.row, -1
    binary = sa.func.vector_send(row.c.embedding, type_=sa.LargeBinary)
    query = sa.select(row.c.position, binary).where(row.c.space == number).order_by(row.c.position).limit(_BLOCK)
    while found := session.execute(query.where(row.c.position > last)).all():
        stored = np.frombuffer(b"".join(bytes(data) for _, data in found), dtype=pgindex.stored(dim))
        yield np.array([position for position, _ in found]), stored["values"].astype(np.float32)
        last = found[-1][0]


def _found(session: Connection, number: int, dim: int, queries: Vectors, sources: NDArray[np.int64], least: Vectors) -> float:
    """The share of the best 10 for each query that the index finds: those at least as near as the tenth."""
    hits = 0
    for query, source, cosine in zip(queries, sources.tolist(), least.tolist(), strict=True):
        rows = session.execute(pgindex.nearest(query, number, sa.true(), dim, _CANDIDATES * (_BEST + 1))).all()
        hits += min(_BEST, sum(row.cosine >= cosine - _EQUAL for row in rows if row.position != source))
    return hits / (_BEST * len(queries))


def _name(number: int) -> str:
    return f"vector_row_hnsw_{number}"
