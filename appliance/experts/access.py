"""Who may see an expert's task, and when its texts are gone: by the labels and the deletions of what its answers rest on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from appliance.answers.feedback import Deletions, labels_of
from appliance.store.tables_experts import expert_task, expert_work
from retrieval.types import Scope

_TEXTS = {"question": "", "answer_a": "", "answer_b": "", "sources_a": [], "sources_b": []}


def needed(connection: Connection, documents: Any, adapters: Any, labels: Any) -> list[str]:
    """The labels that documents and adapters ask for now, and `labels`."""
    held: set[str] = set()
    for adapter in adapters or [None]:
        held.update(labels_of(connection, {"documents": documents, "labels": labels, "adapter": adapter}))
    return sorted(held)


def visible(connection: Connection, task: sa.Row[Any], scope: Scope) -> bool:
    """Whether somebody with `scope` may see the task."""
    domains = {task.domain, *(owner for owner, _ in task.documents)} - {None}
    if scope.domains is not None and (not domains or not domains <= scope.domains):
        return False
    return frozenset(needed(connection, task.documents, task.adapters, task.labels)) <= scope.labels


def withheld(connection: Connection, tasks: Iterable[sa.Row[Any]]) -> frozenset[str]:
    """The tasks whose texts rest on something deleted since they were answered."""
    tasks = list(tasks)
    deleted = Deletions(connection, [task.documents for task in tasks], [name for task in tasks for name in task.adapters])
    return frozenset(
        task.id
        for task in tasks
        if not task.answer_a or any(deleted(task.documents, adapter, task.answered_at) for adapter in task.adapters or [None])
    )


def forget(connection: Connection) -> None:
    """Erase the texts of tasks that rest on documents deleted since, and what experts wrote about them, in the caller's transaction."""
    kept = sa.or_(expert_task.c.answer_a != "", expert_work.c.correction != "", expert_work.c.comment != "", expert_work.c.reason != "")
    ids = sa.select(expert_task.c.id).outerjoin(expert_work, expert_work.c.task == expert_task.c.id).where(kept)
    gone = sorted(withheld(connection, connection.execute(sa.select(expert_task).where(expert_task.c.id.in_(ids))).all()))
    _erase(connection, gone)


def erase(connection: Connection, run: str, items: Iterable[str]) -> None:
    """Erase the texts of a run's tasks about `items`, whose questions a deletion reached, in the caller's transaction."""
    wanted = frozenset(items)
    rows = connection.execute(sa.select(expert_task.c.id, expert_task.c.item).where(expert_task.c.run == run)).all() if wanted else []
    _erase(connection, [row.id for row in rows if row.item in wanted])


def _erase(connection: Connection, tasks: Sequence[str]) -> None:
    if tasks:
        connection.execute(expert_task.update().where(expert_task.c.id.in_(tasks)).values(_TEXTS))
        texts = {"reason": "", "correction": "", "comment": ""}
        connection.execute(expert_work.update().where(expert_work.c.task.in_(tasks)).values(texts))
