"""The worker: one process of a workspace that does what is due, one thing after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from appliance.errors import ApplianceError
from appliance.store.database import Database, utcnow
from appliance.store.locks import Locked, WriterLock
from appliance.workspace import Workspace

# Seconds between two looks at what is due; cron lines count minutes.
POLL = 10.0
_GRACE = 30.0

Tick = Callable[..., None]


class Stopped(ApplianceError):
    """The worker was told to end; what it was doing goes on the next time."""


@dataclass(frozen=True, slots=True)
class Task:
    """Something that is due. `run` does it and returns what became of it as JSON; it calls its argument often and lets Stopped through."""

    name: str
    run: Callable[[Tick], dict[str, Any]]


Due = Callable[[datetime], Sequence[Task]]


def work(
    database: Database,
    due: Sequence[Due],
    *,
    once: bool,
    stopped: Callable[[], bool],
    wait: Callable[[float], object],
    report: Callable[[str, dict[str, Any]], None],
    say: Callable[[str], None],
    clock: Callable[[], datetime] = utcnow,
) -> None:
    """Do what `due` names, in its order, until `stopped` (or a single time with `once`); `report` gets each task's name and outcome.

    Only one worker runs in a workspace: with `once` another one raises Locked, otherwise it waits until the first is gone. A task that
    meets another writer's lock is tried again at the next look.
    """
    said = False
    while not stopped():
        try:
            with database.lock("worker") as lock:
                _look(lock, due, once, stopped, wait, report, say, clock)
                return
        except Locked as error:
            if once:
                raise
            if not said:
                say(f"waiting: {error}")
            said = True
            wait(POLL)


def _look(
    lock: WriterLock,
    due: Sequence[Due],
    once: bool,
    stopped: Callable[[], bool],
    wait: Callable[[float], object],
    report: Callable[[str, dict[str, Any]], None],
    say: Callable[[str], None],
    clock: Callable[[], datetime],
) -> None:
    def tick(*_: object, **__: object) -> None:
        if stopped():
            raise Stopped("the worker was told to end")
        lock.beat()

    while not stopped():
        lock.beat()
        for task in [task for source in due for task in source(clock())]:
            try:
                tick()
                report(task.name, task.run(tick))
            except Stopped:
                return
            except Locked as error:
                say(f"{task.name}: {error}")
        if once:
            return
        wait(POLL)


@contextmanager
def beside(workspace: Workspace) -> Iterator[None]:
    """A worker process while the block runs, where any domain has a schedule; it ends with this process, however that ends."""
    if all(domain.refresh is None for domain in workspace.config.domains.values()):
        yield
        return
    flags = [part for key, value in workspace.flags.items() for part in ("--set", f"{key}={value}")]
    program = [sys.executable, "-c", "from appliance.cli.main import main; main()", *flags, "--workspace", str(workspace.root)]
    process = subprocess.Popen([*program, "worker", "--parent", str(os.getpid())], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
