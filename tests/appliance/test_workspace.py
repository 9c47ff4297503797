from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from waiting import until

from appliance.errors import ApplianceError, UsageError
from appliance.store import locks, schema
from appliance.store.database import Database, utcnow
from appliance.store.locks import Locked
from appliance.workspace import Workspace


def test_a_workspace_is_found_by_flag_then_environment_then_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPLIANCE_WORKSPACE", raising=False)
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        Workspace.create(folder).close()
    deep = one / "runs" / "deep"
    deep.mkdir()
    with Workspace.find(None, cwd=deep) as found:
        assert found.root == one
    monkeypatch.setenv("APPLIANCE_WORKSPACE", str(two))
    with Workspace.find(None, cwd=deep) as found:
        assert found.root == two
    with Workspace.find(one, cwd=deep) as found:
        assert found.root == one


def test_no_workspace_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPLIANCE_WORKSPACE", raising=False)
    with pytest.raises(UsageError, match="appliance init DIR"):
        Workspace.find(None, cwd=tmp_path)
    with pytest.raises(UsageError, match=r"has no appliance\.toml"):
        Workspace.find(tmp_path)


def test_creating_twice_or_over_a_file_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a workspace already"):
        Workspace.create(workspace.root)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        Workspace.create(tmp_path / "file")


def test_domains(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="known: none yet"):
        workspace.check_domain("medical")
    with pytest.raises(UsageError, match="name the domain with --domain"):
        workspace.only_domain(None)
    workspace.create_domain("medical")
    assert workspace.only_domain(None) == "medical"
    workspace.create_domain("legal")
    workspace.create_domain("legal")
    with pytest.raises(UsageError, match="known: legal, medical"):
        workspace.only_domain(None)
    with pytest.raises(UsageError, match="unknown domain 'law'; known: legal, medical"):
        workspace.check_domain("law")
    for bad in ("", "Medical", "a b", "../x", "医疗", "x" * 64, "auto", "embedding"):
        with pytest.raises(UsageError, match="cannot be a domain's name"):
            workspace.create_domain(bad)


def test_saving_a_setting_keeps_comments(workspace: Workspace) -> None:
    file = workspace.root / "appliance.toml"
    before = file.read_text("utf-8")
    workspace.save_setting("domains.medical.scenario", "hybrid")
    workspace.save_setting("domains.medical.scenario", "rag")
    after = file.read_text("utf-8")
    assert after.startswith(before.rstrip("\n"))
    assert workspace.config.domain("medical").scenario == "rag"


def test_a_database_of_a_newer_version_is_refused(workspace: Workspace) -> None:
    with sqlite3.connect(workspace.root / "appliance.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ApplianceError, match="newer version of the appliance"):
        workspace.db.migrate()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "appliance.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(ApplianceError, match=r"appliance\.db cannot be used"):
        Database(f"sqlite:///{tmp_path / 'appliance.db'}").migrate()


def test_the_secret_is_made_once(workspace: Workspace) -> None:
    secret = workspace.db.secret()
    assert len(secret) == 32
    with Workspace(workspace.root) as again:
        assert again.db.secret() == secret


def test_one_writer_holds_a_lock(workspace: Workspace) -> None:
    with workspace.db.lock("index") as held:
        held.beat()
        with pytest.raises(Locked, match="is being written by"), workspace.db.lock("index"):
            pass
        with workspace.db.lock("tune:medical"):
            pass
    with workspace.db.lock("index"):
        pass


def test_a_dead_owners_lock_is_taken_over(workspace: Workspace) -> None:
    code = "import sys, os; from pathlib import Path; from appliance.workspace import Workspace\n"
    code += "from appliance.store.locks import WriterLock\nWriterLock(Workspace(Path(sys.argv[1])).db, 'index').acquire(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(workspace.root)], env={**os.environ}).returncode == 9
    with workspace.db.lock("index"):
        pass


def test_a_lost_lock_stops_the_commit(workspace: Workspace) -> None:
    with workspace.db.lock("index") as held:
        with workspace.db.write() as connection:
            connection.execute(schema.lock.update().values(owner="other:1:2:3"))
        with pytest.raises(Locked, match="was lost to other"), workspace.db.write() as connection:
            connection.execute(schema.setting.insert().values(key="x", value="y"))
            held.check(connection)
    assert workspace.db.setting("x") is None


def test_a_lock_is_kept_while_the_work_says_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def heartbeat() -> datetime:
        with workspace.db.read() as connection:
            return connection.execute(sa.select(schema.lock.c.heartbeat)).scalar_one()

    # Another container knows of the owner only what the heartbeat says.
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.02)
    with workspace.db.lock("tune:medical"):
        for _ in range(2):
            with workspace.db.write() as connection:
                connection.execute(schema.lock.update().values(heartbeat=utcnow() - 2 * locks._STALE))
            until(lambda: utcnow() - heartbeat() < locks._STALE)
    with workspace.db.read() as connection:
        assert connection.execute(sa.select(schema.lock)).all() == []
    assert not [thread for thread in threading.enumerate() if thread.name == "lock tune:medical"]


def test_a_lost_lock_is_noticed_at_the_next_beat(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.02)
    with workspace.db.lock("tune:medical") as held:
        with workspace.db.write() as connection:
            connection.execute(schema.lock.update().values(owner="other:1:2:3"))
        until(lambda: not held._keeper.is_alive())
        with pytest.raises(Locked, match="was lost"):
            held.beat()


def test_pointer_moves_are_logged(workspace: Workspace) -> None:
    for value in ("1", "2", None):
        with workspace.db.write() as connection:
            workspace.db.move_pointer(connection, "index", value, "because")
    assert workspace.db.pointer("index") is None
    with workspace.db.read() as connection:
        moves = connection.execute(sa.select(schema.pointer_move.c.old, schema.pointer_move.c.new).order_by(schema.pointer_move.c.id)).all()
    assert [tuple(move) for move in moves] == [(None, "1"), ("1", "2"), ("2", None)]
