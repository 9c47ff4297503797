"""The real server over an index whose newest files are damaged: it goes on, says so, and survives a kill."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

Start = Callable[..., "subprocess.Popen[str]"]


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0]
    raise AssertionError("the server ended")


def _ready(http: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = http.get("/readyz").json()
    return found


@pytest.mark.slow
def test_a_server_whose_newest_generation_is_damaged(appliance, start: Start, handbook: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert appliance("ingest", handbook, "--domain", "medical").code == 0
    segments = tmp_path / "workspace" / "index" / "segments"
    before = set(segments.iterdir())
    question = {"question": "When may visitors come?", "domain": "medical", "arm": "quote"}
    server = start("serve", "--port", 0)
    try:
        with httpx.Client(base_url=_address(server), timeout=300) as http:
            assert _ready(http)["degraded"] == []
            # The new generation is damaged before the server has seen it.
            (handbook / "new.md").write_text("# Canteen\n\nThe canteen opens at seven.\n", "utf-8")
            assert appliance("ingest", handbook, "--domain", "medical").code == 0
            (new,) = set(segments.iterdir()) - before
            path = new / "lexical.bin"
            data = path.read_bytes()
            path.write_bytes(data[:-1])
            answer = http.post("/v1/answer", json=question).json()
            assert "14:00 to 20:00" in answer["answer"] and answer["generation"] == 1 and answer["warnings"]
            ready = _ready(http)
            assert ready["degraded"] == ["index"] and str(path) not in str(ready)
    finally:
        server.kill()
        _, logged = server.communicate()
    # Where the damage is stands in the operator's log, not in what the network may see.
    assert str(path) in logged
    server = start("serve", "--port", 0)
    try:
        with httpx.Client(base_url=_address(server), timeout=300) as http:
            assert _ready(http)["degraded"] == ["index"]
            assert http.post("/v1/answer", json=question).json()["generation"] == 1
            assert appliance("index", "rebuild").code == 0
            answer = http.post("/v1/answer", json={**question, "question": "When does the canteen open?"}).json()
            assert answer["generation"] == 3 and "seven" in answer["answer"]
            assert _ready(http)["degraded"] == []
    finally:
        server.kill()
        server.communicate()
    # In a process of its own a command says what stands in, once, on stderr.
    path = next(path for path in segments.glob("*/vectors.npy") if path.parent not in before | {new})
    path.write_bytes(path.read_bytes()[:-1])
    command = start("search", "visitors", "--json")
    out, said = command.communicate(timeout=300)
    assert command.returncode == 0 and '"degraded": true' in out
    assert [line for line in said.splitlines() if str(path) in line] == said.splitlines()[-1:]
