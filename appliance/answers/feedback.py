"""What people say about answers, and for how long the answers it is about are known.

A text is kept only where `[feedback] retain_hours` says so or the feedback brought it, and no longer than the documents that the answer
rests on: a deletion withholds it on reading at once, and `forget` erases it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.answers.refusals import declines
from appliance.errors import UsageError
from appliance.experts.review_entry import Entry, enter, expire, question_hash, withdraw
from appliance.settings import FeedbackConfig
from appliance.store import schema
from appliance.store.database import Database, utcnow
from appliance.types import Answer, Caller
from retrieval.types import Evidence

logger = logging.getLogger("appliance.answers.feedback")

Rating = Literal["up", "down"]
# Answers that may wait to be written; beyond it the oldest can get no feedback.
_WAITING = 10_000


class UnknownAnswer(UsageError):
    """No answer of this id was given to this caller lately."""


@dataclass(frozen=True, slots=True)
class Given:
    """One piece of feedback. A text is None where it was neither sent nor kept; `withheld` says that a deletion took the texts away."""

    answer_id: str
    rating: Rating
    question: str | None
    answer: str | None
    correction: str | None
    domain: str
    arm: str
    adapter: str | None
    documents: tuple[tuple[str, str], ...]
    labels: frozenset[str]
    caller: str
    answered_at: datetime
    created_at: datetime
    withheld: bool


class Feedback:
    """The answers given lately and what was said about them. Thread-safe."""

    def __init__(self, database: Database, settings: FeedbackConfig) -> None:
        self._database, self._settings = database, settings
        # `remember` appends to the first at any moment, also while a thread writes; the second is of whoever holds the lock.
        self._waiting: deque[dict[str, Any]] = deque(maxlen=_WAITING)
        self._taken: list[dict[str, Any]] = []
        self._writing = threading.Lock()

    def remember(self, answer: Answer, question: str, evidence: Evidence | None, caller: Caller) -> None:
        """Note an answer that was given; `flush` writes it."""
        found = [] if evidence is None else [info for passage in evidence.passages for info in (passage.document, *passage.sources)]
        cited = {(name.domain, id) for name in answer.citations for id in (name.doc_id, *name.also)}
        keep = self._settings.retain_hours > 0
        self._waiting.append(
            {
                "id": answer.id,
                "caller": caller.name,
                "domain": answer.domain,
                "arm": answer.arm,
                "adapter": answer.adapter,
                "question": _storable(question) if keep else None,
                "answer": _storable(answer.text) if keep else None,
                "documents": sorted(cited | {(info.domain, info.id) for info in found}),
                "labels": sorted(frozenset[str]().union(*(info.labels for info in found))),
                "refused": answer.arm == "refuse" or declines(answer.text),
                "rule": answer.decision.rule[:60],
                # Stands alone also where the question leans on the turns before it; only its hash is written.
                "asked": _storable(answer.query or question),
                # When it was asked for: what is deleted from then on may be in it.
                "created_at": utcnow() - timedelta(milliseconds=answer.timings.get("total", 0.0)),
            }
        )

    def flush(self) -> None:
        """Write what waits and erase what is too old. Raises DatabaseFailed (what waits then goes on waiting)."""
        with self._writing:
            self._flush()

    def _flush(self) -> None:
        self._taken += [self._waiting.popleft() for _ in range(len(self._waiting))]
        del self._taken[:-_WAITING]
        table, now = schema.answer, utcnow()
        secret = self._database.secret() if self._taken else b""
        rows = [{**row, "question_hash": question_hash(secret, row["asked"])} for row in self._taken]
        with self._database.write() as connection:
            # A write whose confirmation was lost is tried again: what it wrote must not stop all that comes after it.
            if rows and (rows := _not_there(connection, rows)):
                kept = _as_kept(connection, rows)
                connection.execute(table.insert(), [{name: row[name] for name in row if name != "asked"} for row in kept])
                enter(connection, (_refusal(row) for row in kept if row["refused"]))
            kept_since = now - timedelta(hours=self._settings.retain_hours)
            old = sa.and_(table.c.created_at < kept_since, sa.or_(table.c.answer.is_not(None), table.c.question.is_not(None)))
            connection.execute(table.update().where(old).values(question=None, answer=None))
            accepted_since = now - timedelta(days=self._settings.accept_days)
            expire(connection, kept_since, accepted_since)
            connection.execute(table.delete().where(table.c.created_at < accepted_since))
        self._taken.clear()

    def waiting(self) -> int:
        """How many answers are to be written."""
        return len(self._waiting) + len(self._taken)

    def give(
        self, caller: Caller, answer_id: str, rating: Rating, *, correction: str | None, question: str | None, answer: str | None
    ) -> None:
        """Take feedback of whoever got the answer; a second one replaces the first. Raises UnknownAnswer."""
        # The answer may just be on its way into the database.
        with self._writing:
            if self.waiting():
                self._flush()
        table, now = schema.answer, utcnow()
        with self._database.write() as connection:
            since = now - timedelta(days=self._settings.accept_days)
            query = sa.select(table).where(table.c.id == answer_id, table.c.caller == caller.name, table.c.created_at >= since)
            row = connection.execute(query).one_or_none()
            if row is None:
                days = f"{self._settings.accept_days:g}"
                raise UnknownAnswer(f"no answer {answer_id!r} was given to this key in the last {days} days ([feedback] accept_days)")
            fresh = row.created_at >= now - timedelta(hours=self._settings.retain_hours)
            gone = Deletions(connection, [row.documents], [row.adapter])(row.documents, row.adapter, row.created_at)
            known = schema.feedback.c.answer_id == answer_id
            before = connection.execute(sa.select(schema.feedback.c.rating).where(known)).scalar_one_or_none()
            connection.execute(schema.feedback.delete().where(known))
            self._review(connection, row, before, rating, question or (row.question if fresh else None), now)
            connection.execute(
                schema.feedback.insert().values(
                    answer_id=answer_id,
                    caller=caller.name,
                    domain=row.domain,
                    arm=row.arm,
                    adapter=row.adapter,
                    rating=rating,
                    question=question or (row.question if fresh else None),
                    answer=None if gone else answer or (row.answer if fresh else None),
                    correction=None if gone else correction,
                    documents=row.documents,
                    labels=row.labels,
                    answered_at=row.created_at,
                    created_at=now,
                )
            )

    def _review(self, connection: Connection, row: Any, before: str | None, rating: Rating, question: str | None, now: datetime) -> None:
        """Bad ratings need a person, once for each answer."""
        if rating == "down" and before != "down" and row.question_hash:
            entry = Entry(row.domain, row.question_hash, question, "rated_down", row.rule, row.arm, row.id, row.documents, row.labels, now)
            enter(connection, [entry])
        elif rating == "up" and before == "down":
            withdraw(connection, row.domain, row.question_hash)

    def list(self, domain: str | None = None, rating: Rating | None = None, answers: Sequence[str] | None = None) -> list[Given]:
        """Feedback, newest first, with the labels its documents have now besides those they had; on these `answers`, or on all."""
        table = schema.feedback
        query = sa.select(table).order_by(table.c.created_at.desc(), table.c.answer_id)
        if domain is not None:
            query = query.where(table.c.domain == domain)
        if rating is not None:
            query = query.where(table.c.rating == rating)
        if answers is not None:
            query = query.where(table.c.answer_id.in_(answers))
        with self._database.read() as connection:
            rows = connection.execute(query).all()
            deleted = Deletions(connection, [row.documents for row in rows], [row.adapter for row in rows])
            return [_given(connection, row, deleted(row.documents, row.adapter, row.answered_at)) for row in rows]


def forget(connection: Connection) -> None:
    """Erase the texts of answers and feedback that rest on documents deleted since, inside the caller's transaction."""
    for table, moment in ((schema.answer, "created_at"), (schema.feedback, "answered_at")):
        texts = {name: None for name in ("answer", "correction") if name in table.c}
        rows = connection.execute(sa.select(table).where(sa.or_(*(table.c[name].is_not(None) for name in texts)))).all()
        deleted = Deletions(connection, [row.documents for row in rows], [row.adapter for row in rows])
        key = table.primary_key.columns.values()[0]
        for row in rows:
            if deleted(row.documents, row.adapter, getattr(row, moment)):
                connection.execute(table.update().where(key == row[0]).values(texts))


def _storable(text: str) -> str:
    """Without NUL, which PostgreSQL refuses: one such text would keep all that wait with it from being written."""
    return text.replace("\0", "\ufffd")


def _refusal(row: Mapping[str, Any]) -> Entry:
    """What comes into the review queue of an answer that declined; the question's text only where it is kept."""
    text = row["asked"] if row["question"] is not None else None
    names = (row[name] for name in ("rule", "arm", "id", "documents", "labels", "created_at"))
    return Entry(row["domain"], row["question_hash"], text, "refused", *names)


def _not_there(connection: Connection, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row of each answer that is not written yet."""
    id = schema.answer.c.id
    there = set(connection.scalars(sa.select(id).where(id.in_([row["id"] for row in rows]))))
    return list({row["id"]: row for row in rows if row["id"] not in there}.values())


def _as_kept(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the labels of now, and without the text of those that rest on what was deleted meanwhile."""
    texts = [row for row in rows if row["answer"] is not None]
    deleted = Deletions(connection, [row["documents"] for row in texts], [row["adapter"] for row in texts])
    gone = {row["id"] for row in texts if deleted(row["documents"], row["adapter"], row["created_at"])}
    return [{**row, "labels": labels_of(connection, row), **({"answer": None} if row["id"] in gone else {})} for row in rows]


def labels_of(connection: Connection, row: Mapping[str, Any]) -> list[str]:
    """What the answer's documents and adapter ask for now, and what they asked for when it was given."""
    held = set(row["labels"])
    for domain, doc_id in row["documents"]:
        table = schema.document
        query = sa.select(table.c.labels).where(table.c.domain == domain, table.c.doc_id == doc_id)
        held.update(connection.execute(query).scalar_one_or_none() or ())
    if row["adapter"] is not None:
        held.update(connection.execute(sa.select(schema.adapter.c.labels).where(schema.adapter.c.name == row["adapter"])).scalar() or ())
    return sorted(held)


class Deletions:
    """Whether anything an answer rests on was deleted since it was given: its documents, or those its adapter was trained on."""

    def __init__(self, connection: Connection, documents: Iterable[Any], adapters: Iterable[str | None]) -> None:
        table, evidence = schema.deletion, schema.adapter_evidence
        self._documents: dict[tuple[str, str], datetime] = {}
        if any(documents):
            query = sa.select(table.c.domain, table.c.doc_id, sa.func.max(table.c.deleted_at)).group_by(table.c.domain, table.c.doc_id)
            self._documents = {(domain, doc_id): moment for domain, doc_id, moment in connection.execute(query)}
        self._adapters: dict[str, datetime] = {}
        if names := sorted({name for name in adapters if name is not None}):
            joined = sa.and_(evidence.c.doc_domain == table.c.domain, evidence.c.doc_id == table.c.doc_id)
            query = sa.select(evidence.c.adapter, sa.func.max(table.c.deleted_at)).join(table, joined).group_by(evidence.c.adapter)
            self._adapters = {row[0]: row[1] for row in connection.execute(query.where(evidence.c.adapter.in_(names)))}

    def __call__(self, documents: Any, adapter: str | None, since: datetime) -> bool:
        return self.first(documents, adapter, since) is not None

    def first(self, documents: Any, adapter: str | None, since: datetime) -> str | None:
        """The id of the first of the documents that was deleted, else the adapter if one that it was trained on was; None if none was."""
        moments = [(doc_id, self._documents.get((domain, doc_id))) for domain, doc_id in documents]
        if adapter is not None:
            moments.append((adapter, self._adapters.get(adapter)))
        return next((name for name, moment in moments if moment is not None and moment >= since), None)


def _given(connection: Connection, row: Any, withheld: bool) -> Given:
    kept = {"documents": row.documents, "labels": row.labels, "adapter": row.adapter}
    return Given(
        answer_id=row.answer_id,
        rating=row.rating,
        question=row.question,
        answer=None if withheld else row.answer,
        correction=None if withheld else row.correction,
        domain=row.domain,
        arm=row.arm,
        adapter=row.adapter,
        documents=tuple((domain, doc_id) for domain, doc_id in row.documents),
        labels=frozenset(labels_of(connection, kept)),
        caller=row.caller,
        answered_at=row.answered_at,
        created_at=row.created_at,
        withheld=withheld,
    )
