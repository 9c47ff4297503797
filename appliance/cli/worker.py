"""`appliance worker`."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from appliance.cli.session import Session, emit, json_option, pass_session, say, table
from appliance.errors import DONE, FAILURE, PARTLY

logger = logging.getLogger("appliance.worker")


@click.command()
@click.option("--once", is_flag=True, help="Do what is due now, then end.")
@click.option("--parent", type=int, hidden=True, help="End when this process is gone.")
@json_option
@pass_session
def worker(session: Session, once: bool, parent: int | None, as_json: bool) -> int:
    """Run jobs, refresh the knowledge base and retrain on schedule, and watch over versions on trial.

    `appliance serve` starts one by itself. A time that was missed is made up for once. What it did: appliance index status, and job list.
    The log is on stderr, one JSON object a line.
    """
    from appliance.adapters.retraining import Retraining
    from appliance.jobs.background import Background
    from appliance.jobs.schedule import Schedule, plans
    from appliance.jobs.worker import work
    from appliance.logs import log_as_json
    from appliance.service import open_service

    if not once:
        log_as_json()
    tell = say if once else logger.warning
    workspace = session.workspace
    workspace.db.actor = "worker"
    retraining = Retraining(workspace)
    due = [retraining.due]
    if plans(workspace):
        due.insert(0, Schedule(open_service(workspace).knowledge).due)
    elif not retraining.plans:
        tell("no domain has a schedule; give one sources and refresh, or retrain, under [domains.NAME] in appliance.toml")
    ended = threading.Event()
    outcomes: list[dict[str, Any]] = []

    def report(name: str, outcome: dict[str, Any]) -> None:
        if once:
            outcomes.append(outcome)
        else:
            logger.info("done", extra={"facts": {"task": name, **outcome}})

    with _signals(ended):
        work(
            workspace.db,
            due,
            once=once,
            stopped=lambda: ended.is_set() or (parent is not None and os.getppid() != parent),
            wait=ended.wait,
            report=report,
            say=tell,
            beside=lambda: Background(workspace, report),
        )
    if not once:
        return DONE
    columns = ("domain", "kind", "outcome", "added", "updated", "unchanged", "removed", "generation", "error")
    emit(outcomes, as_json, lambda: table(columns, [[outcome.get(column) for column in columns] for outcome in outcomes]))
    results = {outcome["outcome"] for outcome in outcomes}
    return DONE if results <= {"done"} else FAILURE if results == {"failed"} else PARTLY


@contextmanager
def _signals(ended: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set `ended`, so that the worker ends between two documents and with exit code 0."""
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
