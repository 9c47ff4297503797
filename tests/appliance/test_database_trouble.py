"""A database that is damaged, locked or not writable is said to be, with what to do, in one line."""

from __future__ import annotations

import asyncio
import errno
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from appliance.admin.keys import Keys
from appliance.answers.feedback import Feedback
from appliance.cli.main import run
from appliance.errors import ApplianceError, DatabaseFailed
from appliance.gateway.app import create_app
from appliance.settings import FeedbackConfig
from appliance.store import database as database_module
from appliance.store import schema
from appliance.store.database import Database
from appliance.workspace import Workspace
from tests.gateway.gateway_fake import FakeAnswering, FakeEmbedding, passage
from tests.retrieval.retrieval_support import Knowledge as Small
from tests.retrieval.retrieval_support import write


@pytest.fixture
def filled(workspace: Workspace, tmp_path: Path) -> Workspace:
    """A workspace with a database of many pages, all of it in the one file."""
    small = Small(workspace.root)
    for number in range(20):
        write(
            tmp_path / "docs" / f"{number}.md",
            f"# Rule {number}\n\n" + f"The fee of rule {number} is {number} crowns. 费用{number}元。\n\n" * 60,
        )
    workspace.create_domain("medical")
    small.ingest(tmp_path / "docs")
    small.db.close()
    workspace.db.secret()
    workspace.close()
    with closing(sqlite3.connect(workspace.root / "appliance.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return workspace


def _garble(place: Path, seed: int) -> None:
    """Overwrite half of the pages; the first one stays, so that it still looks like a database."""
    chosen, data = random.Random(seed), bytearray(place.read_bytes())
    for start in range(4096, len(data), 4096):
        if chosen.random() < 0.5:
            data[start : start + 4096] = chosen.randbytes(4096)
    place.write_bytes(data)


@pytest.mark.parametrize("command", [["document", "list"], ["index", "verify"], ["document", "remove", "1.md"], ["key", "list"]])
def test_a_damaged_file_is_one_line_and_exit_code_1(
    filled: Workspace, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = filled.root / "appliance.db"
    for seed in range(3):
        shutil.copy(place, tmp_path / "sound.db")
        _garble(place, seed)
        assert run(["--workspace", str(filled.root), *command]) == 1
        said = capsys.readouterr().err.strip()
        assert said.count("\n") == 0, said
        assert str(place) in said and "restore it from a backup" in said
        shutil.copy(tmp_path / "sound.db", place)


def test_no_database_at_all(filled: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    (filled.root / "appliance.db").write_bytes(b"not a database, " * 1000)
    assert run(["--workspace", str(filled.root), "document", "list"]) == 1
    assert "restore it from a backup" in capsys.readouterr().err


def test_a_lock_that_stays(filled: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(database_module, "_BUSY_MS", 50)
    other = sqlite3.connect(filled.root / "appliance.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        assert run(["--workspace", str(filled.root), "document", "list"]) == 0, "reading needs no lock"
        assert run(["--workspace", str(filled.root), "key", "create", "someone"]) == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert "database is locked" in said and "another process has been writing" in said
    finally:
        other.close()
    assert run(["--workspace", str(filled.root), "key", "create", "someone"]) == 0


def test_a_database_that_may_not_be_written(filled: Workspace) -> None:
    readonly = Database(f"sqlite:///file:{filled.root / 'appliance.db'}?mode=ro&uri=true")
    with readonly.read() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.document)).scalar_one() == 20
    with pytest.raises(DatabaseFailed, match=r"readonly.*let this user write the file and its folder"), readonly.write() as connection:
        connection.execute(schema.setting.insert().values(key="x", value="y"))
    readonly.close()


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ApplianceError, match=r"unable to open database file.*let this user read and write"):
        Database(f"sqlite:///{tmp_path / 'nowhere' / 'appliance.db'}").migrate()


def test_a_full_disk_is_an_error_of_the_disk(filled: Workspace) -> None:
    database = Database(f"sqlite:///{filled.root / 'appliance.db'}")
    with pytest.raises(OSError) as raised, database.write() as connection:
        # As small as it is: the next page does not fit.
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        for number in range(2000):
            connection.execute(schema.setting.insert().values(key=f"x{number}", value="y" * 2000))
    assert raised.value.errno == errno.ENOSPC and str(filled.root) in str(raised.value)
    assert database.setting("x0") is None
    database.close()


def test_a_statement_that_is_wrong_is_no_trouble_of_the_database(filled: Workspace) -> None:
    database = Database(f"sqlite:///{filled.root / 'appliance.db'}")
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(schema.domain.insert().values(name="medical", created_at=database_module.utcnow()))
    database.close()


def test_a_lock_given_back_to_a_full_disk_does_not_hide_the_error(filled: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(f"sqlite:///{filled.root / 'appliance.db'}")

    def full(self: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ValueError, match="the first error"), database.lock("index") as held:
        monkeypatch.setattr(type(held), "_give_back", full)
        raise ValueError("the first error")
    monkeypatch.undo()
    # The row is still there; its heartbeat tells when it may be taken over, in this process as in another.
    with pytest.raises(ApplianceError, match="is being written by"), database.lock("index"):
        pass
    with database.write() as connection:
        connection.execute(schema.lock.update().values(heartbeat=database_module.utcnow().replace(year=2000)))
    with database.lock("index"):
        pass
    database.close()


def test_the_gateway_says_503_while_the_database_is_damaged(filled: Workspace) -> None:
    place = filled.root / "appliance.db"
    database = Database(f"sqlite:///{place}")
    keys = Keys(database)
    _, secret = keys.create("someone")
    database.close()
    sound = place.read_bytes()
    parts: Any = {"passage": passage, "embedding": FakeEmbedding, "feedback": Feedback(database, FeedbackConfig())}
    app = create_app(FakeAnswering(), keys, **parts, auth_required=True, version="0")
    with TestClient(app, raise_server_exceptions=False) as http:
        ask = {"headers": {"Authorization": f"Bearer {secret}"}, "json": {"question": "What?", "domain": "medical"}}
        assert http.post("/v1/answer", **ask).status_code == 200  # type: ignore[arg-type]
        database.close()
        for name in ("appliance.db-wal", "appliance.db-shm"):
            (filled.root / name).unlink(missing_ok=True)
        place.write_bytes(b"not a database, " * 5000)
        answer = http.post("/v1/answer", **ask)  # type: ignore[arg-type]
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "database_unavailable" and str(place) not in answer.text
        assert http.get("/livez").status_code == 200
        database.close()
        place.write_bytes(sound)
        assert http.post("/v1/answer", **ask).status_code == 200  # type: ignore[arg-type]


def test_reading_does_not_wait_for_the_threads_that_wait_to_write(workspace: Workspace) -> None:
    waiting = threading.Barrier(26)

    def write() -> None:
        waiting.wait(30)
        with workspace.db.write():
            pass

    with ThreadPoolExecutor(25) as pool:
        with workspace.db.write():
            done = [pool.submit(write) for _ in range(25)]
            waiting.wait(30)
            # Each of them holds a connection by now.
            time.sleep(0.3)
            started = time.monotonic()
            assert asyncio.run(workspace.db.look(workspace.db.setting, "nothing")) is None
            assert time.monotonic() - started < 10
        for one in done:
            one.result(60)


def test_the_lock_of_a_killed_process_that_nobody_has_waited_for(workspace: Workspace) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from appliance.store.locks import WriterLock\nfrom appliance.workspace import Workspace\n"
        "WriterLock(Workspace(Path(sys.argv[1])).db, 'index').acquire()\nprint('held', flush=True)\nos._exit(9)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(workspace.root)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.read() == "held\n"
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            continue
        with workspace.db.lock("index"):
            pass
