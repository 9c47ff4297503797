"""Runs a server for as long as anybody uses it: ``python vllm_keeper.py OWNER USERS SECONDS COMMAND…``.

A program of its own, that needs only Python: it leads the process group in which the server and its workers are. Who uses the server holds
a shared lock on the file USERS, which the kernel frees however a process ends (see `appliance.engines.vllm_users`); where files cannot be
locked, the OWNER (the number of the process that started this) is the only user. SIGTERM ends the server in order, within SECONDS; when
nobody uses it, or it has ended, whatever is left of the group is killed. vLLM's workers outlive a killed server otherwise.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_LOOK = 0.2


def main() -> None:
    owner, users, seconds, command = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:]
    file = os.open(users, os.O_RDWR)
    ending: list[float] = []

    def end(*_: object) -> None:
        if not ending:
            ending.append(time.monotonic() + seconds)
            server.terminate()

    def used() -> bool:
        try:
            # From here on nobody new can use what is about to end.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return os.getppid() == owner
        return False

    server = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, end)
    code: int | None = None
    while code is None and (time.monotonic() <= ending[0] if ending else used()):
        try:
            code = server.wait(_LOOK)
        except subprocess.TimeoutExpired:
            continue
    why = f"the server ended with exit code {code}" if code is not None else "its time to end was over" if ending else "nobody uses it"
    print(f"{why}; its processes are killed", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):
        Path(users).unlink()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
