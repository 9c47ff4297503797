"""Running jobs: each is a command in a process (and process group) of its own, so that ending it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance.admin.uploads import Uploads
from appliance.jobs.jobs import OUTCOMES, Job, Jobs, State, folder_of
from appliance.jobs.kinds import KINDS, kept
from appliance.processes import started
from appliance.store.audit_log import ACTOR
from appliance.store.locks import Locked
from appliance.workspace import Workspace

# Seconds between two writings of progress, from SIGTERM to SIGKILL, and between two tries for a lock that another process holds.
_WRITE, _GRACE, _AGAIN = 1.0, 20.0, 5.0
# Lines of the log that are kept, and characters of each.
_LINES, _LINE = 100, 500
_RESULT_BYTES = 1 << 20
_WORKER_GONE = "the worker ended while it ran"


class Runner:
    """The processes of the jobs that run now. `step` does all: call it about every second, from one thread that outlives them."""

    def __init__(self, workspace: Workspace, report: Callable[[Job], None]) -> None:
        """Takes up again what a killed worker left; `report` gets every job that has ended."""
        self._workspace = workspace
        self._jobs = Jobs(workspace.db)
        self._uploads = Uploads(workspace)
        self._report = report
        self._running: dict[str, _Child] = {}
        self._later: dict[str, float] = {}
        for job in self._jobs.running():
            _end_left_over(job.process)
            self._ended(job, self._jobs.again(job, _WORKER_GONE, counted=True))

    def step(self) -> bool:
        """Look after the running jobs and begin those whose turn it is; False if there is nothing to do."""
        for child in list(self._running.values()):
            if child.process.poll() is not None:
                self._finish(child)
                # Only now: where the database fails, its end is noted at the next step.
                del self._running[child.job.id]
            elif child.due() and self._jobs.note(child.job.id, child.progress, child.log()):
                child.end()
        waiting = self._jobs.waiting()
        for job in waiting:
            busy = any(child.job.resource == job.resource for child in self._running.values())
            if not busy and time.monotonic() >= self._later.get(job.id, 0.0):
                self._begin(job)
        return bool(self._running or waiting)

    def close(self) -> None:
        """End what runs; it waits for the next worker."""
        for child in self._running.values():
            child.end()
        for child in self._running.values():
            child.wait()
            if child.process.returncode == 0:
                self._finish(child)
            else:
                self._ended(child.job, self._jobs.again(self._jobs.get(child.job.id), "the worker was told to end", counted=False))
        self._running.clear()

    def _begin(self, job: Job) -> None:
        if job.kind not in KINDS:
            self._jobs.finish(job.id, "failed", error=f"this version knows no jobs of the kind {job.kind!r}")
            self._ended(job, "failed")
            return
        if not self._free(job):
            self._later[job.id] = time.monotonic() + _AGAIN
            return
        self._later.pop(job.id, None)
        folder = folder_of(self._workspace.root, job.id)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            child = _Child(self._workspace, job, folder)
        except (OSError, ValueError) as error:
            self._jobs.finish(job.id, "failed", error=f"could not be started: {error}")
            self._ended(job, "failed")
            return
        if self._jobs.begin(job.id, child.identity):
            self._running[job.id] = child
        else:
            child.end()
            child.wait()
            self._ended(job, "cancelled")

    def _free(self, job: Job) -> bool:
        """Whether nobody else is at what the job writes; its command takes the locks itself."""
        try:
            with ExitStack() as free:
                for name in KINDS[job.kind].locks:
                    free.enter_context(self._workspace.db.lock(name.format(domain=job.domain)))
        except Locked:
            return False
        return True

    def _finish(self, child: _Child) -> None:
        code = child.wait()
        current = self._jobs.get(child.job.id)
        result, error = child.result(), None
        state: State = OUTCOMES.get(code, "failed")
        if current.cancelled_at is not None and state == "failed":
            state = "cancelled"
        elif state == "failed" and code > 0 and not self._free(current):
            # Somebody took the lock before the command came to it.
            self._later[current.id] = time.monotonic() + _AGAIN
            self._ended(current, self._jobs.again(replace(current, log=child.log()), "somebody else was writing", counted=True))
            return
        elif state == "failed":
            how = f"its process was ended by {signal.Signals(-code).name}" if code < 0 else "it failed; see the log"
            error = child.last() or how if code > 0 else how
        self._jobs.finish(child.job.id, state, result=result, error=error, log=child.log())
        self._ended(child.job, state)

    def _ended(self, job: Job, state: State) -> None:
        # Also of one that waits again: should it be cancelled then, nobody would remove what it printed.
        shutil.rmtree(folder_of(self._workspace.root, job.id), ignore_errors=True)
        if state == "queued":
            return
        self._uploads.taken(job.id)
        self._report(self._jobs.get(job.id))


class _Child:
    """One running command."""

    def __init__(self, workspace: Workspace, job: Job, folder: Path) -> None:
        self.job = job
        self.progress: dict[str, Any] | None = None
        self._lines = deque((job.log or "").splitlines(keepends=True), maxlen=_LINES)
        # Where the workspace is on the server is nobody's business who asks over HTTP.
        self._root = f"{workspace.root}{os.sep}"
        self._out = folder / "result.json"
        self._written, self._killed_at = 0.0, float("inf")
        flags = [part for key, value in workspace.flags.items() for part in ("--set", f"{key}={value}")]
        command = [*flags, "--workspace", str(workspace.root), *KINDS[job.kind].command(job.arguments, folder)]
        program = [sys.executable, "-P", "-c", "from appliance.jobs.child import main; main()", str(os.getpid())]
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [*program, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.PIPE,
                cwd=workspace.root,
                env={**os.environ, ACTOR: job.actor, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        self.identity = f"{self.process.pid}:{started(self.process.pid)}"
        self._reader = threading.Thread(target=self._read, name=f"log of {job.id}", daemon=True)
        self._reader.start()

    def due(self) -> bool:
        """Whether it is time to write how far it is; one that does not end when told is killed here."""
        now = time.monotonic()
        if now >= self._killed_at:
            self._signal(signal.SIGKILL)
        if now < self._written + _WRITE:
            return False
        self._written = now
        return True

    def end(self) -> None:
        """Ask it to end; it is killed if it does not."""
        if self._killed_at == float("inf"):
            self._killed_at = time.monotonic() + _GRACE
            self._signal(signal.SIGTERM)

    def wait(self) -> int:
        """Its exit code, once it has ended; nothing of its process group is left then."""
        try:
            code = self.process.wait(max(0.0, min(self._killed_at - time.monotonic(), _GRACE)))
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            code = self.process.wait()
        self._signal(signal.SIGKILL)
        self._reader.join(_WRITE)
        return code

    def log(self) -> str:
        return "".join(list(self._lines))

    def last(self) -> str:
        """The last thing it said that was an error, without the word."""
        said = [line for line in list(self._lines) if line.startswith("error: ")]
        return said[-1].removeprefix("error: ").strip() if said else ""

    def result(self) -> Any:
        """What is kept of its JSON, None if it printed none."""
        try:
            if self._out.stat().st_size > _RESULT_BYTES:
                return None
            return kept(self.job.kind, json.loads(self._out.read_text("utf-8")))
        except (OSError, ValueError):
            return None

    def _read(self) -> None:
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            line = raw.decode("utf-8", "replace").replace("\0", "�").replace(self._root, "")
            event = _event(line)
            if event is None:
                self._lines.append(line if len(line) <= _LINE else f"{line[:_LINE]}…\n")
            else:
                self.progress = event

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except (ProcessLookupError, PermissionError):
            # The group is gone.
            return


def _event(line: str) -> dict[str, Any] | None:
    """The fields of a progress line, None for any other."""
    if not line.startswith('{"event": "progress"'):
        return None
    try:
        fields: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return {name: value for name, value in fields.items() if name != "event"}


def _end_left_over(process: str | None) -> None:
    """End the process group that a killed worker left, if it is still the one that was noted."""
    pid, _, since = (process or "").partition(":")
    if pid and since and started(int(pid)) == since:
        try:
            os.killpg(int(pid), signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return
