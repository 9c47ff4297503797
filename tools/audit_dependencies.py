"""Look the locked packages up in an advisory database with pip-audit: `python tools/audit_dependencies.py [LOCK ...]`.

Exit code 0: nothing known, or nothing could be looked up, which prints "skipped: …" and never that all is well; 1: a package has a known
vulnerability. pip-audit itself calls packages that its source does not know "skipped" and then reports that none is vulnerable; behind a
mirror without advisories that is all of them, so what was really looked up is counted here.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCKS = (ROOT / "requirements.lock", ROOT / "docker" / "engine.lock", ROOT / "tools" / "programs.lock")
_SECONDS = 600


@dataclass(frozen=True)
class Found:
    """What became of one lock: packages looked up, those that were not, the vulnerable ones; `failure` says why nothing was."""

    audited: int = 0
    skipped: tuple[str, ...] = ()
    vulnerable: tuple[str, ...] = ()
    failure: str = ""


def audit(program: str, lock: Path, service: str) -> Found:
    """Look up every package of a lock file. Raises nothing for a source out of reach: see `failure`."""
    # What is installed is what the lock pins; pip need not resolve it again.
    command = [program, "--requirement", str(lock), "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run([*command, "--vulnerability-service", service], capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return Found(failure=f"{service} did not answer within {_SECONDS} s")
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return Found(failure=lines[-1].strip() if lines else f"pip-audit ended with code {done.returncode} and said nothing")
    looked_up = [package for package in packages if "skip_reason" not in package]
    return Found(
        audited=len(looked_up),
        skipped=tuple(package["name"] for package in packages if "skip_reason" in package),
        vulnerable=tuple(_line(package, finding) for package in looked_up for finding in package["vulns"]),
    )


def _line(package: dict[str, Any], finding: dict[str, Any]) -> str:
    fixed = ", ".join(finding.get("fix_versions", ())) or "no version yet"
    return f"{package['name']} {package['version']}: {finding['id']}, fixed in {fixed}"


def report(name: str, found: Found) -> bool:
    """Print what became of a lock; True if a package in it is vulnerable."""
    if found.failure:
        print(f"skipped: {name}: the advisory source cannot be reached ({found.failure})")
    elif not found.audited:
        print(f"skipped: {name}: the advisory source knows none of its {len(found.skipped)} packages, so nothing was looked up")
    else:
        if found.skipped:
            named = ", ".join(found.skipped[:10]) + (", …" if len(found.skipped) > 10 else "")
            print(f"skipped: {name}: {len(found.skipped)} packages that the advisory source does not know: {named}")
        print(f"{name}: {found.audited} packages looked up, {len(found.vulnerable)} known vulnerabilities")
        for line in found.vulnerable:
            print(f"  {line}")
    return bool(found.vulnerable)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Look the locked packages up in an advisory database.")
    parser.add_argument(
        "locks", nargs="*", type=Path, default=list(LOCKS), help="lock files (default: those of the gateway and the engine)"
    )
    parser.add_argument("--program", help="pip-audit's program (default: beside this Python, else on the path)")
    parser.add_argument("--service", choices=["pypi", "osv"], default="pypi", help="where advisories are looked up")
    given = parser.parse_args(arguments)
    beside = Path(sys.executable).parent / "pip-audit"
    program = given.program or (str(beside) if beside.exists() else shutil.which("pip-audit"))
    if program is None:
        print("skipped: pip-audit is not installed (pip install pip-audit), so nothing was looked up")
        return 0
    vulnerable = False
    for lock in given.locks:
        if not re.search(r"^[\w.-]+==", lock.read_text("utf-8"), re.MULTILINE):
            parser.error(f"{lock} pins no package; name a lock file")
        vulnerable |= report(lock.name, audit(program, lock, given.service))
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
