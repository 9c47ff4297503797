"""What a pointer named before, from the log of its moves."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.store.schema import pointer_move

# Why a pointer moved, where what it named before is live again.
ROLLBACK = "rollback"


def named(connection: Connection, pointer: str) -> list[str | None]:
    """What `pointer` named one after the other, up to now, without what was taken back; None, always the first, stands for nothing.

    A rollback is no promotion: the next one goes further back.
    """
    stack: list[str | None] = [None]
    query = sa.select(pointer_move.c.new, pointer_move.c.why).where(pointer_move.c.name == pointer).order_by(pointer_move.c.id)
    for new, why in connection.execute(query):
        if why == ROLLBACK and new in stack:
            while stack[-1] != new:
                stack.pop()
        elif stack[-1] != new:
            stack.append(new)
    return stack
