"""Which process is which: what the locks of this machine rest on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from appliance.processes import started
from appliance.store import schema
from appliance.store.locks import Busy
from appliance.workspace import Workspace


def test_setting_the_clock_frees_no_lock_of_a_process_that_lives(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        since = started(child.pid)
        assert since and ":" not in since and since == started(child.pid) != started(os.getpid())
        with workspace.db.write() as connection:
            owner, long_ago = f"{socket.gethostname()}:{child.pid}:{since}:ab", datetime.now(UTC) - timedelta(hours=1)
            connection.execute(schema.lock.insert().values(resource="index", owner=owner, heartbeat=long_ago))
        if sys.platform == "linux":
            # What setting the clock changes: when the machine seems to have been started.
            boot = psutil.boot_time()
            monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 3600)
        with pytest.raises(Busy), workspace.db.lock("index"):
            pass
        child.send_signal(signal.SIGKILL)
        # Its parent has not taken note yet.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert started(child.pid) == ""
        with workspace.db.lock("index"):
            pass
    finally:
        child.kill()
        child.wait()
    assert started(child.pid) == ""
