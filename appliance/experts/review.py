"""The review queue: questions that were declined or badly answered, once each, until a person has resolved them.

`share_answered` is the other side of it: how much was answered without a person.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from statistics import NormalDist
from typing import Any, Literal, get_args

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.answers.feedback import Feedback, Given, labels_of
from appliance.answers.verified import VerifiedAnswers
from appliance.errors import UsageError
from appliance.experts.review_entry import OPEN
from appliance.store import schema
from appliance.store.database import Database, utcnow
from appliance.store.tables_experts import review
from retrieval.types import DocumentKey, Scope

Resolution = Literal["answered", "missing", "out_of_scope", "duplicate", "wont_fix"]
RESOLUTIONS: tuple[str, ...] = get_args(Resolution)
_MAX_TOPIC = 200


class NoSuchReview(UsageError):
    """There is no such question in the queue for this caller."""


@dataclass(frozen=True, slots=True)
class Review:
    """One question of the queue. `question` is None where its text is not kept; `refused` and `rated_down` count how often.

    `rule` and `arm` are those of the last such answer, `answers` the latest of them; `state` is "open" or a `Resolution`.
    """

    id: str
    domain: str
    question: str | None
    question_hash: str
    state: str
    refused: int
    rated_down: int
    rule: str
    arm: str
    answers: tuple[str, ...]
    labels: frozenset[str]
    topics: tuple[str, ...]
    note: str
    verified: str | None
    duplicate_of: str | None
    resolved_by: str | None
    resolved_at: datetime | None
    first_seen: datetime
    last_seen: datetime

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        moments = {name: value.isoformat(timespec="seconds") for name, value in asdict(self).items() if isinstance(value, datetime)}
        return {**asdict(self), "labels": sorted(self.labels), **moments}


@dataclass(frozen=True, slots=True)
class Share:
    """Of `asked` questions, how many were `answered` without a person: neither `declined` nor badly rated (`rated_down`).

    `share` is None where nothing was asked; `low` and `high` bound it at 95 % (Wilson 1927, "Probable inference", JASA 22).
    """

    asked: int
    declined: int
    rated_down: int
    answered: int
    share: float | None
    low: float | None
    high: float | None


class ReviewQueue:
    """The queue of a workspace; `scope` is what its reader may see."""

    def __init__(self, database: Database, feedback: Feedback) -> None:
        self._database, self._feedback = database, feedback

    def questions(self, scope: Scope, domain: str | None = None, state: str | None = OPEN, limit: int | None = None) -> list[Review]:
        """The questions, those asked most often first; `state` None is all of them."""
        query = sa.select(review).order_by((review.c.refused + review.c.rated_down).desc(), review.c.last_seen.desc(), review.c.id)
        if state is not None:
            query = query.where(review.c.state == state)
        if domain is not None:
            query = query.where(review.c.domain == domain)
        found: list[Review] = []
        with self._database.read() as connection:
            for row in connection.execute(query).all():
                if len(found) == limit:
                    break
                if (seen := _seen(connection, row, scope)) is not None:
                    found.append(seen)
        return found

    def show(self, scope: Scope, identity: str) -> tuple[Review, list[Given]]:
        """A question and what was said about its answers. Raises NoSuchReview."""
        with self._database.read() as connection:
            found = _find(connection, identity, scope)
        return found, [given for given in self._feedback.list(answers=found.answers) if given.labels <= scope.labels]

    def resolve(
        self,
        scope: Scope,
        identity: str,
        resolution: str,
        by: str,
        *,
        note: str = "",
        topics: Sequence[str] = (),
        duplicate_of: str | None = None,
        verified: str | None = None,
    ) -> Review:
        """Say what became of a question. "missing" needs the `topics` a document is missing on, "duplicate" the question it repeats,
        "answered" the id of an approved answer (see `answer`). A second resolution replaces the first. Raises NoSuchReview, UsageError.
        """
        wanted = tuple(dict.fromkeys(topic.strip() for topic in topics if topic.strip()))
        if resolution not in RESOLUTIONS:
            raise UsageError(f"resolution: expected one of {', '.join(RESOLUTIONS)}, found {resolution!r}")
        for needed, given, name in (
            ("missing", wanted, "topic"),
            ("duplicate", duplicate_of, "duplicate_of"),
            ("answered", verified, "answer"),
        ):
            if (resolution == needed) != bool(given):
                raise UsageError(
                    f"{name}: {'is missing; ' if resolution == needed else ''}it is for the resolution {needed}, and only for it"
                )
        if any(len(topic) > _MAX_TOPIC for topic in wanted):
            raise UsageError(f"topic: at most {_MAX_TOPIC} characters; name what a document is missing on in a few words")
        with self._database.write() as connection:
            found = _find(connection, identity, scope)
            other = None if duplicate_of is None else _find(connection, duplicate_of, scope)
            if other is not None and other.id == found.id:
                raise UsageError("duplicate_of: a question cannot repeat itself; name another")
            values = {
                "state": resolution,
                "note": note.strip(),
                "topics": list(wanted),
                "verified": verified,
                "duplicate_of": other and other.id,
                "resolved_by": by,
                "resolved_at": utcnow(),
            }
            connection.execute(review.update().where(review.c.id == found.id).values(values))
            self._database.audit(connection, "review.resolve", {"id": found.id, "resolution": resolution, "by": by})
            return _find(connection, found.id, scope)

    def answer(
        self,
        verified: VerifiedAnswers,
        scope: Scope,
        identity: str,
        by: str,
        answer: str,
        doc_ids: Sequence[str],
        *,
        question: str | None = None,
        note: str = "",
    ) -> Review:
        """Resolve a question by an approved answer, which cites `doc_ids`; `question` is needed where its text is not kept.

        Raises NoSuchReview, and UsageError as `VerifiedAnswers.add` does.
        """
        found, _ = self.show(scope, identity)
        text = question or found.question
        if text is None:
            raise UsageError("question: its text was not kept ([feedback] retain_hours); give it with the answer")
        for doc_id in doc_ids:
            info = verified.knowledge.documents.current(DocumentKey(found.domain, doc_id))
            if info is None or not info.labels <= scope.labels:
                raise UsageError(f"doc_ids: no document {doc_id!r} in {found.domain} that you may see")
        support = verified.knowledge.workspace.config.answering.support
        made = verified.add(found.domain, text, answer, doc_ids, by, support)
        return self.resolve(scope, identity, "answered", by, note=note, verified=made.id)

    def labels(self) -> frozenset[str]:
        """Every label that a question of the queue asks for."""
        with self._database.read() as connection:
            return frozenset(label for labels in connection.execute(sa.select(review.c.labels)).scalars() for label in labels)

    def topics(self, scope: Scope, domain: str | None = None) -> list[dict[str, Any]]:
        """What documents are missing on, by how many questions, and how often those were asked."""
        questions: Counter[tuple[str, str]] = Counter()
        asked: Counter[tuple[str, str]] = Counter()
        for found in self.questions(scope, domain, "missing"):
            for topic in found.topics:
                questions[found.domain, topic] += 1
                asked[found.domain, topic] += found.refused + found.rated_down
        return [
            {"domain": owner, "topic": topic, "questions": number, "asked": asked[owner, topic]}
            for (owner, topic), number in questions.most_common()
        ]


def share_answered(database: Database, domains: Collection[str] | None = None, since: datetime | None = None) -> Share:
    """The share of the questions put to the gateway in `domains` (None: all) since `since` that were answered without a person.

    An answer counts unless it declined (see `appliance.answers.refusals.declines`), or whoever got it rated it down. Approved answers
    count: their person worked once. Only answers still on record are counted ([feedback] accept_days); a bad rating may still come until
    then.
    """
    table, given = schema.answer, schema.feedback
    down = sa.and_(given.c.rating.is_not(None), given.c.rating == "down")
    query = sa.select(
        sa.func.count(),
        sa.func.coalesce(sa.func.sum(sa.case((table.c.refused, 1), else_=0)), 0),
        sa.func.coalesce(sa.func.sum(sa.case((sa.and_(sa.not_(table.c.refused), down), 1), else_=0)), 0),
    ).select_from(table.outerjoin(given, given.c.answer_id == table.c.id))
    if domains is not None:
        query = query.where(table.c.domain.in_(domains))
    if since is not None:
        query = query.where(table.c.created_at >= since)
    with database.read() as connection:
        asked, declined, rated_down = (int(value) for value in connection.execute(query).one())
    answered = asked - declined - rated_down
    low, high = _wilson(answered, asked) if asked else (None, None)
    return Share(asked, declined, rated_down, answered, answered / asked if asked else None, low, high)


def _wilson(successes: int, n: int) -> tuple[float, float]:
    z = NormalDist().inv_cdf(0.975)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _find(connection: Connection, identity: str, scope: Scope) -> Review:
    row = connection.execute(sa.select(review).where(review.c.id == identity)).one_or_none()
    found = None if row is None else _seen(connection, row, scope)
    if found is None:
        raise NoSuchReview(f"there is no question {identity!r} in the queue; see: appliance review list")
    return found


def _seen(connection: Connection, row: Any, scope: Scope) -> Review | None:
    """The row for somebody with `scope`; None if it is not theirs to see."""
    if scope.domains is not None and row.domain not in scope.domains:
        return None
    facts: Mapping[str, Any] = {"documents": row.documents, "labels": row.labels, "adapter": None}
    labels = frozenset(labels_of(connection, facts))
    if not labels <= scope.labels:
        return None
    names = [name for name in Review.__slots__ if name not in ("answers", "labels", "topics")]
    plain = {name: getattr(row, name) for name in names}
    return Review(**plain, answers=tuple(row.answers), labels=labels, topics=tuple(row.topics))
