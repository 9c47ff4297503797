"""Searching one pinned generation in PostgreSQL: the database finds the nearest vectors among those the caller may see.

What is visible goes to the database with the query, as positions or as a bitmap, and is worked out in one place for every store
(`retrieval.index`). Few visible vectors are compared one by one; of many the HNSW index gives the nearest (Malkov and Yashunin, 2018),
in half precision and scanned on until enough of them are visible (pgvector's iterative scan), and their cosines are worked out from the
full vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pgvector.sqlalchemy import VECTOR
from sqlalchemy.engine import Connection

from appliance.store import pgindex
from appliance.store.database import Database
from retrieval.embed import Vectors
from retrieval.generation import LEAN
from retrieval.lexical import Lexical, Mask, Ordinals, View
from retrieval.postings import Postings
from retrieval.types import Scope

Stamp = tuple[int, int, int]

# Vectors of one language whose mean stands for the mean of all of them: its error is about 1/140 of their spread.
_SAMPLE = 20_000


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """A checked segment: dimensions, positions in the table and spaces of its rows [rows], and its postings, mapped from a `file`.

    `stamp` is what the file looked like when it was checked.
    """

    id: str
    dim: int
    positions: NDArray[np.int64]
    spaces: NDArray[np.int32]
    postings: Postings
    file: Path
    stamp: Stamp | None


@dataclass(frozen=True, slots=True)
class _Part:
    """Visible chunks of one space and language: their number, which they are, as SQL, and the language's mean vector [dim]."""

    space: int
    count: int
    condition: sa.ColumnElement[bool]
    mean: Vectors


@dataclass(frozen=True, slots=True)
class Visible:
    """The chunks one caller may see, as every search needs it: the lexical view, and the parts of the vector search."""

    view: View
    parts: tuple[_Part, ...]


class PgGeneration:
    """`retrieval.vectors.Searchable` on PostgreSQL. Immutable, thread-safe."""

    def __init__(self, database: Database, segments: Sequence[OpenSegment]) -> None:
        self._database = database
        self.segments = list(segments)
        self.offsets: dict[str, int] = {}
        self.size = 0
        for segment in self.segments:
            self.offsets[segment.id] = self.size
            self.size += len(segment.positions)
        self.lexical = Lexical([segment.postings for segment in self.segments])
        # By global ordinal: the position of the row in the table, and its space.
        self._positions = np.concatenate([np.empty(0, dtype=np.int64), *(segment.positions for segment in self.segments)])
        self._spaces = np.concatenate([np.empty(0, dtype=np.int32), *(segment.spaces for segment in self.segments)])
        self._by_position: Ordinals = np.argsort(self._positions, kind="stable").astype(np.int64)

    def visible(self, scope: Scope, mask: Mask, languages: NDArray[np.int64]) -> Visible:
        """Prepare the searches over the chunks in `mask` [size]; `languages` [size] numbers the language of each."""
        view = self.lexical.view(mask)
        masks = [mask & (languages == number) for number in np.unique(languages[mask])]
        with self._database.read() as connection:
            # By language: the visible chunks, their number and mean.
            seen = [(visible, int(visible.sum()), self._mean(connection, visible)) for visible in masks]
        overall = np.sum([count * mean for _, count, mean in seen], axis=0) / max(view.count, 1)
        parts: list[_Part] = []
        for visible, count, mean in seen:
            leaning = (count * mean + LEAN * overall) / (count + LEAN)
            for space in np.unique(self._spaces[visible]).tolist():
                inside = visible & (self._spaces == space)
                parts.append(_Part(space, int(inside.sum()), self._condition(inside), leaning))
        return Visible(view, tuple(parts))

    def dense(self, query: Vectors, visible: Visible, k: int) -> tuple[Ordinals, NDArray[np.float32], NDArray[np.float32]]:
        """The `k` visible chunks nearest to `query` [dim]: global ordinals, cosines and rank scores, best first.

        The rank score is the cosine minus the mean cosine of the passage's language; see `retrieval.generation.Generation.dense`.
        """
        found: list[tuple[int, float, float]] = []
        with self._database.read() as connection:
            for part in visible.parts:
                centre = float(query @ part.mean)
                rows = self._nearest(connection, query, part, min(k, part.count))
                found += [(row.position, row.cosine, row.cosine - centre) for row in rows]
        found.sort(key=lambda entry: (-entry[2], entry[0]))
        facts = np.array(found[:k], dtype=np.float64).reshape(-1, 3)
        ordinals = self._by_position[np.searchsorted(self._positions, facts[:, 0].astype(np.int64), sorter=self._by_position)]
        return ordinals, facts[:, 1].astype(np.float32), facts[:, 2].astype(np.float32)

    def _nearest(self, connection: Connection, query: Vectors, part: _Part, k: int) -> Sequence[sa.Row[Any]]:
        if part.count > pgindex.EXACT_ROWS and pgindex.use_index(connection, part.space):
            found = connection.execute(pgindex.nearest(query, part.space, part.condition, self.segments[0].dim, k)).all()
            # The scan of the index gives up after a while when little of it is visible.
            if len(found) == k:
                return found
        return connection.execute(pgindex.nearest(query, part.space, part.condition, None, k)).all()

    def _condition(self, mask: Mask) -> sa.ColumnElement[bool]:
        """Whether a row of the table is in `mask` [size]."""
        position = pgindex.row.c.position
        if mask.sum() <= pgindex.EXACT_ROWS:
            return position == sa.any_(pgindex.array(self._positions[mask]))
        base, end = int(self._positions.min()), int(self._positions.max()) + 1
        flags = np.zeros(end - base, dtype=np.bool_)
        flags[self._positions[mask] - base] = True
        bits = sa.literal(np.packbits(flags, bitorder="little").tobytes(), sa.LargeBinary)
        seen = sa.func.get_bit(bits, position - sa.literal(base, sa.BigInteger)) == 1
        # A bit beyond the bitmap is an error, and only CASE decides what is looked at first.
        return sa.case((sa.and_(position >= base, position < end), seen), else_=sa.false())

    def _mean(self, connection: Connection, mask: Mask) -> Vectors:
        positions = self._positions[mask]
        wanted = pgindex.row.c.position == sa.any_(pgindex.array(positions[:: len(positions) // _SAMPLE + 1]))
        mean = connection.execute(sa.select(sa.func.avg(pgindex.row.c.embedding, type_=VECTOR)).where(wanted)).scalar_one()
        return np.array(mean, dtype=np.float32)
