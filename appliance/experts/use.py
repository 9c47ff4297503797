"""What experts' judgements become besides the router's labels: approved answers, and preferences to train on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from appliance.admin.keys import Keys
from appliance.errors import UsageError
from appliance.experts.tasks import ExpertTasks
from appliance.service import Service
from appliance.store.database import Database
from eval.experts import Judged
from retrieval.text import normalise_question
from retrieval.types import DocumentKey

# What every expert must have given at least, so that an answer is approved; 5 is the best.
APPROVED_FROM: Mapping[str, int] = {"correctness": 4, "completeness": 4, "citation": 4, "harm": 5}


@dataclass(frozen=True, slots=True)
class Approvals:
    """`approved` are (task, question, id of the approved answer, which is '' where nothing was written); `left_out` counts by reason."""

    approved: tuple[tuple[str, str, str], ...]
    left_out: Mapping[str, int]


def approve(service: Service, run: str, *, experts: int = 2, dry_run: bool = False) -> Approvals:
    """Approve the single answers of a run on which `experts` or more agree that they are right, complete, supported and harmless.

    Each of them must have given every criterion at least `APPROVED_FROM`. One answer a question is approved: the one scored best. It must
    cite documents, as only these tell when it is no longer true, and carry no labels but theirs.
    """
    given: defaultdict[str, list[Judged]] = defaultdict(list)
    rows: dict[str, sa.Row[Any]] = {}
    for judged, task in ExpertTasks(service.workspace.db).judged(run, with_texts=True):
        if judged.kind == "single" and judged.judgement.scores:
            given[judged.task].append(judged)
            rows[judged.task] = task
    known = {(one.domain, normalise_question(one.question)) for one in service.verified.all()}
    names = expert_names(service.workspace.db)
    approved: list[tuple[str, str, str]] = []
    left_out: Counter[str] = Counter()
    for identity in sorted(given, key=lambda name: (-_total(given[name]), rows[name].place)):
        task = rows[identity]
        key = (task.domain, normalise_question(task.question))
        reason = _why_not(service, task, given[identity], experts) or ("the question has an approved answer" if key in known else "")
        if not reason:
            try:
                made = "" if dry_run else _add(service, task, [names.get(one.expert, one.expert) for one in given[identity]])
            except UsageError as error:
                reason = str(error).partition(";")[0]
            else:
                approved.append((identity, task.question, made))
                known.add(key)
        if reason:
            left_out[reason] += 1
    return Approvals(tuple(approved), dict(left_out.most_common()))


def _total(judged: list[Judged]) -> float:
    return sum(sum(one.judgement.scores.values()) / len(one.judgement.scores) for one in judged) / len(judged)


def _why_not(service: Service, task: sa.Row[Any], judged: list[Judged], experts: int) -> str:
    if len(judged) < experts:
        return f"scored by fewer than {experts} experts"
    if any(score < APPROVED_FROM[name] for one in judged for name, score in one.judgement.scores.items()):
        return "not good enough for all of them"
    if task.domain is None:
        return "its question has no domain"
    if not task.sources_a:
        return "the answer cites no document"
    infos = [service.knowledge.documents.current(DocumentKey(task.domain, name)) for name in task.sources_a]
    cited = frozenset[str]().union(*(info.labels for info in infos if info is not None))
    return "" if frozenset(task.labels) <= cited else "it rests on labelled documents that it does not cite"


def _add(service: Service, task: sa.Row[Any], experts: list[str]) -> str:
    support = service.workspace.config.answering.support
    return service.verified.add(task.domain, task.question, task.answer_a, task.sources_a, ", ".join(experts), support).id


@dataclass(frozen=True, slots=True)
class Preference:
    """Of two answers to a question the one that experts prefer, or their own correction of one (`rejected` None: of none)."""

    task: str
    question: str
    lang: str
    domain: str | None
    answer: str
    rejected: str | None
    documents: tuple[tuple[str, str], ...]
    labels: frozenset[str]
    method: str
    experts: tuple[str, ...]
    adapters: tuple[str, ...]
    answered_at: datetime


def preferences(service: Service, run: str) -> tuple[list[Preference], Counter[str]]:
    """What the judgements of a run prefer, and what gave nothing, by reason.

    A pair is decided where more experts prefer one answer than the other; a correction is preferred to the answer it corrects (in a pair
    to the one its expert liked less, or of a tie to the first).
    """
    given: defaultdict[str, list[Judged]] = defaultdict(list)
    rows: dict[str, sa.Row[Any]] = {}
    left_out: Counter[str] = Counter()
    for judged, task in ExpertTasks(service.workspace.db).judged(run):
        given[judged.task].append(judged)
        rows[judged.task] = task
    whole = {judged.task for judged, _ in ExpertTasks(service.workspace.db).judged(run, with_texts=True)}
    found: list[Preference] = []
    for identity, judgements in given.items():
        task = rows[identity]
        if identity not in whole:
            left_out["a document was deleted"] += 1
            continue
        before = len(found)
        for one in judgements:
            if one.judgement.correction:
                worse = task.answer_b if one.judgement.preference == "a" else task.answer_a
                found.append(_preference(task, one.judgement.correction, worse, "expert correction", [one.expert]))
        votes = Counter(one.judgement.preference for one in judgements)
        if votes["a"] != votes["b"]:
            better, worse = (task.answer_a, task.answer_b) if votes["a"] > votes["b"] else (task.answer_b, task.answer_a)
            found.append(_preference(task, better, worse, "expert preference", [one.expert for one in judgements]))
        if len(found) == before:
            left_out["no preference and no correction"] += 1
    return found, left_out


def _preference(task: sa.Row[Any], answer: str, rejected: str, method: str, experts: list[str]) -> Preference:
    documents = tuple((owner, name) for owner, name in task.documents)
    facts = (task.id, task.question, task.lang, task.domain, answer, rejected or None, documents, frozenset[str](task.labels))
    return Preference(*facts, method, tuple(experts), tuple(task.adapters), task.answered_at)


def expert_names(database: Database) -> dict[str, str]:
    """The names of the keys that experts use, by the ids they are known under."""
    return {key.id: key.name for key in Keys(database).list()}
