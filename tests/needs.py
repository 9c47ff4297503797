"""Programs and environments that some tests need and that Python's packages do not bring."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

# Program -> where it comes from.
SOURCES = {
    "promtool": "Debian's package prometheus",
    "prometheus": "Debian's package prometheus",
    "systemd-analyze": "Debian's package systemd",
}


def program(name: str) -> str:
    """The path of a program; without one that `make setup programs` installs the test fails, for another see `absent`."""
    beside = Path(sys.prefix) / "bin" / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        if name not in SOURCES:
            pytest.fail(f"{name} is not installed: make setup programs")
        absent(name, SOURCES[name])
    return found


def absent(name: str, remedy: str) -> NoReturn:
    """Skips the test; fails it where the environment variable TESTS_NEED lists `name`, so that nobody takes a skip for a pass."""
    say = pytest.fail if name in os.environ.get("TESTS_NEED", "").split() else pytest.skip
    say(f"{name} is not installed ({remedy})")
