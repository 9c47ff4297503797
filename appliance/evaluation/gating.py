"""A team's gate over runs: its thresholds held against one, and the verdict kept with it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from appliance.evaluation.runs import finished, scoring_of, scoring_of_run
from appliance.experts.tasks import expert_utilities
from appliance.store import schema
from appliance.workspace import Workspace
from eval.gate import LAST, GateFile, Verdict, failed, judge
from eval.run import load

# The settings of a run that say what was asked, beside its arms; the others tell the state it was asked of.
_ASKED = ("split", "limit", "max_tokens", "temperature", "seed", "gate", "check")


def hold(workspace: Workspace, file: GateFile, gate: str, run: sa.Row[Any]) -> list[Verdict]:
    """The thresholds of the gate file called `gate` against a finished run, which keeps whether it passed.

    Raises UsageError if the run is not finished, EvalError on damaged files.
    """
    result = finished(workspace, run)
    scoring, before = scoring_of_run(workspace, run, result.items), None
    if any(threshold.against == LAST for threshold in file.thresholds) and (row := baseline(workspace, run, gate)) is not None:
        before = load(workspace.root / row.path)
        # The scores are of answers, so each run's hold in the other where the same was answered.
        scoring = scoring_of(workspace.config, {**expert_utilities(workspace.db, row.id, before.items), **scoring.experts})
    verdicts = [*failed(file.thresholds, result), *(judge(threshold, result, before, scoring) for threshold in file.thresholds)]
    passed = all(verdict.status != "missed" for verdict in verdicts)
    table = schema.run
    with workspace.db.write() as connection:
        kept = connection.execute(sa.select(table.c.summary).where(table.c.id == run.id).with_for_update()).scalar_one()
        summary = {**kept, "gates": {**kept.get("gates", {}), gate: passed}}
        connection.execute(table.update().where(table.c.id == run.id).values(summary=summary))
    return verdicts


def baseline(workspace: Workspace, run: sa.Row[Any], gate: str) -> sa.Row[Any] | None:
    """The run that "last" stands for: the last finished one over the same data set that was started before `run`, was asked the same
    (whatever the state it was asked of) and did not miss `gate`, so that a loss is not compared with itself when it is measured again.
    """
    table = schema.run
    query = sa.select(table).where(table.c.dataset == run.dataset, table.c.finished_at.is_not(None), table.c.created_at < run.created_at)
    with workspace.db.read() as connection:
        rows = connection.execute(query.order_by(table.c.created_at.desc())).all()
    for row in rows:
        same = all(row.settings.get(name) == run.settings.get(name) for name in _ASKED)
        if same and set(run.settings["arms"]) <= set(row.settings["arms"]) and row.summary.get("gates", {}).get(gate, True):
            return row
    return None
