"""The stored texts, in pieces: a passage of a huge document costs no more to read than one of a small document."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.store.committing import batches
from appliance.store.schema import content_text

# Code points of a piece. SQLite finds a character of a text by counting from its beginning: half a second in 200 MB.
PIECE = 16_384
# Pieces that are in one statement.
_BATCH = 500

# Made once: every search asks it.
_PIECES = sa.select(content_text.c.content_id, content_text.c.text).where(
    content_text.c.content_id.in_(sa.bindparam("contents", expanding=True)), content_text.c.part == sa.bindparam("piece")
)


class Slice(NamedTuple):
    """``text[start:end]`` of a content."""

    content: int
    start: int
    end: int


def insert_texts(connection: Connection, texts: Iterable[tuple[int, str]]) -> None:
    """Store the texts of contents."""
    pieces = (
        {"content_id": content, "part": at // PIECE, "text": text[at : at + PIECE]}
        for content, text in texts
        for at in range(0, len(text), PIECE)
    )
    while batch := list(itertools.islice(pieces, _BATCH)):
        connection.execute(content_text.insert(), batch)


def read_slices(connection: Connection, wanted: Collection[Slice]) -> dict[Slice, str]:
    """The text of each slice; it ends where the content's text ends."""
    places: defaultdict[int, set[int]] = defaultdict(set)
    for item in wanted:
        for part in _parts(item):
            places[part].add(item.content)
    found: dict[tuple[int, int], str] = {}
    # Part by part: for pairs of values SQLite uses no index, but reads the texts of the whole base.
    for part, contents in places.items():
        for some in batches(contents):
            found |= {(row.content_id, part): row.text for row in connection.execute(_PIECES, {"contents": some, "piece": part})}
    return {item: _cut(item, "".join(found.get((item.content, part), "") for part in _parts(item))) for item in wanted}


def read_text(connection: Connection, content: int) -> str:
    """The whole text of a content."""
    return "".join(_pieces(connection, content))


def _pieces(connection: Connection, content: int) -> Iterator[str]:
    query = sa.select(content_text.c.text).where(content_text.c.content_id == content).order_by(content_text.c.part)
    yield from connection.execute(query.execution_options(yield_per=_BATCH)).scalars()


def _parts(item: Slice) -> range:
    return range(item.start // PIECE, (item.end - 1) // PIECE + 1) if item.start < item.end else range(0)


def _cut(item: Slice, text: str) -> str:
    first = item.start % PIECE
    return text[first : first + item.end - item.start]
