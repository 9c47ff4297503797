"""The docs say what the program does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from appliance.cli.main import COMMANDS
from appliance.cli.reference import reference

ROOT = Path(__file__).parent.parent


def test_the_cli_reference_is_the_cli() -> None:
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == reference(), "run `make docs`"


def test_both_readmes_name_only_commands_that_exist() -> None:
    for name in ("README.md", "README.zh-CN.md"):
        named = re.findall(r"^\s*(?:\.venv/bin/)?appliance ([a-z]+)", (ROOT / name).read_text("utf-8"), re.MULTILINE)
        assert named and set(named) <= set(COMMANDS), name


def test_every_relative_link_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_help_loads_nothing_heavy() -> None:
    code = "import sys\nfrom appliance.cli.main import run\nrun(['--help'])\nsys.exit(sum(name in sys.modules for name in "
    code += "('torch', 'numpy', 'faiss', 'transformers', 'sqlalchemy', 'pydantic', 'fastapi', 'rich')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "appliance [OPTIONS] COMMAND" in done.stdout
