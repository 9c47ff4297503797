"""How many threads a computation takes, and that no team stays behind. In processes of their own: a team belongs to a thread for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import os, threading
import torch
from retrieval import threads

def work():
    torch.randn(300_000).exp()

def known():
    return torch.get_num_threads()

def elsewhere(what):
    found = []
    thread = threading.Thread(target=lambda: found.append(what()))
    thread.start()
    thread.join()
    return found[0]

def running():
    return len(os.listdir("/proc/self/task"))

"""


def said(body: str, **environment: str) -> list[str]:
    env = {**{key: value for key, value in os.environ.items() if not key.startswith("OMP_")}, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM + body], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_what_the_caller_takes_is_nobody_elses() -> None:
    body = "threads.take(3)\nwork()\nprint(known(), elsewhere(known))\nthreads.take(2)\nprint(known(), elsewhere(known))"
    assert said(body) == ["3", "1", "2", "1"]


def test_a_thread_that_never_computed_takes_what_it_asks_for() -> None:
    assert said("threads.alone()\nprint(elsewhere(lambda: (threads.take(2), work(), known())[-1]))") == ["2"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the team stays")
def test_a_team_lasts_as_long_as_the_computation() -> None:
    body = (
        "threads.alone()\nwork()\nbefore = running()\n"
        "with threads.together():\n    work()\n    print(known(), running() - before)\n"
        "import time\nend = time.monotonic() + 10\n"
        "while running() > before and time.monotonic() < end:\n    time.sleep(0.01)\n"
        "print(known(), running() - before)\nwith threads.together():\n    work()\n    print(known())"
    )
    assert said(body, OMP_NUM_THREADS="3") == ["3", "2", "1", "0", "3"]


def test_the_environment_bounds_the_cores() -> None:
    assert said("print(threads.cores())", OMP_NUM_THREADS="5") == ["5"]
    for given in ("", "no", "0"):
        assert said("print(threads.cores())", OMP_NUM_THREADS=given) == [str(len(os.sched_getaffinity(0)))]
