"""The container files, as far as they can be checked without an engine."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKERFILE = re.sub(r"\\\n\s*", "", (ROOT / "docker" / "Dockerfile").read_text("utf-8"))
LAST_STAGE = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text("utf-8"))


def _pip_steps(text: str) -> list[str]:
    return [step.strip() for step in re.findall(r"-m pip ([^\n&]+)", text)]


def test_the_pip_steps_are_those_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = makefile[makefile.index("$(STAMP):") : makefile.index("touch $(STAMP)")]
    steps = _pip_steps(recipe)
    assert len(steps) == 4 and any("--require-hashes" in step for step in steps)
    # An image needs no link back to its sources.
    assert _pip_steps(DOCKERFILE) == [step.replace(" --editable", "") for step in steps]


def test_the_process_is_not_root() -> None:
    users = re.findall(r"^USER (\S+)", LAST_STAGE, re.MULTILINE)
    assert len(users) == 1 and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[0])
    assert LAST_STAGE.index("\nUSER ") < LAST_STAGE.index("\nENTRYPOINT ")


def test_the_image_serves_and_says_that_it_lives() -> None:
    assert re.search(r"^HEALTHCHECK .*CMD \[\"python\".*/livez", LAST_STAGE, re.MULTILINE)
    assert 'ENTRYPOINT ["appliance"]' in LAST_STAGE and 'CMD ["serve", "--host", "0.0.0.0"]' in LAST_STAGE
    assert 'VOLUME ["/models", "/workspace"]' in LAST_STAGE


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert patterns[0] == "*"
    allowed = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    copied = [name for names in re.findall(r"^COPY ((?!--from).+) \S+$", DOCKERFILE, re.MULTILINE) for name in names.split()]
    assert set(copied) == set(allowed)
    assert all((ROOT / name).exists() for name in copied)
    packages = re.findall(r"include = \[(.+)\]", (ROOT / "pyproject.toml").read_text("utf-8"))[0]
    for pattern in re.findall(r'"([^"]+)"', packages):
        assert any(fnmatch.fnmatch(name, pattern) for name in copied), pattern


def test_only_the_gateway_publishes_a_port(compose: Any) -> None:
    services = compose["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["gateway"]
    assert services["gateway"]["ports"] == ["${APPLIANCE_PUBLISH:-127.0.0.1:8080}:8080"]
    assert services["gateway"]["depends_on"] == {"setup": {"condition": "service_completed_successfully"}}


def test_every_service_writes_only_to_its_volumes_and_tmp(compose: Any) -> None:
    for name, service in compose["services"].items():
        assert service["profiles"] == ["cpu"] and service["read_only"] is True and service["tmpfs"] == ["/tmp"], name
        assert service["cap_drop"] == ["ALL"] and "privileged" not in service and "user" not in service, name
        mounted = dict(volume.split(":") for volume in service["volumes"])
        assert mounted == {"workspace": "/workspace", "models": "/models"}, name
        assert set(mounted) <= set(compose["volumes"]), name
        build = service["build"]
        assert (ROOT / "docker" / build["context"]).resolve() == ROOT.resolve() and (ROOT / build["dockerfile"]).is_file(), name
