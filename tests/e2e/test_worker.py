"""The real worker process, alone and beside the server."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

Start = Callable[..., "subprocess.Popen[str]"]


def schedule(tmp_path: Path, handbook: Path) -> None:
    config = (
        f'[domains.medical]\nsources = ["{handbook}"]\nrefresh = "0 3 * * *"\n[domains.legal]\nsources = ["gone"]\nrefresh = "0 4 * * *"\n'
    )
    (tmp_path / "workspace" / "appliance.toml").write_text(config, "utf-8")


def test_once(appliance, tmp_path: Path, handbook: Path) -> None:  # type: ignore[no-untyped-def]
    idle = appliance("worker", "--once", "--json")
    assert (idle.code, idle.json) == (0, []) and "no domain has a schedule" in idle.err
    schedule(tmp_path, handbook)
    done = appliance("worker", "--once", "--json")
    assert done.code == 3
    assert {row["domain"]: row["outcome"] for row in done.json} == {"legal": "failed", "medical": "done"}
    assert "15:00至19:00" in appliance("search", "探视时间", "--json").out
    status = appliance("index", "status", "--json").json["schedule"]
    assert [(row["domain"], row["last"]["outcome"]) for row in status] == [("legal", "failed"), ("medical", "done")]
    assert "medical refreshes at '0 3 * * *'; last: done" in appliance("index", "status").out
    assert appliance("worker", "--once", "--json").json == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly(appliance, tmp_path: Path, handbook: Path, start: Start, number: int) -> None:  # type: ignore[no-untyped-def]
    schedule(tmp_path, handbook)
    process = start("worker")
    assert process.stderr is not None
    for line in process.stderr:
        if '"domain": "medical"' in line:
            break
    process.send_signal(number)
    assert process.wait(60) == 0
    process.communicate()
    assert appliance("search", "visitors", "--json").json["results"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_has_a_worker_that_ends_with_it(appliance, tmp_path: Path, handbook: Path, start: Start, number: int) -> None:  # type: ignore[no-untyped-def]
    schedule(tmp_path, handbook)
    process = start("serve", "--port", 0)
    assert process.stderr is not None
    try:
        assert any(re.search(r"http://127\.0\.0\.1:\d+", line) for line in process.stderr)
        [worker] = [child for child in psutil.Process(process.pid).children() if "worker" in child.cmdline()]
        for _ in range(600):
            last = appliance("index", "status", "--json").json["schedule"][1]["last"]
            if last is not None:
                break
            time.sleep(0.2)
        assert last["outcome"] == "done"
        process.send_signal(number)
        assert process.wait(90) == (0 if number == signal.SIGTERM else -number)
        psutil.wait_procs([worker], timeout=60)
        assert not worker.is_running()
    finally:
        process.kill()
        process.communicate()
