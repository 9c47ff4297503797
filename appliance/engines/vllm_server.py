"""The vLLM server of this machine: started by one process of the workspace, watched, started again, shared with the others."""

from __future__ import annotations

import http.client
import json
import logging
import os
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
from appliance.engines.vllm_users import Keeper, Users
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
    """A server that answers: its address, which ends in ``/v1``, what it was started for, its keeper and the file of its users.

    See `appliance.engines.vllm_users`.
    """

    url: str
    limits: Limits
    keeper: tuple[int, str] = (0, "")
    users: str = ""


class VllmServer:
    """Keeps the server of the engine `name` running until `close`, in a thread.

    Whichever process of the workspace first needs it on this machine holds the lock ``engine:NAME@HOST`` and starts it; its address stands
    in the database, where the others read it. When the owner ends, or loses its lock, one of the others goes on with the same server. It
    ends when nobody uses it any more (`Users`).
    """

    def __init__(self, name: str, launch: Callable[[], Launch], database: Database) -> None:
        """`launch` is asked now, and before each start: limits follow what is registered by then. Raises what it raises."""
        self.name = name
        self._how, self._launch, self._database = launch, launch(), database
        self._key = f"engine:{name}@{socket.gethostname()}"
        # Of the server that is used now, or was the last time.
        self._users = Users(Path())
        # What the others have not been told of yet.
        self._untold: Running | None = None
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
        """End the server unless another process uses it; closing twice is fine."""
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
        self._users.leave()
        self._now(None, "the engine is closed")

    def _own_or_follow(self) -> None:
        try:
            with self._database.lock(self._key) as lock:
                found = self._published()
                # A copy of another workspace, from a backup, has nothing to do with that one's server.
                is_ours = Path(found.get("users", "")).parent == self._launch.log.parent
                keeper = Keeper(*found["keeper"]) if is_ours else None
                if keeper is None or not keeper.runs():
                    if keeper is not None and (users := Path(found["users"])).exists():
                        # A keeper that ended by itself would have taken the file along: it was killed, and its server may be left.
                        keeper.end(0.0)
                        users.unlink(missing_ok=True)
                    self._publish(None)
                    self._own(lock)
                elif (running := self._usable(found)) is not None:
                    logger.info("engine %s: its server goes on without the process that owned it", self.name)
                    self._now(running)
                    self._own(lock, keeper)
                # Else others go on with it, or it ends.
        except Locked:
            self._follow()

    def _now(self, running: Running | None, detail: str = "") -> None:
        self._detail = detail
        self._running = running

    def _published(self) -> dict[str, Any]:
        """What the owner tells of the server, empty if there is none that answers."""
        with self._database.read() as connection:
            query = sa.select(schema.setting.c.value).where(schema.setting.c.key == self._key)
            text = connection.execute(query).scalar_one_or_none()
        return json.loads(text) if text else {}

    def _follow(self) -> None:
        """Another process owns the server."""
        found = self._published()
        if not found:
            self._users.leave()
            self._now(None, "another process is starting its server")
        elif (running := self._usable(found)) is not None:
            self._now(running)

    def _usable(self, found: Mapping[str, Any]) -> Running | None:
        """The server that another process told of, with this process as one of its users; None, and why, if it is not to be used."""
        if found["settings"] != self._launch.settings:
            self._users.leave()
            self._now(None, "another process runs its server with other settings; use the same ones, or stop that process")
            return None
        pid, since = found["keeper"]
        running = Running(found["url"], Limits(**found["limits"]), (pid, since), found["users"])
        if not self._use(Users(Path(running.users))):
            self._now(None, "its server is being ended")
            return None
        return running

    def _use(self, users: Users, *, first: bool = False) -> bool:
        if users.file != self._users.file:
            self._users.leave()
            self._users = users
        return self._users.join(first=first)

    def _own(self, lock: WriterLock, keeper: Keeper | None = None) -> None:
        """Start the server, again and again, until `close` or until it goes on without this process; at first that of `keeper` is there."""
        pause = _FIRST_PAUSE
        while True:
            began, why = time.monotonic(), self._serve(lock, keeper)
            if why is None or self._closing.is_set():
                return
            keeper = None
            pause = _FIRST_PAUSE if time.monotonic() - began > _STEADY else pause
            self.failures += 1
            logger.error("engine %s: %s; started again in %g s; its log is %s", self.name, why, pause, self._launch.log)
            self._now(None, f"its server has ended and is started again in {pause:g} s")
            self._wait_beating(pause, lock)
            pause = min(2 * pause, _LONGEST_PAUSE)
            if self._closing.is_set():
                return

    def _serve(self, lock: WriterLock, keeper: Keeper | None) -> str | None:
        """Start the server unless `keeper` runs it already, and watch over it: why it must be started again, None if it goes on without
        this process. Raises Locked when the lock is lost: who has it then goes on with the server, if others were told of it."""
        goes_on = is_lost = False
        starting: Running | None = None
        if keeper is None:
            keeper, starting = self._start()
        else:
            self._untold = None
        try:
            why = self._comes_up(keeper, starting, lock) if starting is not None else None
            if why is None:
                why = self._watch(keeper, lock)
            known = self._running is not None and self._untold is None
            goes_on = known and self._closing.is_set() and self._users.leave()
        except Locked:
            is_lost, goes_on = True, self._running is not None and self._untold is None
            raise
        finally:
            if not goes_on:
                self._now(None, "its server has ended and is being started again")
                if not keeper.end(_GRACE + 5):
                    logger.warning("engine %s: its server did not end in time and is killed", self.name)
                self._users.leave()
                self._users.file.unlink(missing_ok=True)
            if not goes_on and not is_lost:
                self._publish(None)
        return None if goes_on else why

    def _start(self) -> tuple[Keeper, Running]:
        self._now(None, "its server is being started")
        self._untold = None
        self._launch, port = self._how(), _free_port()
        users = Users(self._launch.log.with_name(f"engine-{self.name}@{socket.gethostname()}-{port}.users"))
        users.file.parent.mkdir(parents=True, exist_ok=True)
        if not self._use(users, first=True):
            raise ApplianceError(f"{users.file} is locked by a server that is being ended")
        keeper = self._spawn(port)
        return keeper, Running(f"http://127.0.0.1:{port}/v1", self._launch.limits, (keeper.pid, keeper.since), str(users.file))

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

    def _spawn(self, port: int) -> Keeper:
        log = self._launch.log
        log.parent.mkdir(parents=True, exist_ok=True)
        fresh = log.is_file() and log.stat().st_size > _LOG_BYTES
        command = [*self._launch.command, "--host", "127.0.0.1", "--port", str(port)]
        keeper = [sys.executable, "-I", "-S", vllm_keeper.__file__, str(os.getpid()), str(self._users.file), str(_GRACE)]
        with log.open("wb" if fresh else "ab") as out:
            out.write(f"\n{time.strftime('%F %T')} {' '.join(command)}\n".encode())
            out.flush()
            child = subprocess.Popen(
                [*keeper, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(self._launch.environment),
                start_new_session=True,
            )
        return Keeper.of(child)

    def _comes_up(self, keeper: Keeper, starting: Running, lock: WriterLock) -> str | None:
        """None once it answers (or this is closing), else why it will not."""
        began = time.monotonic()
        while not self._closing.wait(_LOOK):
            if not keeper.runs():
                return "its server ended before it answered"
            if time.monotonic() > began + self._launch.start_seconds:
                return f"its server did not answer within {self._launch.start_seconds:g} s (start_seconds)"
            self._beat(lock)
            if _is_well(starting.url, 1.0):
                logger.info("engine %s: its server answers after %.0f s", self.name, time.monotonic() - began)
                self._untold = None if self._told(starting) else starting
                self._now(starting)
                return None
        return None

    def _watch(self, keeper: Keeper, lock: WriterLock) -> str:
        """Why the server must be started again, once it must; meanwhile the others are told of what they have not been told of yet."""
        asked, late = time.monotonic(), 0
        while not self._closing.wait(_LOOK):
            if not keeper.runs():
                return "its server ended"
            if self._untold is not None and self._told(self._untold):
                self._untold = None
            self._beat(lock)
            if self._running is None or time.monotonic() - asked < _ASK:
                continue
            try:
                if not _is_well(self._running.url, _PATIENCE, strict=True):
                    return "its server says that it is not well"
                late = 0
            except TimeoutError:
                late += 1
                if late >= _HANGS:
                    return f"its server did not say for {_HANGS * _PATIENCE:g} s that it is well"
            asked = time.monotonic()
        return "closed"

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
                value = {
                    "url": running.url,
                    "limits": asdict(running.limits),
                    "settings": self._launch.settings,
                    "keeper": running.keeper,
                    "users": running.users,
                }
                connection.execute(table.insert().values(key=self._key, value=json.dumps(value)))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_well(url: str, seconds: float, strict: bool = False) -> bool:
    """Whether the server at `url`, which ends in ``/v1``, says so; with `strict` raises TimeoutError where it says nothing."""
    # No proxy stands between this machine and itself.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url.removesuffix('/v1')}/health", timeout=seconds) as answer:
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
