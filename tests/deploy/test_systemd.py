"""The systemd units, as far as they can be checked without starting them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from appliance.admin.audit import _LAST
from appliance.engines.vllm_started import ALWAYS, ON_CPU
from appliance.jobs.worker import _GRACE
from appliance.settings import GatewayConfig

UNITS = Path(__file__).parent.parent.parent / "deploy" / "systemd"


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """The units as they would be on a machine where their programs exist."""
    for path in UNITS.iterdir():
        if path.is_file():
            _install(path, tmp_path / path.name)
    return sorted(tmp_path.iterdir())


def _install(path: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    place.write_text(re.sub(r"/usr/local/lib/appliance(-engine)?/bin/[a-z]+", "/bin/true", path.read_text("utf-8")), "utf-8")


@pytest.mark.parametrize("gpu", [False, True])
def test_systemd_accepts_them(tool: Any, installed: list[Path], gpu: bool) -> None:
    for path in UNITS.glob("*.d/gpu.conf") if gpu else ():
        _install(path, installed[0].parent / path.parent.name / path.name)
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


def test_a_backup_is_of_the_gateways_workspace() -> None:
    """With the same settings: where one of them names a PostgreSQL, a copy of the SQLite file beside it would be no backup at all."""
    gateway, backup = ((UNITS / name).read_text("utf-8") for name in ("appliance.service", "appliance-backup.service"))
    for key in ("EnvironmentFile", "Environment=APPLIANCE_WORKSPACE", "User"):
        [line] = re.findall(rf"^{key}=.+$", gateway, re.MULTILINE)
        assert f"\n{line}\n" in backup


def test_the_engine_is_started_as_the_appliance_starts_it() -> None:
    cpu, gpu = (_value(name, "ExecStart") for name in ("appliance-engine.service", "appliance-engine.service.d/gpu.conf"))
    assert " ".join(ON_CPU) in cpu and " ".join(ALWAYS) in cpu
    assert gpu == cpu.replace(" " + " ".join(ON_CPU), "")


def test_the_engine_reads_the_gateways_adapters_and_nothing_else_of_its_workspace() -> None:
    engine = "appliance-engine.service"
    assert "--enable-lora" in _value(engine, "ExecStart") and "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in (UNITS / engine).read_text("utf-8")
    [workspace] = re.findall(r"^Environment=APPLIANCE_WORKSPACE=(.+)$", (UNITS / "appliance.service").read_text("utf-8"), re.MULTILINE)
    assert _value(engine, "BindReadOnlyPaths") == f"{workspace}/adapters" and workspace.startswith("/var/lib/appliance/")
    assert _value(engine, "TemporaryFileSystem") == "/var/lib/appliance:ro"
    # Files of the gateway's group are readable for the group.
    assert _value(engine, "Group") == _value("appliance.service", "Group") and _value("appliance.service", "UMask") == "0027"
