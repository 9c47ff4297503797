"""Verified answers: approved by an expert, served as they are, and only while what they cite has not changed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from appliance.answers.approved import ApprovedQuestions, changed
from appliance.answers.citations import align
from appliance.errors import UsageError
from appliance.knowledge.knowledge import Knowledge
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.types import Citation
from retrieval.text import detect_lang, normalise_question
from retrieval.types import DocumentKey, Scope

# The cosine from which two questions that say the same in other words are one; of the pairs that do in
# ``benchmarks/verified_matches.py`` nearly all reach it.
SIMILAR = 0.9


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
        self._approved = ApprovedQuestions(self.db)

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
            changed(connection)
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
                changed(connection)
                self.db.audit(connection, "verified.remove", {"id": identity})
        if removed.rowcount == 0:
            raise UsageError(f"no verified answer {identity!r}; see: appliance verified list")

    def match(self, question: str, scope: Scope) -> Verified | None:
        """The newest servable approved answer to the same question (after normalising) that the caller may see."""
        alike = self._approved.worded(normalise_question(question))
        return self._servable([one.id for one in alike], scope) if alike else None

    def similar(self, question: str, scope: Scope) -> tuple[Verified, float] | None:
        """The newest servable approved answer to a question that asks for the same in other words, and how near the two questions are.

        See `appliance.answers.same_question`; besides, the cosine of the two must reach `SIMILAR`.
        """
        domains = scope.domains
        alike = [one for one in self._approved.meaning(question) if domains is None or one.domain in domains]
        if not alike:
            return None
        vectors = self.knowledge.embedder.encode_queries([question, *(one.question for one in alike)])
        for one, near in zip(alike, (vectors[1:] @ vectors[0]).tolist(), strict=True):
            found = self._servable([one.id], scope) if near >= SIMILAR else None
            if found is not None:
                return found, min(1.0, near)
        return None

    def _servable(self, ids: Sequence[str], scope: Scope) -> Verified | None:
        """The newest of these approved answers that is not suspended and that the caller may see."""
        table = schema.verified
        query = sa.select(table).where(table.c.id.in_(ids)).order_by(table.c.created_at.desc())
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
