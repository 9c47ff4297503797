"""The real commands, in this process (fast) or in one of their own (to be killed)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from e2e_support import make_handbook

from appliance.cli.main import run


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Done]


@pytest.fixture
def appliance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `appliance ARGUMENTS` on the test's own workspace."""
    root = tmp_path / "workspace"

    def call(*arguments: object) -> Done:
        capsys.readouterr()
        code = run(["--workspace", str(root), *map(str, arguments)])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    assert run(["init", str(root)]) == 0
    return call


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `appliance ARGUMENTS` on the test's workspace in a process of its own."""
    root = tmp_path / "workspace"

    def begin(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from appliance.cli.main import main; main()", "--workspace", str(root), *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})

    return begin


@pytest.fixture
def handbook(tmp_path: Path) -> Path:
    """Documents of a ward in both languages."""
    return make_handbook(tmp_path / "handbook")
