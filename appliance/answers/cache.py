"""Generated answers kept for the next time that the very same is asked; in memory, of one process.

What is kept is the model's text, not the finished answer: evidence, decision and availability are worked out anew for every question,
and every citation is compared with the stored text again before it leaves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from appliance.answers.situation import Draft, Turn
from appliance.engines.base import Engine, Sampling
from appliance.errors import ApplianceError
from appliance.store import schema
from appliance.store.database import Database
from retrieval.text import normalise_question

logger = logging.getLogger("appliance.answers")

# Seconds between two looks for deletions, and after which an answer is generated anew: a server behind a URL may get another model
# without a word.
_LOOK, _MAX_AGE = 1.0, 3600.0
# Bytes that an entry takes besides its texts, roughly.
_ENTRY = 2048


@dataclass(frozen=True, slots=True)
class _Kept:
    draft: Draft
    size: int
    since: float


class AnswerCache:
    """At most `limit` bytes of answers, the least recently used leave first. For one event loop."""

    def __init__(self, database: Database, limit: int) -> None:
        self._database, self._limit = database, limit
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._size = 0
        self._state: object = None
        # Changes whenever everything is forgotten.
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: Hashable) -> Draft | None:
        """What was kept under `key` (see `key_of`), None if there is nothing."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if time.monotonic() - kept.since > _MAX_AGE:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return kept.draft

    def keep(self, key: Hashable, draft: Draft, epoch: int) -> None:
        """Keep a complete answer begun in `epoch`; not if everything was forgotten since, nor if it is larger than the cache."""
        if epoch != self.epoch:
            return
        texts = (draft.text, *draft.unsupported, *(citation.quote for citation in draft.citations))
        size = _ENTRY + len(repr(key)) + sum(len(text.encode()) for text in texts)
        if size > self._limit:
            return
        self._drop(key)
        self._kept[key] = _Kept(draft, size, time.monotonic())
        self._size += size
        while self._size > self._limit:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        self._kept.clear()
        self._size = 0
        self.epoch += 1

    async def run(self) -> None:
        """Forget everything within a second of a deletion, and of every change of the index or of an alias, until cancelled.

        None of it would be served any more; its text shall not stay in memory either.
        """
        while True:
            try:
                state = await asyncio.to_thread(self._look)
            except (ApplianceError, SQLAlchemyError) as error:
                # What cannot be known to be allowed is not kept.
                logger.warning("generated answers are forgotten, for the database cannot be read: %s", error)
                state = None
            if state is None or state != self._state:
                self.clear()
            self._state = state
            await asyncio.sleep(_LOOK)

    def _look(self) -> object:
        deletions, pointers = schema.deletion.c.deleted_at, schema.pointer
        with self._database.read() as connection:
            deleted = connection.execute(sa.select(sa.func.count(), sa.func.max(deletions))).one()
            pointing = connection.execute(sa.select(pointers.c.name, pointers.c.value).order_by(pointers.c.name)).all()
        return (tuple(deleted), tuple(tuple(row) for row in pointing))

    def _drop(self, key: Hashable) -> None:
        if (kept := self._kept.pop(key, None)) is not None:
            self._size -= kept.size


def key_of(turn: Turn, engine: Engine, adapter: str | None, sampling: Sampling, router: str) -> Hashable | None:
    """All that a generated answer depends on, None where it is left to chance: at a temperature, without a seed.

    The passages are part of it, as the caller may see them now: an answer from other passages, an older generation, or documents that
    somebody else may see, has another key.
    """
    if sampling.temperature > 0 and sampling.seed is None:
        return None
    request = turn.request
    return (
        normalise_question(turn.query),
        turn.lang,
        tuple((message["role"], message["content"]) for message in request.history),
        request.system,
        request.task,
        turn.domain,
        turn.caller.scope.labels,
        request.constraints,
        sampling,
        turn.decision.arm,
        turn.evidence.generation,
        tuple(
            (p.document.domain, p.chunk.id, p.document.sha256, p.chunk.flags, tuple(info.id for info in p.sources))
            for p in turn.evidence.passages
        ),
        (engine.name, engine.base_hash),
        adapter,
        router,
    )
