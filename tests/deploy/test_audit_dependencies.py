"""The dependency audit: it never says that all is well when nothing was looked up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parent.parent.parent / "tools" / "audit_dependencies.py"
FINE = {"name": "alembic", "version": "1.0", "vulns": []}
BAD = {"name": "requests", "version": "2.0", "vulns": [{"id": "PYSEC-2018-28", "fix_versions": ["2.20.0"]}]}
UNKNOWN = {"name": "inhouse", "skip_reason": "Dependency not found on PyPI"}


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "some.lock"
    path.write_text("alembic==1.0 \\\n    --hash=sha256:00\n", "utf-8")
    return path


def run(lock: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), str(lock), *arguments], capture_output=True, text=True, check=False)


def says(tmp_path: Path, answer: Any, error: str = "", code: int = 0) -> str:
    """A pip-audit that answers as it would in a case that cannot be had here."""
    program = tmp_path / "pip-audit"
    out = json.dumps({"dependencies": answer}) if answer is not None else ""
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.stdout.write({out!r})\nsys.stderr.write({error!r})\nsys.exit({code})\n", "utf-8"
    )
    program.chmod(0o755)
    return str(program)


def test_nothing_is_known_against_them(lock: Path, tmp_path: Path) -> None:
    done = run(lock, "--program", says(tmp_path, [FINE]))
    assert (done.returncode, done.stdout) == (0, "some.lock: 1 packages looked up, 0 known vulnerabilities\n")


def test_a_vulnerable_package_fails_the_audit(lock: Path, tmp_path: Path) -> None:
    done = run(lock, "--program", says(tmp_path, [FINE, BAD, UNKNOWN], code=1))
    assert done.returncode == 1 and "requests 2.0: PYSEC-2018-28, fixed in 2.20.0" in done.stdout
    assert "skipped: some.lock: 1 packages that the advisory source does not know: inhouse" in done.stdout


@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [([UNKNOWN], "No known vulnerabilities found", 0), (None, "ConnectionError: no route to host", 1), ([], "", 0), (None, "", 1)],
)
def test_what_was_not_looked_up_did_not_pass(lock: Path, tmp_path: Path, answer: Any, error: str, code: int) -> None:
    done = run(lock, "--program", says(tmp_path, answer, error, code))
    assert done.returncode == 0 and done.stdout.startswith("skipped: some.lock: ") and done.stdout.count("\n") == 1
    assert "looked up," not in done.stdout and "passed" not in done.stdout and "no known" not in done.stdout.lower()


def test_a_file_that_pins_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("", "utf-8")
    done = run(tmp_path / "empty", "--program", "/bin/true")
    assert done.returncode == 2 and "pins no package" in done.stderr
