"""The systemd units, as far as they can be checked without starting them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from appliance.admin.audit import _LAST
from appliance.jobs.worker import _GRACE
from appliance.settings import GatewayConfig

UNITS = Path(__file__).parent.parent.parent / "deploy" / "systemd"


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units as they would be on a machine where their programs exist."""
    for path in UNITS.iterdir():
        text = re.sub(r"/usr/local/lib/appliance(-engine)?/bin/[a-z]+", "/bin/true", path.read_text("utf-8"))
        (tmp_path / path.name).write_text(text, "utf-8")
    return sorted(tmp_path.iterdir())


def test_systemd_accepts_them(tool: Any, installed: list[Path]) -> None:
    assert tool("systemd-analyze", "verify", *installed).strip() == ""


def test_they_are_confined(tool: Any, installed: list[Path]) -> None:
    for path in installed:
        if path.suffix == ".service":
            # Out of 10 (unconfined); systemd calls up to 4.0 "OK".
            tool("systemd-analyze", "security", "--offline=true", "--threshold=40", "--no-pager", path)


def _value(name: str, key: str) -> str:
    found = re.findall(rf"^{key}=(.+)$", (UNITS / name).read_text("utf-8"), re.MULTILINE)
    assert len(found) == 1, key
    return str(found[0])


def test_the_stopping_times_add_up() -> None:
    settings = GatewayConfig()
    assert int(_value("appliance.service", "TimeoutStopSec")) > settings.drain_seconds + settings.grace_seconds + _GRACE + _LAST
    timeout = re.search(r"--shutdown-timeout (\d+)", _value("appliance-engine.service", "ExecStart"))
    assert timeout is not None and int(_value("appliance-engine.service", "TimeoutStopSec")) > int(timeout[1])
    assert "127.0.0.1" in _value("appliance-engine.service", "ExecStart")
