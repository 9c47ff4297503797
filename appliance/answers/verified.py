"""Verified answers: approved by an expert, served as they are, and only while what they cite has not changed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from appliance.answers.citations import align
from appliance.answers.same_question import Meaning, meaning, same
from appliance.errors import UsageError
from appliance.knowledge.knowledge import Knowledge
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.store.lookup import Lookup
from appliance.types import Citation
from retrieval.text import detect_lang, normalise_question
from retrieval.types import DocumentKey, Scope

# The cosine from which two questions that say the same in other words are one; of the pairs that do in
# ``benchmarks/verified_matches.py`` nearly all reach it.
SIMILAR = 0.9
# Approved questions whose meaning is remembered.
_MEANINGS = 20_000
_APPROVED = Lookup(sa.select(schema.verified.c.id).where(schema.verified.c.normalised == sa.bindparam("normalised")))


@dataclass(frozen=True, slots=True)
class Verified:
    """One approved answer. `suspended` says why it is not served now (a cited document changed or went), else ''."""

    id: str
    domain: str
    question: str
    answer: str
    lang: str
    citations: tuple[Citation, ...]
    labels: frozenset[str]
    approved_by: str
    created_at: datetime
    suspended: str = ""

    def to_json(self) -> dict[str, Any]:
        """The answer as a row of a list, without its citations."""
        return {
            "id": self.id,
            "domain": self.domain,
            "question": self.question,
            "answer": self.answer,
            "approved_by": self.approved_by,
            "created_at": self.created_at.isoformat(timespec="seconds"),
            "suspended": self.suspended,
        }


class VerifiedAnswers:
    """The approved answers of a workspace."""

    def __init__(self, knowledge: Knowledge) -> None:
        self.knowledge = knowledge
        self.db = knowledge.workspace.db
        self._meanings: dict[str, Meaning] = {}

    def add(self, domain: str, question: str, answer: str, doc_ids: Sequence[str], approved_by: str, support: float) -> Verified:
        """Approve an answer; it cites the best sentences of `doc_ids`.

        Raises UsageError for empty text, unknown documents, or no support in them.
        """
        for field, text in (("question", question), ("answer", answer), ("approved by", approved_by)):
            if not text.strip():
                raise UsageError(f"the {field} is empty")
        passages = [self.knowledge.documents.whole_passage(DocumentKey(domain, doc_id)) for doc_id in doc_ids]
        missing = [doc_id for doc_id, passage in zip(doc_ids, passages, strict=True) if passage is None]
        if missing:
            raise UsageError(f"no document {', '.join(missing)} in {domain}; see: appliance document list --domain {domain}")
        found = [passage for passage in passages if passage is not None]
        cited, unsupported = align(answer, found, support)
        if found and not cited:
            raise UsageError(f"nothing in {', '.join(doc_ids)} supports this answer; unsupported: {' | '.join(unsupported)}")
        labels = frozenset().union(*(passage.document.labels for passage in found)) if found else frozenset[str]()
        made = Verified(
            id=f"ver-{secrets.token_hex(6)}",
            domain=domain,
            question=question.strip(),
            answer=answer.strip(),
            lang=detect_lang(answer),
            citations=tuple(cited),
            labels=labels,
            approved_by=approved_by.strip(),
            created_at=utcnow(),
        )
        with self.db.write() as connection:
            connection.execute(
                schema.verified.insert().values(
                    id=made.id,
                    domain=domain,
                    question=made.question,
                    normalised=normalise_question(question),
                    answer=made.answer,
                    lang=made.lang,
                    citations=[asdict(citation) for citation in made.citations],
                    labels=sorted(labels),
                    approved_by=made.approved_by,
                    created_at=made.created_at,
                )
            )
            facts = {"id": made.id, "domain": domain, "approved_by": made.approved_by, "documents": list(doc_ids), "labels": sorted(labels)}
            self.db.audit(connection, "verified.add", facts)
        return made

    def all(self, domain: str | None = None) -> list[Verified]:
        query = sa.select(schema.verified).order_by(schema.verified.c.created_at)
        if domain is not None:
            query = query.where(schema.verified.c.domain == domain)
        with self.db.read() as connection:
            return [self._read(row) for row in connection.execute(query)]

    def remove(self, identity: str) -> None:
        """Raises UsageError if there is no such answer."""
        with self.db.write() as connection:
            removed = connection.execute(schema.verified.delete().where(schema.verified.c.id == identity))
            if removed.rowcount:
                self.db.audit(connection, "verified.remove", {"id": identity})
        if removed.rowcount == 0:
            raise UsageError(f"no verified answer {identity!r}; see: appliance verified list")

    def match(self, question: str, scope: Scope) -> Verified | None:
        """The newest servable approved answer to the same question (after normalising) that the caller may see."""
        normalised = normalise_question(question)
        # Nearly every question has none.
        if not self.db.rows(_APPROVED, normalised=normalised):
            return None
        return self._servable(schema.verified.c.normalised == normalised, scope)

    def similar(self, question: str, scope: Scope) -> tuple[Verified, float] | None:
        """The newest servable approved answer to a question that asks for the same in other words, and how near the two questions are.

        See `appliance.answers.same_question`; besides, the cosine of the two must reach `SIMILAR`.
        """
        table = schema.verified
        query = sa.select(table.c.id, table.c.question).order_by(table.c.created_at.desc())
        if scope.domains is not None:
            query = query.where(table.c.domain.in_(scope.domains))
        with self.db.read() as connection:
            rows = connection.execute(query).all()
        asked = meaning(question) if rows else None
        alike = [row for row in rows if asked is not None and same(asked, self._meaning(row.question))]
        if not alike:
            return None
        vectors = self.knowledge.embedder.encode_queries([question, *(row.question for row in alike)])
        for row, near in zip(alike, (vectors[1:] @ vectors[0]).tolist(), strict=True):
            found = self._servable(table.c.id == row.id, scope) if near >= SIMILAR else None
            if found is not None:
                return found, min(1.0, near)
        return None

    def _meaning(self, question: str) -> Meaning:
        known = self._meanings.get(question)
        if known is None:
            if len(self._meanings) >= _MEANINGS:
                self._meanings.clear()
            known = self._meanings[question] = meaning(question)
        return known

    def _servable(self, which: sa.ColumnElement[bool], scope: Scope) -> Verified | None:
        """The newest of the approved answers that are not suspended and that the caller may see."""
        table = schema.verified
        query = sa.select(table).where(which).order_by(table.c.created_at.desc())
        if scope.domains is not None:
            query = query.where(table.c.domain.in_(scope.domains))
        with self.db.read() as connection:
            rows = [self._read(row) for row in connection.execute(query)]
        return next((row for row in rows if not row.suspended and self._labels(row) <= scope.labels), None)

    def _labels(self, approved: Verified) -> frozenset[str]:
        """Those at the time of approval, and those that its documents have now."""
        current = [self.knowledge.documents.current(DocumentKey(cited.domain, cited.doc_id)) for cited in approved.citations]
        return approved.labels.union(*(info.labels for info in current if info is not None))

    def _read(self, row: sa.Row[Any]) -> Verified:
        citations = tuple(
            Citation(**{**entry, **{name: tuple(entry.get(name, ())) for name in ("heading", "flags", "also")}}) for entry in row.citations
        )
        # A quotation is empty once its document was deleted (see `appliance.knowledge.forgetting`), also if that came in again.
        changed = [
            c.doc_id for c in citations if not (c.quote and self.knowledge.documents.is_current(DocumentKey(c.domain, c.doc_id), c.sha256))
        ]
        return Verified(
            id=row.id,
            domain=row.domain,
            question=row.question,
            answer=row.answer,
            lang=row.lang,
            citations=citations,
            labels=frozenset(row.labels),
            approved_by=row.approved_by,
            created_at=row.created_at,
            suspended=f"changed or removed since: {', '.join(changed)}" if changed else "",
        )
