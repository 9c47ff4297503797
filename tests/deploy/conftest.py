"""The programs that check deployment files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from tests.needs import program

Tool = Callable[..., str]


@pytest.fixture
def tool() -> Tool:
    """Runs a program with arguments and returns what it said; fails the test when the program does, see also `program`."""

    def run(name: str, *arguments: object) -> str:
        command = [program(name), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{name}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return run
