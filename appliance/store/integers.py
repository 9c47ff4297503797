"""Large results of integers, without an object for each: a million rows would cost a driver in Python tens of seconds."""

from __future__ import annotations

from functools import reduce
from itertools import chain
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.engine import Connection


def integers(connection: Connection, query: sa.Select[Any]) -> NDArray[np.int64]:
    """The rows [n, columns] of a query whose columns are integers and not NULL, ordered by the first. At most 1 GB."""
    width = len(query.selected_columns)
    if connection.dialect.name != "postgresql":
        rows = connection.execute(query.order_by(query.selected_columns[0])).all()
        return np.fromiter(chain.from_iterable(rows), dtype=np.int64).reshape(-1, width)
    # All of it as one value: each number as 8 bytes, big endian.
    found = query.subquery()
    numbers: list[sa.ColumnElement[Any]] = [sa.func.int8send(column) for column in found.c]
    row = reduce(lambda left, right: left.op("||")(right), numbers)
    whole = sa.func.string_agg(row, aggregate_order_by(sa.cast(b"", sa.LargeBinary), found.c[0]))
    data: bytes = connection.execute(sa.select(whole)).scalar_one() or b""
    return np.frombuffer(data, dtype=">i8").astype(np.int64).reshape(-1, width)
