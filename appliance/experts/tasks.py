"""Expert scoring in the database: tasks made of runs, given out evenly, judged, and read back.

A task is shown without its arms, which only the report and what is made of the scores know. Its texts go with the documents they rest on,
as those of feedback do, and a caller sees it only with the labels of all of them.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import fmean
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.errors import UsageError
from appliance.experts.access import needed, visible, withheld
from appliance.knowledge.forgetting import forget
from appliance.store import schema
from appliance.store.database import Database, utcnow
from appliance.store.tables_experts import expert_task, expert_work
from appliance.workspace import Workspace
from eval.experts import Judged, Judgement, Kind, Task, blind_tasks, judgement_of, utility_of
from eval.run import load
from eval.types import Item
from retrieval.types import Scope
from router.types import TUNED

# Work that somebody asked for and did not do is given to others after this time.
_LEASE = timedelta(days=7)
_DONE = ("done", "cannot")


class NoSuchTask(UsageError):
    """There is no such task for this expert: it is unknown, taken by enough others, not theirs to see, or its text was deleted."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` did: `made` tasks are new, `known` ones were there; `assigned` counts the tasks of each expert named."""

    run: str
    made: int
    known: int
    assigned: Mapping[str, int]


def prepare(
    workspace: Workspace,
    run: sa.Row[Any],
    *,
    kinds: Sequence[Kind] = ("single",),
    arms: Sequence[str] | None = None,
    limit: int | None = None,
    overlap: int = 2,
    experts: Mapping[str, Scope] | None = None,
    seed: int = 0,
) -> Prepared:
    """Make the tasks of a run; those it has already stay as they are, so that more questions can follow.

    Each task is judged by `overlap` experts: those of `experts` (with what each may see) who have the least, or without them whoever asks.
    Raises UsageError for an overlap that cannot be reached, EvalError for a damaged run or unknown arms.
    """
    named = experts or {}
    if overlap < 1 or (named and overlap > len(named)):
        raise UsageError(f"overlap: {overlap} experts for each task; give 1 to {len(named) or 'as many as will judge'}")
    forget(workspace.db, workspace.root)
    result = load(workspace.root / run.path)
    tasks = blind_tasks(result.items, result.outcomes, kinds, arms, limit, seed)
    now, table = utcnow(), expert_task
    with workspace.db.write() as connection:
        # One at a time, where several processes write at once.
        connection.execute(sa.select(schema.run.c.id).where(schema.run.c.id == run.id).with_for_update())
        rows = connection.execute(sa.select(table).where(table.c.run == run.id)).all()
        known = {_same(row.item, row.kind, (row.answer_a, row.answer_b), (row.sources_a, row.sources_b)): row for row in rows}
        places = max((row.place for row in rows), default=-1)
        fresh: list[dict[str, Any]] = []
        for task in tasks:
            texts = [side.answer for side in task.sides] + [""] * (2 - len(task.sides))
            sources = [list(side.sources) for side in task.sides] + [[]] * (2 - len(task.sides))
            if _same(task.item.id, task.kind, texts, sources) not in known:
                rests = [result.outcomes[task.item.id, arm] for side in task.sides for arm in side.arms]
                found = {name for outcome in rests for name in (*(outcome.retrieved or ()), *outcome.citations)}
                domain = task.item.domain or run.domain
                trained = {outcome.arm for outcome in rests} & set(TUNED)
                adapters = run.settings.get("adapters", {}) if trained else {}
                documents = _documents(connection, domain, found)
                versions = sorted(name for owner, name in adapters.items() if domain in (None, owner))
                fresh.append(
                    {
                        "id": f"task-{secrets.token_hex(8)}",
                        "run": run.id,
                        "item": task.item.id,
                        "kind": task.kind,
                        "place": places + 1 + len(fresh),
                        "overlap": overlap,
                        "domain": domain,
                        "lang": task.item.lang,
                        "question": task.item.question,
                        **_sides(task),
                        "documents": documents,
                        "adapters": versions,
                        "labels": needed(connection, documents, versions, ()),
                        "answered_at": run.created_at,
                        "created_at": now,
                    }
                )
        if fresh:
            connection.execute(table.insert(), fresh)
        assigned = _assign(connection, run.id, named, overlap, random.Random(seed), now) if named else {}
        workspace.db.audit(connection, "expert.prepare", {"run": run.id, "tasks": len(fresh), "overlap": overlap, "experts": sorted(named)})
    forget(workspace.db, workspace.root)
    return Prepared(run.id, len(fresh), len(tasks) - len(fresh), assigned)


def _sides(task: Task) -> dict[str, Any]:
    first, second = task.sides[0], task.sides[1] if task.kind == "pair" else None
    return {
        "answer_a": first.answer,
        "answer_b": second.answer if second else "",
        "sources_a": list(first.sources),
        "sources_b": list(second.sources) if second else [],
        "arms_a": list(first.arms),
        "arms_b": list(second.arms) if second else [],
    }


def _same(item: str, kind: str, texts: Sequence[str], sources: Sequence[Sequence[str]]) -> tuple[Any, ...]:
    """What makes two tasks one, in whatever order its sides are shown."""
    return (item, kind, *sorted((text, *names) for text, names in zip(texts, sources, strict=True)))


def _documents(connection: Connection, domain: str | None, names: Iterable[str]) -> list[list[str]]:
    """The documents of these ids; without a domain, those of every domain that has one."""
    if domain is not None:
        return [[domain, name] for name in sorted(names)]
    query = sa.select(schema.document.c.domain, schema.document.c.doc_id).where(schema.document.c.doc_id.in_(sorted(names)))
    return sorted([row.domain, row.doc_id] for row in connection.execute(query))


def _assign(
    connection: Connection, run: str, experts: Mapping[str, Scope], overlap: int, dice: random.Random, now: datetime
) -> dict[str, int]:
    """Give every task of the run that fewer than `overlap` experts have to those of `experts` who have the least."""
    load = Counter(dict.fromkeys(experts, 0))
    given: defaultdict[str, set[str]] = defaultdict(set)
    tasks = connection.execute(sa.select(expert_task).where(expert_task.c.run == run).order_by(expert_task.c.place)).all()
    for row in connection.execute(_work(run)):
        given[row.task].add(row.expert)
        load[row.expert] += 1
    rows = []
    for task in tasks:
        able = [name for name, scope in experts.items() if name not in given[task.id] and visible(connection, task, scope)]
        dice.shuffle(able)
        for name in sorted(able, key=lambda name: load[name])[: max(0, overlap - len(given[task.id]))]:
            rows.append(_open(task.id, name, True, now))
            load[name] += 1
    if rows:
        connection.execute(expert_work.insert(), rows)
    return {name: load[name] for name in experts}


def _open(task: str, expert: str, named: bool, now: datetime) -> dict[str, Any]:
    blank = {"scores": {}, "preference": "", "reason": "", "correction": "", "comment": ""}
    return {"task": task, "expert": expert, "state": "open", "named": named, "assigned_at": now, "done_at": None, **blank}


def _work(run: str | None) -> sa.Select[Any]:
    query = sa.select(expert_work).join(expert_task, expert_task.c.id == expert_work.c.task)
    return query if run is None else query.where(expert_task.c.run == run)


class ExpertTasks:
    """The tasks of a workspace, as its experts see them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def next(self, expert: str, scope: Scope, run: str | None = None) -> dict[str, Any] | None:
        """What the expert should judge now: what is theirs and open, else one more that too few have; None when there is nothing."""
        found = self.take(expert, scope, run, 1)
        return found[0] if found else None

    def take(self, expert: str, scope: Scope, run: str | None, count: int | None) -> list[dict[str, Any]]:
        """As `next`, for up to `count` tasks (None: all there are)."""
        now = utcnow()
        with self._database.write() as connection:
            query = sa.select(expert_task).order_by(expert_task.c.created_at, expert_task.c.run, expert_task.c.place)
            tasks = connection.execute((query if run is None else query.where(expert_task.c.run == run)).with_for_update()).all()
            mine: dict[str, str] = {}
            taken: Counter[str] = Counter()
            for work in connection.execute(_work(run)):
                if work.expert == expert:
                    mine[work.task] = work.state
                if work.state == "done" or (work.state == "open" and (work.named or work.assigned_at >= now - _LEASE)):
                    taken[work.task] += 1
            own = [task for task in tasks if mine.get(task.id) == "open"]
            # What others have begun comes first, so that tasks are complete also where the experts' time is not enough for all.
            free = sorted(
                (task for task in tasks if task.id not in mine and taken[task.id] < task.overlap), key=lambda task: -taken[task.id]
            )
            gone = withheld(connection, tasks)
            shown: list[dict[str, Any]] = []
            for task in (*own, *free):
                if len(shown) == count:
                    break
                if task.id not in gone and visible(connection, task, scope):
                    if task.id not in mine:
                        connection.execute(expert_work.insert().values(_open(task.id, expert, False, now)))
                    shown.append(_shown(task))
        return shown

    def submit(self, expert: str, scope: Scope, task_id: str, row: Mapping[str, Any], *, claim: bool = False) -> str:
        """Take a judgement; returns "new", "changed", "unchanged", or "empty" where nothing is said yet.

        `claim` takes the task for an expert who does not have it. Raises NoSuchTask, BadScore.
        """
        now = utcnow()
        with self._database.write() as connection:
            task, work = self._mine(connection, expert, scope, task_id, claim)
            judgement = judgement_of(task.kind, bool(task.sources_a), row)
            if judgement is None:
                return "empty"
            values = {
                "state": "cannot" if judgement.cannot_judge else "done",
                "scores": dict(judgement.scores),
                "preference": judgement.preference,
                "reason": judgement.cannot_judge,
                "correction": judgement.correction,
                "comment": judgement.comment,
            }
            if work is None:
                connection.execute(expert_work.insert().values(_open(task_id, expert, False, now)))
            elif all(getattr(work, name) == value for name, value in values.items()):
                return "unchanged"
            where = (expert_work.c.task == task_id, expert_work.c.expert == expert)
            connection.execute(expert_work.update().where(*where).values(**values, done_at=now))
        return "changed" if work is not None and work.state in _DONE else "new"

    def skip(self, expert: str, scope: Scope, task_id: str) -> None:
        """Leave a task to others; it is not offered to this expert again. Raises NoSuchTask."""
        with self._database.write() as connection:
            self._mine(connection, expert, scope, task_id, False)
            where = (expert_work.c.task == task_id, expert_work.c.expert == expert)
            blank = _open(task_id, expert, False, utcnow()) | {"state": "skipped"}
            connection.execute(expert_work.update().where(*where).values(blank))

    def _mine(self, connection: Connection, expert: str, scope: Scope, task_id: str, claim: bool) -> tuple[sa.Row[Any], sa.Row[Any] | None]:
        task = connection.execute(sa.select(expert_task).where(expert_task.c.id == task_id).with_for_update()).one_or_none()
        query = sa.select(expert_work).where(expert_work.c.task == task_id, expert_work.c.expert == expert)
        work = connection.execute(query).one_or_none()
        if task is None or (work is None and not claim) or not visible(connection, task, scope) or withheld(connection, [task]):
            raise NoSuchTask(f"there is no task {task_id!r} for {expert}; it may be unknown, given to others, or its text was deleted")
        return task, work

    def ids(self, run: str) -> frozenset[str]:
        """The tasks of a run."""
        with self._database.read() as connection:
            return frozenset(connection.execute(sa.select(expert_task.c.id).where(expert_task.c.run == run)).scalars())

    def labels(self) -> frozenset[str]:
        """Every label that a task asks for."""
        with self._database.read() as connection:
            return frozenset(label for labels in connection.execute(sa.select(expert_task.c.labels)).scalars() for label in labels)

    def progress(self, expert: str, scope: Scope, run: str | None = None) -> dict[str, int]:
        """How many tasks this expert has `open`, `done`, could not judge (`cannot`) or `skipped`."""
        query = sa.select(expert_work.c.state, expert_task).join(expert_task, expert_task.c.id == expert_work.c.task)
        query = query.where(expert_work.c.expert == expert)
        counts = dict.fromkeys(("open", *_DONE, "skipped"), 0)
        with self._database.read() as connection:
            rows = connection.execute(query if run is None else query.where(expert_task.c.run == run)).all()
            gone = withheld(connection, rows)
            for row in rows:
                if row.state != "open" or (row.id not in gone and visible(connection, row, scope)):
                    counts[row.state] += 1
        return counts

    def status(self, run: str) -> dict[str, Any]:
        """How far the scoring of a run is: `complete` tasks have as many judgements as wanted, `withheld` ones lost their text."""
        with self._database.read() as connection:
            tasks = connection.execute(sa.select(expert_task).where(expert_task.c.run == run)).all()
            work = connection.execute(_work(run)).all()
            gone = withheld(connection, tasks)
        done = Counter(row.task for row in work if row.state == "done")
        states: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for row in work:
            states[row.expert][row.state] += 1
        return {
            "run": run,
            "tasks": len(tasks),
            "kinds": dict(sorted(Counter(task.kind for task in tasks).items())),
            "complete": sum(done[task.id] >= task.overlap for task in tasks),
            "begun": sum(0 < done[task.id] < task.overlap for task in tasks),
            "withheld": len(gone),
            "experts": {name: {state: counts[state] for state in ("open", *_DONE, "skipped")} for name, counts in sorted(states.items())},
        }

    def judged(self, run: str, *, with_texts: bool = False) -> Iterator[tuple[Judged, sa.Row[Any]]]:
        """Every judgement of a run, unblinded, with its task; `with_texts` leaves out the tasks whose text was deleted."""
        with self._database.read() as connection:
            tasks = {task.id: task for task in connection.execute(sa.select(expert_task).where(expert_task.c.run == run))}
            gone = withheld(connection, tasks.values()) if with_texts else frozenset()
            work = connection.execute(
                _work(run).where(expert_work.c.state.in_(_DONE)).order_by(expert_task.c.place, expert_work.c.expert)
            ).all()
        for row in work:
            task = tasks[row.task]
            if task.id not in gone:
                arms = (tuple(task.arms_a),) if task.kind == "single" else (tuple(task.arms_a), tuple(task.arms_b))
                said = Judgement(row.scores, row.preference, row.reason, row.correction, row.comment)
                yield Judged(task.id, task.item, task.kind, arms, row.expert, said), task


def expert_utilities(database: Database, run: str, items: Iterable[Item]) -> dict[tuple[str, str], float]:
    """What the experts' scores make each answer to `items`, those of `run`, worth, in [-1, 1] by (item, text): the mean over the experts
    who scored it, in this run or in another over its data set that asked the same.

    By its text, because an arm and the router that chose it may have given the same answer, and a later run the same again. Answers
    nobody scored, and those whose text was deleted since, are not in it; see `eval.experts.utility_of`.
    """
    questions = {item.id: item.question for item in items}
    table = schema.run
    of_set = sa.select(table.c.dataset).where(table.c.id == run).scalar_subquery()
    with database.read() as connection:
        query = sa.select(expert_task.c.run).distinct().join(table, table.c.id == expert_task.c.run).where(table.c.dataset == of_set)
        runs = connection.execute(query.order_by(expert_task.c.run)).scalars().all()
    given: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for judged, task in (each for name in runs for each in ExpertTasks(database).judged(name, with_texts=True)):
        if judged.judgement.scores and questions.get(judged.item) == task.question:
            given[judged.item, task.answer_a].append(utility_of(judged.judgement.scores))
    return {key: fmean(values) for key, values in given.items()}


def _shown(task: sa.Row[Any]) -> dict[str, Any]:
    """A task as an expert sees it."""
    answers = [{"name": "a", "answer": task.answer_a, "sources": task.sources_a}]
    if task.kind == "pair":
        answers.append({"name": "b", "answer": task.answer_b, "sources": task.sources_b})
    return {"task": task.id, "kind": task.kind, "lang": task.lang, "domain": task.domain, "question": task.question, "answers": answers}
