"""What a test needs and does not find: skipped on a developer's machine, said aloud and failed in CI."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import needs

SCRIPT = Path(__file__).parent.parent.parent / ".ci" / "programs.sh"


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(needs.sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))


def test_a_program_that_is_not_there_skips_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTS_NEED", "vllm")
    with pytest.raises(pytest.skip.Exception, match="Debian's package prometheus"):
        needs.program("promtool")


def test_it_fails_the_test_where_it_is_meant_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTS_NEED", "vllm promtool")
    with pytest.raises(pytest.fail.Exception, match="Debian's package prometheus"):
        needs.program("promtool")


def test_what_pip_brings_must_be_there() -> None:
    with pytest.raises(pytest.fail.Exception, match="make setup programs"):
        needs.program("hadolint")


def test_ci_says_aloud_what_it_could_not_get(tmp_path: Path) -> None:
    bash = shutil.which("bash", path="/bin:/usr/bin")
    assert bash is not None
    (tmp_path / "prometheus").write_text(f"#!{bash}\n", "utf-8")
    (tmp_path / "prometheus").chmod(0o755)
    command = f'set -euo pipefail; cd {tmp_path}; . {SCRIPT}; echo "needed: $TESTS_NEED"'
    done = subprocess.run([bash, "-c", command], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "SKIPPED: no test used: promtool (Debian's package prometheus) systemd-analyze (Debian's package systemd)" in done.stdout
    assert done.stdout.endswith("needed: vllm prometheus\n")
