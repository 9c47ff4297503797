"""Progress on a terminal and in lines, and commands that are stopped."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli import session
from appliance.cli.main import run
from appliance.cli.session import Interrupted, Progress, stoppable


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(session, "time", made)
    return made


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_lines_tell_the_seconds_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress("ingest", 0, None, unit="tokens", documents=0)
        clock.now += 10
        progress("ingest", 100, 400, unit="tokens", documents=2)
        clock.now += 10
        progress("ingest", 200, 500, unit="tokens", documents=3)
    first, second, third = printed(capsys)
    assert first == {
        "event": "progress",
        "what": "ingest",
        "done": 0,
        "total": None,
        "unit": "tokens",
        "documents": 0,
        "seconds_left": None,
    }
    assert (second["seconds_left"], third["seconds_left"], third["documents"]) == (30, 30, 3)


def test_lines_come_seldom_and_the_last_one_always(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        for done in range(1001):
            clock.now += 0.01
            progress("检查", done, 1000)
    lines = printed(capsys)
    assert 5 <= len(lines) <= 7 and lines[-1]["done"] == 1000 and {line["what"] for line in lines} == {"检查"}


def test_what_changes_nothing_says_little(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        for documents in range(10_000):
            clock.now += 0.0001
            progress("ingest", 0, 0, unit="tokens", documents=documents)
    assert len(printed(capsys)) == 1


def test_a_terminal_gets_a_bar_with_the_time_left(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.setenv("TERM", "xterm")
        with Progress() as progress:
            progress("ingest", 0, 4000, unit="tokens", documents=0)
            clock.now += 60
            progress("ingest", 1000, 4000, unit="tokens", documents=3)
        terminal.flush()
        seen = b""
        # A terminal hands over what is there, one refresh or several: read on until the last one.
        while b"documents=3" not in seen and select.select([master], [], [], 30)[0]:
            seen += os.read(master, 1 << 16)
    os.close(master)
    shown = seen.decode()
    assert "1000/4000" in shown and "tokens 0:03:00 left documents=3" in shown


@pytest.fixture
def keyboard() -> Iterator[None]:
    """Ctrl-C as on a terminal: a suite started in the background inherits it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("keyboard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_command_says_how_to_go_on(number: int) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="go on"), stoppable("run it again to go on"):
        os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("keyboard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_ingest_keeps_what_is_staged(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, note = tmp_path / "workspace", tmp_path / "note.md"
    note.write_text("# Note 笔记\n\nSomething. 一些内容。\n", "utf-8")
    assert run(["init", str(root)]) == 0

    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr("retrieval.ingest.scan", interrupted)
    capsys.readouterr()
    assert run(["--workspace", str(root), "ingest", "--domain", "medical", str(note), "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("stopped; ") and "run the same command again" in captured.err
    assert "Traceback" not in captured.err
