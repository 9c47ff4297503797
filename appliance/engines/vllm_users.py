"""Which processes of this machine use a server that one of them started, and the keeper process that runs it for them."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from appliance.processes import boot, started

# Seconds between two looks at a process that is to end.
_LOOK = 0.02


class Users:
    """The users of one server: each holds a shared lock on `file`. The keeper ends the server when none does. For one thread."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._held: int | None = None

    def join(self, *, first: bool = False) -> bool:
        """Be one of them, the `first` where the server is still to be started; False once it is being ended because nobody was."""
        if self._held is not None:
            return True
        try:
            held = os.open(self.file, os.O_RDWR | (os.O_CREAT if first else 0), 0o666)
        except FileNotFoundError:
            return False
        except PermissionError:
            return True
        try:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            return False
        except OSError:
            # A file system without locks: as for a user who may not open the file, the server ends with the process that owns it.
            os.close(held)
            return True
        self._held = held
        return True

    def leave(self) -> bool:
        """Be none of them any more; True if others are."""
        if self._held is None:
            return False
        held, self._held = self._held, None
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(held)
        return False


class Keeper:
    """The process `pid` that was started `since` then and leads the group of a server; `child` if it is one of this process's own."""

    def __init__(self, pid: int, since: str, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid, self.since, self._child = pid, since, child

    @classmethod
    def of(cls, child: subprocess.Popen[bytes]) -> Keeper:
        """That of a server which was started just now."""
        return cls(child.pid, started(child.pid), child)

    def runs(self) -> bool:
        """Whether it still does; a later process of the same number is another one."""
        return self._child.poll() is None if self._child is not None else self.since != "" and started(self.pid) == self.since

    def end(self, seconds: float) -> bool:
        """End the whole group: in order if it still runs, whatever is left of it by force; False if `seconds` were not enough."""
        until = time.monotonic() + seconds
        with suppress(ProcessLookupError):
            if self.runs():
                os.kill(self.pid, signal.SIGTERM)
        while self.runs() and time.monotonic() < until:
            time.sleep(_LOOK)
        in_time = not self.runs()
        # No other process gets this number as long as one of the group is left, until the machine is started anew.
        if not in_time or (self.since.endswith(boot()) and not started(self.pid)):
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        if self._child is not None:
            self._child.wait()
        return in_time
