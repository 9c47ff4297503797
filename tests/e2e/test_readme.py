"""The README's commands run as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from e2e_support import make_handbook

README = Path(__file__).parent.parent.parent / "README.md"


@pytest.mark.slow
def test_the_tour_of_the_readme(tmp_path: Path) -> None:
    block = next(text for text in re.findall(r"```sh\n(.*?)```", README.read_text("utf-8"), re.DOTALL) if "appliance init" in text)
    assert len(re.findall(r"^appliance ", block, re.MULTILINE)) >= 12
    make_handbook(tmp_path / "handbook")
    rows = [
        {"question": "When may visitors come?", "answer": "From 14:00 to 20:00.", "split": "train"},
        {"question": "What does parking cost an hour?", "answer": "3 crowns.", "split": "train"},
        {"question": "What are the visiting hours?", "answer": "14:00 to 20:00.", "split": "dev"},
        {"question": "探视时间是几点？", "answer": "15:00至19:00。", "split": "test"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    (tmp_path / "tune.toml").write_text("epochs = 2\nbatch_size = 1\n", "utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "14:00 to 20:00" in done.stdout and "15:00至19:00" in done.stdout
