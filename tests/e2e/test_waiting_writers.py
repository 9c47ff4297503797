"""A second writer is told who writes, or waits for it: the real commands on both databases, the lock held as an ingest holds it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.cli import session as command_line
from appliance.cli.main import run
from appliance.workspace import Workspace

CORPUS = [
    {"id": "visiting", "domain": "medical", "text": "Visitors may come from 14:00 to 20:00."},
    {"id": "探视", "domain": "medical", "text": "探视时间为每日15:00至19:00。"},
]


@pytest.fixture(params=["sqlite", "postgresql"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "postgresql":
        monkeypatch.setenv("APPLIANCE_DATABASE__URL", request.getfixturevalue("postgres_url"))
    assert run(["init", str(tmp_path / "workspace")]) == 0
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in CORPUS), "utf-8")
    assert run(["-w", str(tmp_path / "workspace"), "ingest", str(corpus)]) == 0
    return tmp_path / "workspace"


@contextmanager
def _writing(root: Path, until: threading.Event) -> Iterator[None]:
    """Somebody else writes to the index until an event."""
    begun = threading.Event()

    def write() -> None:
        with Workspace(root) as workspace, workspace.db.lock("index"):
            begun.set()
            until.wait(60)

    thread = threading.Thread(target=write)
    thread.start()
    begun.wait(60)
    try:
        yield
    finally:
        until.set()
        thread.join()


def test_a_command_waits_for_the_other_writer_and_then_does_its_work(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    over, said = threading.Event(), command_line.say

    def say(text: str) -> None:
        said(text)
        # The other writer ends once this one has said that it waits.
        over.set()

    with _writing(root, threading.Event()):
        capsys.readouterr()
        assert run(["-w", str(root), "document", "remove", "探视", "--domain", "medical"]) == 1
        assert run(["-w", str(root), "index", "compact", "--wait", "0.6"]) == 1
        errors = capsys.readouterr().err
        assert errors.count("index is being written by") == 3 and errors.count("--wait SECONDS") == 2
        assert errors.count("waiting for up to 0.6 s: ") == 1
    monkeypatch.setattr(command_line, "say", say)
    with _writing(root, over):
        assert run(["-w", str(root), "document", "remove", "探视", "--domain", "medical", "--wait", "60", "--json"]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["removed"] == 1 and captured.err.startswith("waiting for up to 60 s: index is being written by")
    assert run(["-w", str(root), "document", "list", "--json"]) == 0
    assert [row["doc_id"] for row in json.loads(capsys.readouterr().out)] == ["visiting"]


@pytest.mark.parametrize("command", [["ingest"], ["document", "remove"], ["index", "rebuild"], ["index", "compact"], ["index", "rollback"]])
def test_every_command_that_writes_the_index_can_wait(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command, "--help"]) == 0
    assert "--wait SECONDS" in capsys.readouterr().out
    assert run([*command, "--wait", "-1", "1"]) == 2
