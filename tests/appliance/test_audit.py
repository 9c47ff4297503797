"""The audit log: what is in it, that it cannot be altered unseen, and that concurrent writers make one chain."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from appliance.admin import audit as audit_module
from appliance.admin.audit import AnswerLog, check, entries, export, find, verify, verify_export
from appliance.admin.keys import Keys
from appliance.answers.verified import VerifiedAnswers
from appliance.cli.main import run
from appliance.errors import ApplianceError, DatabaseFailed, UsageError
from appliance.knowledge.knowledge import Knowledge
from appliance.store import database as database_module
from appliance.store.append_only import protect, unprotect
from appliance.store.database import Database
from appliance.store.schema import setting
from appliance.store.tables_admin import audit
from appliance.workspace import Workspace
from retrieval.types import DocumentKey


def write(database: Database, count: int, action: str = "test.act") -> None:
    for number in range(count):
        with database.write() as connection:
            database.audit(connection, action, {"number": number, "文档": "门诊挂号.md"})


def change(database: Database, statement: sa.Executable) -> None:
    """As somebody who may change the tables themselves would."""
    with database.write() as connection:
        unprotect(connection)
        connection.execute(statement)
        protect(connection)


def text(database: Database, seq: int) -> str:
    with database.read() as connection:
        return connection.execute(sa.select(audit.c.entry).where(audit.c.seq == seq)).scalar_one()


def test_acts_are_logged_with_who_and_what_and_no_text(light: Knowledge) -> None:
    knowledge, db = light, light.workspace.db
    key, secret = Keys(db).create("前台", domains=["medical"], labels=["management"])
    Keys(db).revoke(key.id)
    Keys(db).revoke(key.id)
    answers = VerifiedAnswers(knowledge)
    answer = "Parking in the north garage costs 3 crowns an hour."
    made = answers.add("medical", "停车多少钱？", answer, ["parking.md"], "主任", 0.5)
    answers.remove(made.id)
    knowledge.remove([DocumentKey("medical", "zh/registration.md")])
    knowledge.rollback(2)
    knowledge.workspace.save_setting("domains.medical.labels", ["ward"])
    found = list(reversed(find(db, limit=1000)))
    assert [entry["action"] for entry in found] == [
        *["index.ingest"] * 2,
        *("key.create", "key.revoke", "verified.add", "verified.remove", "index.remove", "index.rollback", "config.set"),
    ]
    assert found[0]["details"]["put"] == 3 and "medical/zh/registration.md" in found[0]["details"]["put_ids"]
    assert found[1]["details"]["labels"] == ["management"] and found[2]["details"]["key"] == key.id
    assert found[6]["details"]["removed_ids"] == ["medical/zh/registration.md"]
    assert {entry["actor"].split(":")[0] for entry in found} == {"cli"} and {entry["outcome"] for entry in found} == {"done"}
    assert verify(db).ok and verify(db).entries == len(found)
    everything = "".join(line for _, line, _ in entries(db))
    assert all(secretive not in everything for secretive in (secret, answer, "停车多少钱", "crowns", "挂号费为"))
    assert [entry["action"] for entry in find(db, "verified")] == ["verified.remove", "verified.add"]
    assert find(db, actor="nobody") == [] and len(find(db, limit=2)) == 2


@pytest.mark.parametrize(
    ("name", "new", "why", "action"),
    [
        ("index", "7", "ingest: 3 added, 0 updated, 0 removed", "index.ingest"),
        ("index", "7", "rollback to generation 7", "index.rollback"),
        ("index", "7", "something new", "index.move"),
        ("dataset:问答", "ab", "dataset add", "dataset.add"),
        ("adapter:medical", "medical@1", "gate g1 passed", "adapter.promote"),
        ("adapter:medical", "medical@1", "forced: 急需", "adapter.promote"),
        ("adapter:medical", "medical@1", "rollback", "adapter.rollback"),
        ("adapter:medical", None, "medical@1 was removed", "adapter.remove"),
    ],
)
def test_a_move_is_called_by_what_it_is(workspace: Workspace, name: str, new: str | None, why: str, action: str) -> None:
    with workspace.db.write() as connection:
        workspace.db.move_pointer(connection, name, new, why)
    [entry] = find(workspace.db)
    assert entry["action"] == action and entry["details"] == {"name": name, "old": None, "new": new, "why": why}


def test_an_act_that_fails_leaves_no_entry(workspace: Workspace) -> None:
    with pytest.raises(sa.exc.IntegrityError), workspace.db.write() as connection:
        workspace.db.audit(connection, "test.act", {})
        connection.execute(setting.insert(), [{"key": "x", "value": "y"}] * 2)
    assert verify(workspace.db).entries == 0 and verify(workspace.db).ok


@pytest.mark.parametrize(
    ("statement", "broken", "complaint"),
    [
        (
            lambda db: audit.update().where(audit.c.seq == 4).values(entry=text(db, 4).replace('"number":3', '"number":9')),
            4,
            "does not have",
        ),
        (lambda db: audit.delete().where(audit.c.seq == 5), 5, "entry 5 is missing"),
        (lambda db: audit.delete().where(audit.c.seq >= 8), 8, "its end was cut off"),
        (lambda db: audit.delete(), 1, "its end was cut off"),
        (lambda db: audit.delete().where(audit.c.seq == 1), 1, "entry 1 is missing"),
        (lambda db: audit.update().where(audit.c.seq == 3).values(entry="{"), 3, "was altered"),
        (lambda db: setting.delete().where(setting.c.key == "audit_head"), 10, "the newest entry on record is 0"),
    ],
)
def test_every_alteration_is_found(workspace: Workspace, statement: Callable[[Database], Any], broken: int, complaint: str) -> None:
    write(workspace.db, 10)
    assert verify(workspace.db).ok
    change(workspace.db, statement(workspace.db))
    verdict = verify(workspace.db)
    assert verdict.broken == broken and complaint in verdict.problem


@pytest.mark.parametrize(
    "statement", [audit.update().values(entry="{}"), audit.delete(), audit.delete().where(audit.c.seq == 2)], ids=["update", "all", "one"]
)
@pytest.mark.parametrize("kind", ["new", "migrated", "postgresql"])
def test_the_database_itself_refuses(request: pytest.FixtureRequest, tmp_path: Path, kind: str, statement: sa.Executable) -> None:
    database = Database(request.getfixturevalue("postgres_url") if kind == "postgresql" else f"sqlite:///{tmp_path / 'a.db'}")
    if kind == "migrated":
        # Not empty, so that every migration is run.
        with sqlite3.connect(tmp_path / "a.db") as connection:
            connection.execute("CREATE TABLE other (x)")
    database.migrate()
    write(database, 3)
    with pytest.raises((DatabaseFailed, sa.exc.SQLAlchemyError), match="append-only"), database.write() as connection:
        connection.execute(statement)
    assert verify(database).ok and verify(database).entries == 3
    database.close()


def test_an_entry_rewritten_with_its_hash_breaks_the_next(workspace: Workspace) -> None:
    from appliance.store.audit_log import digest

    write(workspace.db, 5)
    forged = text(workspace.db, 2).replace("门诊", "住院")
    change(workspace.db, audit.update().where(audit.c.seq == 2).values(entry=forged, sha256=digest(forged)))
    assert verify(workspace.db).broken == 3
    # The newest one has no next: the kept head tells.
    write_all = text(workspace.db, 5).replace("门诊", "住院")
    change(
        workspace.db, audit.update().where(audit.c.seq == 2).values(entry=forged.replace("住院", "门诊"), sha256=digest(text_of(forged)))
    )
    change(workspace.db, audit.update().where(audit.c.seq == 5).values(entry=write_all, sha256=digest(write_all)))
    verdict = verify(workspace.db)
    assert verdict.broken == 5 and "not that one" in verdict.problem


def text_of(forged: str) -> str:
    return forged.replace("住院", "门诊")


def test_an_export_finds_a_log_that_was_written_anew(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "审计.jsonl"
    write(workspace.db, 6)
    assert export(workspace.db, file).entries == 6 and not list(tmp_path.glob(".*"))
    with workspace.db.write() as connection:
        workspace.db.audit(connection, "test.act", {"文档": "one\u2028two\u0085three\x0bfour.md"})
    write(workspace.db, 1)
    assert verify_export(file, workspace.db).ok
    assert export(workspace.db, file).entries == 8 and verify_export(file, workspace.db).entries == 8
    lines = file.read_text("utf-8").splitlines()
    (tmp_path / "cut").write_text("\n".join(lines[:-1]), "utf-8")
    with pytest.raises(UsageError, match="no whole export"):
        verify_export(tmp_path / "cut", None)
    (tmp_path / "short").write_text("\n".join([*lines[:4], lines[-1]]), "utf-8")
    assert verify_export(tmp_path / "short", None).broken == 5
    (tmp_path / "altered").write_text("\n".join([lines[0], lines[1].replace("cli:", "key:"), *lines[2:]]), "utf-8")
    assert verify_export(tmp_path / "altered", None).broken == 3
    # All of it written anew, head and all: only what is kept elsewhere shows it.
    change(workspace.db, audit.delete())
    change(workspace.db, setting.delete().where(setting.c.key == "audit_head"))
    write(workspace.db, 9)
    assert verify(workspace.db).ok
    assert verify_export(file, workspace.db).broken == 8
    change(workspace.db, audit.delete().where(audit.c.seq == 2))
    with pytest.raises(ApplianceError, match="nothing was exported"):
        export(workspace.db, tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "工作区"

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["--workspace", str(root), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    assert run(["init", str(root)]) == 0
    assert call("audit", "verify")[0] == 0
    assert call("key", "create", "前台")[0] == 0
    code, out, _ = call("audit", "list", "--json")
    assert code == 0 and [entry["action"] for entry in json.loads(out)] == ["key.create"]
    assert call("audit", "export", str(tmp_path / "log.jsonl"))[0] == 0
    assert call("audit", "verify", str(tmp_path / "log.jsonl"))[0] == 0
    with Workspace(root) as workspace:
        change(workspace.db, audit.delete())
    code, out, err = call("audit", "verify", "--json")
    assert code == 1 and json.loads(out)["broken"] == 1 and "broken at entry 1" in err
    assert call("audit", "verify")[1] == ""


def _many(url: str, count: int) -> None:
    database = Database(url)
    write(database, count)
    database.close()


def test_concurrent_writers_make_one_chain(workspace: Workspace) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_many, args=(workspace.db.url, 25)) for _ in range(2)]
    for worker in workers:
        worker.start()
    write(workspace.db, 25)
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert verify(workspace.db).ok and verify(workspace.db).entries == 75


def test_one_chain_on_postgresql(postgres_url: str) -> None:
    database = Database(postgres_url)
    write(database, 3)
    assert verify(database).ok and verify(database).entries == 3
    change(database, audit.delete().where(audit.c.seq == 3))
    assert verify(database).broken == 3
    database.close()


def test_answers_are_written_in_the_background_and_at_the_end(workspace: Workspace) -> None:
    with AnswerLog(workspace.db) as log:
        for number in range(1200):
            log.note("key:abc", {"id": str(number), "arm": "rag"}, "done" if number else "failed with 503")
    assert verify(workspace.db).ok and verify(workspace.db).entries == 1200
    assert find(workspace.db, "answer", "key:abc", limit=2000)[-1]["outcome"] == "failed with 503"


def test_answers_wait_for_a_busy_database(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_BUSY_MS", 20)
    with AnswerLog(workspace.db) as log, Database(workspace.db.url).write():
        log.note("local", {"id": "1"})
        while not log._queue.empty():
            pass
    assert [entry["details"]["id"] for entry in find(workspace.db)] == ["1"]


def test_a_full_queue_and_a_database_that_cannot_be_written_do_not_hold_up_the_end(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in (("_WAITING", 5), ("_TOGETHER", 2), ("_LAST", 0.2), ("_RETRY", 0.01)):
        monkeypatch.setattr(audit_module, name, value)
    monkeypatch.setattr(Database, "write", lambda self: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with AnswerLog(workspace.db) as log:
        log.note("local", {"id": "0"})
        while log._batch == 0:
            pass
        for number in range(6):
            log.note("local", {"id": str(number)})
    assert "answer 5 is not in it" in caplog.text and "6 answers could not be written" in caplog.text
    monkeypatch.undo()
    log._queue.put(None)
    log._thread.join()
    assert verify(workspace.db).entries == 6


def test_an_empty_log_is_whole() -> None:
    assert check([]).ok
