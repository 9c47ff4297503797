"""The tables of vectors in PostgreSQL, and the HNSW indexes on them: one for each embedding model and language with many rows.

A graph of all languages would be walked from the question to its own language, and find few passages of another one, which are far away
there and wanted all the same (see `retrieval.generation.Generation.dense`).
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy.engine import Connection

# Up to this many rows are searched exactly; docs/postgresql.md has what was measured.
EXACT_ROWS = 10_000
# pgvector's bound for an HNSW index on half-precision values; wider vectors are searched exactly.
_MAX_DIM = 4_000
# Memory for building an index; a graph that does not fit is built many times slower.
_BUILD_MEMORY = "1GB"

metadata = sa.MetaData()

# The spaces of vectors that are compared with each other and indexed together.
space = sa.Table(
    "vector_space",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("embedding_hash", sa.String(64), nullable=False),
    sa.Column("lang", sa.String(8), nullable=False),
    sa.Column("dim", sa.Integer, nullable=False),
    # What the index of the space was measured to find of the exact best 10 when it was built; NULL: there is none.
    sa.Column("recall", sa.Float),
    sa.UniqueConstraint("embedding_hash", "lang", name="uq_vector_space_embedding_hash"),
)
# `description` is JSON: where the rows are, in order, as runs [first position, rows] and [space, rows]; the hashes of vectors and postings.
segment = sa.Table(
    "vector_segment",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
)
# Positions come from a sequence and are never used again: a reader of an older generation cannot take a new row for its own.
position = sa.Sequence("vector_position", metadata=metadata)
row = sa.Table(
    "vector_row",
    metadata,
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("space", sa.Integer, nullable=False),
    sa.Column("embedding", VECTOR, nullable=False),
)
postings = sa.Table(
    "vector_postings",
    metadata,
    sa.Column("segment", sa.String(40), sa.ForeignKey("vector_segment.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)
manifest = sa.Table(
    "vector_manifest",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("content", sa.Text, nullable=False),
)


def space_number(connection: Connection, embedding_hash: str, lang: str, dim: int) -> int:
    """The number of a space, a new one if it is not known yet."""
    query = sa.select(space.c.id).where(space.c.embedding_hash == embedding_hash, space.c.lang == lang)
    found = connection.execute(query).scalar_one_or_none()
    if found is None:
        row = {"embedding_hash": embedding_hash, "lang": lang, "dim": dim}
        found = connection.execute(space.insert().values(row).returning(space.c.id)).scalar_one()
    return int(found)


def take_positions(connection: Connection, rows: int) -> int:
    """The first of `rows` consecutive positions; only the holder of the index's lock takes any."""
    first = int(connection.execute(sa.select(position.next_value())).scalar_one())
    connection.execute(sa.select(sa.func.setval(position.name, first + rows - 1)))
    return first


def has_index(connection: Connection, number: int) -> bool:
    return connection.execute(sa.select(sa.func.to_regclass(_name(number)))).scalar_one() is not None


def recalls(connection: Connection) -> dict[int, float]:
    """The measured recall of each space that has an index."""
    query = sa.select(space.c.id, space.c.recall).where(space.c.recall.is_not(None))
    return {int(number): float(found) for number, found in connection.execute(query)}


class _Numbers(sa.types.UserDefinedType[str]):
    """An array of numbers that is text already. The parameter itself has the type: of a cast text the planner does not know the values."""

    cache_ok = True
    render_bind_cast = True

    def get_col_spec(self, **_: Any) -> str:
        return "BIGINT[]"


def array(numbers: NDArray[np.integer[Any]]) -> sa.ColumnElement[Any]:
    """Numbers as an array for the database; it is written as text once, not by the driver at every search."""
    return sa.literal("{" + ",".join(map(str, numbers.tolist())) + "}", _Numbers())


def nearest(query: Any, number: int, condition: sa.ColumnElement[bool], dim: int | None, k: int) -> sa.Select[Any]:
    """The `k` rows of a space under `condition` nearest to `query` [dim], best first: positions and inner products.

    With `dim` in the order of the HNSW index, which compares in half precision; None: exactly.
    """
    given = sa.literal(query, VECTOR)
    product = row.c.embedding.max_inner_product(given)
    half = HALFVEC(dim)
    order = sa.cast(row.c.embedding, half).op("<#>", return_type=sa.Float)(sa.cast(given, half)) if dim is not None else product
    # The number is written out: the planner must see that the index of this space serves.
    found = sa.select(row.c.position, (-product).label("cosine")).where(row.c.space == sa.literal_column(str(number)), condition)
    return found.order_by(order).limit(k)


def tend(session: Connection) -> None:
    """Drop the spaces that no segment has, index those with many rows, and renew the planner's statistics when needed.

    `session` is outside a transaction. Building blocks no search; writing to the table waits, which only the caller could do.
    """
    rows: Counter[int] = Counter()
    for description in session.execute(sa.select(segment.c.description)).scalars():
        for number, count in json.loads(description)["spaces"]:
            rows[number] += count
    for number, dim in session.execute(sa.select(space.c.id, space.c.dim)).all():
        if not rows[number]:
            session.exec_driver_sql(f"DROP INDEX IF EXISTS {_name(number)}")
            session.execute(space.delete().where(space.c.id == number))
        elif rows[number] > EXACT_ROWS and dim <= _MAX_DIM and not has_index(session, number):
            session.exec_driver_sql(f"SET maintenance_work_mem = '{_BUILD_MEMORY}'")
            session.exec_driver_sql(
                f"CREATE INDEX {_name(number)} ON vector_row USING hnsw ((embedding::halfvec({dim})) halfvec_ip_ops) WHERE space = {number}"
            )
            session.execute(space.update().where(space.c.id == number).values(recall=_recall(session, number)))
    # The server renews them itself some time after a change; a base that has doubled cannot wait for that.
    known = session.exec_driver_sql("SELECT reltuples FROM pg_class WHERE oid = 'vector_row'::regclass").scalar_one()
    if rows.total() > 2 * max(float(known), 0):
        session.exec_driver_sql("ANALYZE vector_row (position, space), chunk, content, document_version, generation_document, document")


def _recall(connection: Connection, number: int, queries: int = 20, best: int = 10) -> float:
    """The share of the exact `best` rows that the HNSW index of a space finds, for `queries` of its own vectors, spread over it."""
    dim = int(connection.execute(sa.select(space.c.dim).where(space.c.id == number)).scalar_one())
    mine = row.c.space == number
    low, high = connection.execute(sa.select(sa.func.min(row.c.position), sa.func.max(row.c.position)).where(mine)).one()
    starts = [low + (high - low) * index // queries for index in range(queries)]
    hits = 0
    for start in starts:
        query = sa.select(row.c.embedding).where(mine, row.c.position >= start).order_by(row.c.position).limit(1)
        vector = connection.execute(query).scalar_one()
        exact, found = (
            {position for position, _ in connection.execute(nearest(vector, number, sa.true(), using, best))} for using in (None, dim)
        )
        hits += len(exact & found)
    return hits / (queries * best)


def _name(number: int) -> str:
    return f"vector_row_hnsw_{number}"
