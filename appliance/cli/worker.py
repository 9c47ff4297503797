"""`appliance worker`."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from appliance.cli.session import Session, emit, json_option, pass_session, say, table
from appliance.errors import DONE, FAILURE, PARTLY


@click.command()
@click.option("--once", is_flag=True, help="Do what is due now, then end.")
@click.option("--parent", type=int, hidden=True, help="End when this process is gone.")
@json_option
@pass_session
def worker(session: Session, once: bool, parent: int | None, as_json: bool) -> int:
    """Refresh the knowledge base on schedule: [domains.NAME] sources and refresh.

    `appliance serve` starts one by itself. A time that was missed is made up for once. Last runs: appliance index status.
    """
    from appliance.schedule import Schedule
    from appliance.service import open_service
    from appliance.worker import work

    session.workspace.db.actor = "worker"
    schedule = Schedule(open_service(session.workspace).knowledge)
    if not schedule.plans:
        say("no domain has a schedule; give one sources and refresh under [domains.NAME] in appliance.toml")
    ended = threading.Event()
    outcomes: list[dict[str, Any]] = []

    def report(name: str, outcome: dict[str, Any]) -> None:
        if once:
            outcomes.append(outcome)
        else:
            say(json.dumps({"event": "done", "task": name, **outcome}, ensure_ascii=False))

    with _signals(ended):
        work(
            session.workspace.db,
            [schedule.due],
            once=once,
            stopped=lambda: ended.is_set() or (parent is not None and os.getppid() != parent),
            wait=ended.wait,
            report=report,
            say=say,
        )
    if not once:
        return DONE
    columns = ("domain", "outcome", "added", "updated", "unchanged", "removed", "generation", "error")
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
