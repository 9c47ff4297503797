"""The worker: one process of a workspace that does what is due, one thing after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from appliance.engines.team import asleep
from appliance.errors import ApplianceError, DatabaseFailed
from appliance.store.database import Database, utcnow
from appliance.store.locks import Locked, WriterLock
from appliance.workspace import Workspace

# Seconds between two looks at what is due (cron lines count minutes), and at the jobs, and until a worker that died is started again.
POLL = 10.0
_STEP = 0.5
_AGAIN = 2.0
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


class Beside(Protocol):
    """What a worker goes on with all the time, also in the middle of a task."""

    def step(self) -> bool:
        """Go on; False if there is nothing to do."""
        ...

    def close(self) -> None:
        """Leave it for the next worker."""
        ...


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
    beside: Callable[[], Beside] | None = None,
) -> None:
    """Do what `due` names, in its order, until `stopped` (or a single time with `once`); `report` gets each task's name and outcome.

    What `beside` makes, once this is the worker, goes on meanwhile; with `once` until there is nothing left to do.

    Only one worker runs in a workspace: with `once` another one raises Locked, otherwise it waits until the first is gone. A task that
    meets another writer's lock is tried again at the next look.
    """
    said = False
    while not stopped():
        try:
            with database.lock("worker") as lock:
                _work(lock, due, once, stopped, wait, report, say, clock, beside)
                return
        except Locked as error:
            if once:
                raise
            if not said:
                say(f"waiting: {error}")
            said = True
            wait(POLL)


def _work(
    lock: WriterLock,
    due: Sequence[Due],
    once: bool,
    stopped: Callable[[], bool],
    wait: Callable[[float], object],
    report: Callable[[str, dict[str, Any]], None],
    say: Callable[[str], None],
    clock: Callable[[], datetime],
    beside: Callable[[], Beside] | None,
) -> None:
    other = beside() if beside is not None else None
    stepped = 0.0

    def step() -> bool:
        nonlocal stepped
        if other is None:
            return False
        stepped = time.monotonic()
        try:
            return other.step()
        except (DatabaseFailed, OSError) as error:
            say(f"jobs: {error}")
            return True

    def tick(*_: object, **__: object) -> None:
        if stopped():
            raise Stopped("the worker was told to end")
        lock.beat()
        if time.monotonic() >= stepped + _STEP:
            step()

    try:
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
            # Jobs are looked at more often than the schedule.
            for _ in range(round(POLL / _STEP) if other is not None else 1):
                busy = step()
                if stopped() or (once and not busy):
                    return
                wait(_STEP if other is not None else POLL)
                lock.beat()
    finally:
        if other is not None:
            other.close()


@contextmanager
def beside(workspace: Workspace) -> Iterator[None]:
    """A worker process while the block runs, started again should it die; it ends with this process, however that ends."""
    flags = [part for key, value in workspace.flags.items() for part in ("--set", f"{key}={value}")]
    program = [sys.executable, "-P", "-c", "from appliance.cli.main import main; main()", *flags, "--workspace", str(workspace.root)]
    command, ended = [*program, "worker", "--parent", str(os.getpid())], threading.Event()

    def keep() -> None:
        while not ended.is_set():
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=asleep())
            while process.poll() is None and not ended.wait(_STEP):
                pass
            _end(process)
            ended.wait(_AGAIN)

    thread = threading.Thread(target=keep, name="worker")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
