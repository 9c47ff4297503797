"""The questions with an approved answer, by what they say: kept in memory, since every question that is asked is looked up among them."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.answers.same_question import Meaning, meaning, same
from appliance.store import schema
from appliance.store.database import Database
from appliance.store.lookup import Lookup
from retrieval.text import normalise_question

# The setting that is another one after every approval and removal.
_KEY = "verified"
_STATE = Lookup(sa.select(schema.setting.c.value).where(schema.setting.c.key == sa.bindparam("key")))


class Approved(NamedTuple):
    """A question with an approved answer, by the id of that answer."""

    id: str
    domain: str
    question: str


@dataclass(frozen=True, slots=True)
class _Known:
    """What there was at a state of the setting, the newest first; `read` holds what each question says."""

    state: str | None = None
    worded: Mapping[str, Sequence[Approved]] = field(default_factory=dict)
    meant: Mapping[Meaning, Sequence[Approved]] = field(default_factory=dict)
    read: Mapping[str, Meaning] = field(default_factory=dict)


class ApprovedQuestions:
    """Looks questions up; what other processes approve or remove is noticed at the next one. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: _Known | None = None

    def worded(self, normalised: str) -> Sequence[Approved]:
        """Those of these words (see `retrieval.text.normalise_question`), the newest first."""
        return self._now().worded.get(normalised, ())

    def meaning(self, question: str) -> Sequence[Approved]:
        """Those that say the same in any words (see `appliance.answers.same_question`), the newest first."""
        known = self._now()
        asked = meaning(question) if known.meant else None
        return known.meant.get(asked, ()) if asked is not None and same(asked, asked) else ()

    def _now(self) -> _Known:
        known = self._known
        state = next((row.value for row in self._database.rows(_STATE, key=_KEY)), None)
        if known is None or known.state != state:
            known = self._known = self._read(known or _Known())
        return known

    def _read(self, before: _Known) -> _Known:
        table = schema.verified
        with self._database.read() as connection:
            state = connection.execute(_STATE.statement, {"key": _KEY}).scalar_one_or_none()
            columns = (table.c.id, table.c.domain, table.c.question)
            rows = connection.execute(sa.select(*columns).order_by(table.c.created_at.desc())).all()
        worded, meant = defaultdict[str, list[Approved]](list), defaultdict[Meaning, list[Approved]](list)
        read: dict[str, Meaning] = {}
        for row in rows:
            one = Approved(row.id, row.domain, row.question)
            said = read[row.question] = read.get(row.question) or before.read.get(row.question) or meaning(row.question)
            # What is stored was normalised by the release that approved it, which may have known fewer differences.
            worded[normalise_question(row.question)].append(one)
            meant[said].append(one)
        return _Known(state, dict(worded), dict(meant), read)


def changed(connection: Connection) -> None:
    """Say inside the caller's write transaction that an answer was approved or removed."""
    table = schema.setting
    connection.execute(table.delete().where(table.c.key == _KEY))
    connection.execute(table.insert().values(key=_KEY, value=secrets.token_hex(8)))
