"""Runs a server for as long as the process that asked for it lives: ``python vllm_keeper.py OWNER SECONDS COMMAND…``.

A program of its own, that needs only Python: it leads the process group in which the server and its workers are. SIGTERM ends the server
in order, within SECONDS; when the OWNER (the number of the process that started this) is gone, or the server has ended, whatever is left
of the group is killed. vLLM's workers outlive a killed server otherwise.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

_LOOK = 0.2


def main() -> None:
    owner, seconds, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    ending: list[float] = []

    def end(*_: object) -> None:
        if not ending:
            ending.append(time.monotonic() + seconds)
            server.terminate()

    server = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, end)
    code: int | None = None
    while code is None and os.getppid() == owner and not (ending and time.monotonic() > ending[0]):
        try:
            code = server.wait(_LOOK)
        except subprocess.TimeoutExpired:
            continue
    why = f"the server ended with exit code {code}" if code is not None else "its time to end was over" if ending else "its owner is gone"
    print(f"{why}; its processes are killed", file=sys.stderr, flush=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
