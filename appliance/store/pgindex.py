"""The tables of vectors in PostgreSQL, and the HNSW indexes on them: one for each embedding model and language with many rows.

A graph of all languages would be walked from the question to its own language, and find few passages of another one, which are far away
there and wanted all the same (see `retrieval.generation.Generation.dense`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy.engine import Connection

# Up to this many rows are searched exactly; docs/postgresql.md has what was measured.
EXACT_ROWS = 10_000

metadata = sa.MetaData()

# The spaces of vectors that are compared with each other and indexed together.
space = sa.Table(
    "vector_space",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("embedding_hash", sa.String(64), nullable=False),
    sa.Column("lang", sa.String(8), nullable=False),
    sa.Column("dim", sa.Integer, nullable=False),
    # What an index was measured to find of the exact best 10 for passages and for questions, and at how many rows; NULL: never measured.
    sa.Column("recall", sa.Float),
    sa.Column("recall_questions", sa.Float),
    sa.Column("measured_rows", sa.BigInteger),
    # How far the index is searched; NULL: the space is searched exactly.
    sa.Column("ef_search", sa.Integer),
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


def positions(description: Mapping[str, Any]) -> NDArray[np.int64]:
    """Where the rows of a segment are, in order."""
    return np.concatenate([np.arange(first, first + rows, dtype=np.int64) for first, rows in description["positions"]])


def spaces(description: Mapping[str, Any]) -> NDArray[np.int32]:
    """The space of each row of a segment, in order."""
    return np.repeat(*np.array(description["spaces"], dtype=np.int32).T)


def use_index(connection: Connection, number: int) -> bool:
    """Let the searches of this transaction go as far as the index of a space was measured to need; whether it has one that serves."""
    given = sa.func.set_config("hnsw.ef_search", sa.cast(space.c.ef_search, sa.Text), True)
    query = sa.select(given).where(space.c.id == number, space.c.ef_search.is_not(None))
    return connection.execute(query).one_or_none() is not None


def measured(connection: Connection) -> dict[int, sa.Row[Any]]:
    """The spaces whose index was measured."""
    return {int(found.id): found for found in connection.execute(sa.select(space).where(space.c.measured_rows.is_not(None)))}


def stored(dim: int) -> np.dtype[np.void]:
    """A vector as pgvector's `vector_send` gives it: int16 dimensions, int16 zero, float32 values, big endian."""
    return np.dtype([("dim", ">i2"), ("zero", ">i2"), ("values", ">f4", (dim,))])


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
