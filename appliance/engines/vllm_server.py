"""The vLLM server of this machine: started by one process of the workspace, watched, started again, shared with the others."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.engines import vllm_keeper
from appliance.errors import ApplianceError, DatabaseFailed
from appliance.store import schema
from appliance.store.database import Database
from appliance.store.locks import Locked, WriterLock

logger = logging.getLogger("appliance.engines")

# Seconds between two looks at the server's process, and between two questions whether it is well.
_LOOK, _ASK = 0.25, 2.0
# A server that is busy may be late; one that leaves so many questions in a row unanswered, each for so many seconds, hangs.
_HANGS, _PATIENCE = 3, 10.0
# Seconds before a server that ended is started again, doubled each time; one that ran this long begins with the first again.
_FIRST_PAUSE, _LONGEST_PAUSE, _STEADY = 1.0, 60.0, 120.0
# Seconds that a server has to end in order.
_GRACE = 10.0
# A log above this size begins anew with the next start.
_LOG_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """vLLM's --max-loras (adapters in one batch), --max-cpu-loras (adapters in memory) and --max-lora-rank."""

    places: int
    kept: int
    rank: int


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a server. `arguments` lack host and port; `settings` is what another process must have in common to share it."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    start_seconds: float
    settings: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers: its address, which ends in ``/v1``, and what it was started for."""

    url: str
    limits: Limits


class VllmServer:
    """Keeps the server of the engine `name` running until `close`, in a thread.

    Whichever process of the workspace first needs it on this machine holds the lock ``engine:NAME@HOST`` and starts it; its address stands
    in the database, where the others read it. When the owner ends, the server ends with it, and one of the others starts its own.
    """

    def __init__(self, name: str, launch: Callable[[], Launch], database: Database) -> None:
        """`launch` is asked now, and before each start: limits follow what is registered by then. Raises what it raises."""
        self.name = name
        self._how, self._launch, self._database = launch, launch(), database
        self._key = f"engine:{name}@{socket.gethostname()}"
        self._closing = threading.Event()
        self._running: Running | None = None
        self._detail = "its server is being started"
        # How often it ended without being asked to.
        self.failures = 0
        self._thread = threading.Thread(target=self._run, name=f"vllm-{name}", daemon=True)
        self._thread.start()

    @property
    def running(self) -> Running | None:
        """The server, if it answers."""
        return self._running

    @property
    def detail(self) -> str:
        """Why there is none, in plain words."""
        return self._detail

    def close(self) -> None:
        """End the server if this process started it; closing twice is fine."""
        self._closing.set()
        self._thread.join()

    # --- the thread

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._own_or_follow()
            except Exception as error:
                # Also what was not foreseen: without this thread nothing would start the server again.
                foreseen = isinstance(error, (ApplianceError, sa.exc.SQLAlchemyError, OSError))
                logger.error("engine %s: %s", self.name, error, exc_info=not foreseen)
                self._now(None, "its server cannot be started; the log says why")
            self._closing.wait(1.0)
        self._now(None, "the engine is closed")

    def _own_or_follow(self) -> None:
        try:
            with self._database.lock(self._key) as lock:
                self._publish(None)
                self._own(lock)
        except Locked:
            self._follow()

    def _now(self, running: Running | None, detail: str = "") -> None:
        self._detail = detail
        self._running = running

    def _follow(self) -> None:
        """Another process owns the server."""
        with self._database.read() as connection:
            query = sa.select(schema.setting.c.value).where(schema.setting.c.key == self._key)
            text = connection.execute(query).scalar_one_or_none()
        found: dict[str, Any] = json.loads(text) if text else {}
        if not found:
            self._now(None, "another process is starting its server")
        elif found["settings"] != self._launch.settings:
            self._now(None, "another process runs its server with other settings; use the same ones, or stop that process")
        else:
            self._now(Running(found["url"], Limits(**found["limits"])))

    def _own(self, lock: WriterLock) -> None:
        """Start the server, again and again, until `close`."""
        pause = _FIRST_PAUSE
        while not self._closing.is_set():
            self._now(None, "its server is being started")
            self._launch, port = self._how(), _free_port()
            process = self._spawn(port)
            began = time.monotonic()
            try:
                why = self._comes_up(process, port, lock)
                if why is None and not self._closing.is_set():
                    logger.info("engine %s: its server answers after %.0f s", self.name, time.monotonic() - began)
                    running = Running(f"http://127.0.0.1:{port}/v1", self._launch.limits)
                    untold = None if self._told(running) else running
                    self._now(running)
                    why = self._watch(process, port, lock, untold)
            finally:
                self._now(None, "its server has ended and is being started again")
                self._end(process)
                self._publish(None)
            if self._closing.is_set():
                return
            pause = _FIRST_PAUSE if time.monotonic() - began > _STEADY else pause
            self.failures += 1
            logger.error("engine %s: %s; started again in %g s; its log is %s", self.name, why, pause, self._launch.log)
            self._now(None, f"its server has ended and is started again in {pause:g} s")
            self._wait_beating(pause, lock)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _wait_beating(self, seconds: float, lock: WriterLock) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._closing.wait(min(1.0, seconds)):
            self._beat(lock)

    def _beat(self, lock: WriterLock) -> None:
        try:
            lock.beat()
        except DatabaseFailed as error:
            # A server takes a minute to start: it is not given up for a database that is locked for a moment. Who lost the lock learns it.
            logger.warning("engine %s: the lock on its server cannot be renewed now: %s", self.name, error)

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        log = self._launch.log
        log.parent.mkdir(parents=True, exist_ok=True)
        fresh = log.is_file() and log.stat().st_size > _LOG_BYTES
        command = [*self._launch.command, "--host", "127.0.0.1", "--port", str(port)]
        keeper = [sys.executable, "-I", "-S", vllm_keeper.__file__, str(os.getpid()), str(_GRACE)]
        with log.open("wb" if fresh else "ab") as out:
            out.write(f"\n{time.strftime('%F %T')} {' '.join(command)}\n".encode())
            out.flush()
            return subprocess.Popen(
                [*keeper, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(self._launch.environment),
                start_new_session=True,
            )

    def _comes_up(self, process: subprocess.Popen[bytes], port: int, lock: WriterLock) -> str | None:
        """None once it answers (or this is closing), else why it will not."""
        until = time.monotonic() + self._launch.start_seconds
        while not self._closing.wait(_LOOK):
            if process.poll() is not None:
                return "its server ended before it answered"
            if time.monotonic() > until:
                return f"its server did not answer within {self._launch.start_seconds:g} s (start_seconds)"
            self._beat(lock)
            if _is_well(port, 1.0):
                return None
        return None

    def _watch(self, process: subprocess.Popen[bytes], port: int, lock: WriterLock, untold: Running | None) -> str:
        """Why the server must be started again, once it must; meanwhile the others are told of what is still `untold`."""
        asked, late = time.monotonic(), 0
        while not self._closing.wait(_LOOK):
            if process.poll() is not None:
                return "its server ended"
            if untold is not None and self._told(untold):
                untold = None
            self._beat(lock)
            if time.monotonic() - asked < _ASK:
                continue
            try:
                if not _is_well(port, _PATIENCE, strict=True):
                    return "its server says that it is not well"
                late = 0
            except TimeoutError:
                late += 1
                if late >= _HANGS:
                    return f"its server did not say for {_HANGS * _PATIENCE:g} s that it is well"
            asked = time.monotonic()
        return "closed"

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End the whole process group: in order if it still runs, whatever is left of it by force."""
        process.terminate()
        try:
            process.wait(_GRACE + 5)
        except subprocess.TimeoutExpired:
            logger.warning("engine %s: its server did not end in time and is killed", self.name)
        try:
            # The keeper's number is that of its group, also when the keeper itself was killed.
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            logger.debug("engine %s: nothing is left of its server", self.name)
        process.wait()

    def _told(self, running: Running) -> bool:
        try:
            self._publish(running)
        except (DatabaseFailed, sa.exc.SQLAlchemyError) as error:
            logger.warning("engine %s: other processes cannot be told of its server now: %s", self.name, error)
            return False
        return True

    def _publish(self, running: Running | None) -> None:
        table = schema.setting
        with self._database.write() as connection:
            connection.execute(table.delete().where(table.c.key == self._key))
            if running is not None:
                value = {"url": running.url, "limits": asdict(running.limits), "settings": self._launch.settings}
                connection.execute(table.insert().values(key=self._key, value=json.dumps(value)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_well(port: int, seconds: float, strict: bool = False) -> bool:
    """Whether the server says so; with `strict` raises TimeoutError where it says nothing."""
    # No proxy stands between this machine and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/health", timeout=seconds) as answer:
            return bool(answer.status == 200)
    except TimeoutError:
        if strict:
            raise
        return False
    except urllib.error.URLError as error:
        if strict and isinstance(error.reason, TimeoutError):
            raise TimeoutError from error
        return False
    except (OSError, http.client.HTTPException):
        # The second: something else listens there.
        return False
