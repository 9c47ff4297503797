"""Backup and restore of a real workspace: while it is used, interrupted, hostile, and never bringing deleted text back."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fake_engine import ScriptedEngine
from helpers import answering_with

from appliance.admin.audit import verify
from appliance.admin.keys import Keys
from appliance.answers.verified import VerifiedAnswers
from appliance.backup import backup as backing_up
from appliance.backup import restore as restoring
from appliance.backup.archive import MANIFEST, Backup
from appliance.backup.backup import backup, redact
from appliance.backup.restore import Restored, restore
from appliance.cli.main import run as run_command
from appliance.errors import ApplianceError, UsageError
from appliance.jobs.jobs import Jobs
from appliance.knowledge.forgetting import forget
from appliance.knowledge.knowledge import Knowledge
from appliance.models.store import ModelStore
from appliance.store import schema, tables_admin
from appliance.store.database import Database, utcnow
from appliance.store.reading import DocumentReader
from appliance.types import Caller, Request
from appliance.workspace import Workspace
from retrieval.types import DocumentKey, Scope
from tests.retrieval.retrieval_support import HashingEmbedder

EVERYTHING = Scope(labels=frozenset({"management"}))
PARKING = DocumentKey("medical", "parking.md")


def quiet(*_: object, **__: object) -> None: ...


def back_up(workspace: Workspace, target: Path, link: bool = False) -> Path:
    return backup(workspace, target, link=link, progress=quiet).place


def bring_back(place: Path, target: Path, **options: Any) -> Restored:
    return restore(place, target, **{"force": False, "ledger": None, "without_ledger": False, "progress": quiet, **options})


@contextmanager
def opened(root: Path, models: ModelStore) -> Iterator[Knowledge]:
    with Workspace(root) as workspace:
        yield Knowledge(workspace, models, embedder=HashingEmbedder())


@pytest.fixture
def knowledge(light: Knowledge) -> Knowledge:
    return light


def top(knowledge: Knowledge, question: str) -> str | None:
    passages = knowledge.search(question, EVERYTHING).passages
    return passages[0].document.id if passages else None


def strays(folder: Path) -> list[str]:
    """What an interrupted backup or restore would leave behind."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("name", ["备份 1", "one.zip", "linked"])
def test_a_backup_becomes_the_same_workspace(knowledge: Knowledge, tmp_path: Path, models: ModelStore, name: str) -> None:
    workspace = knowledge.workspace
    (workspace.root / "datasets" / "问答集@1.jsonl").write_text("{}\n", "utf-8")
    (workspace.root / "dictionaries").mkdir()
    (workspace.root / "dictionaries" / "medical.txt").write_text("重症监护室\n", "utf-8")
    _, secret = Keys(workspace.db).create("前台")
    workspace.db.secret()
    made = back_up(workspace, tmp_path / name, link=name == "linked")
    assert made == tmp_path / name and strays(workspace.root) == [] == strays(tmp_path)
    done = bring_back(made, tmp_path / "恢复")
    assert (done.taken_back, done.replaced, strays(tmp_path / "恢复")) == (None, None, [])
    with opened(tmp_path / "恢复", models) as restored:
        assert top(restored, "专家门诊挂号费是多少？") == "zh/registration.md" and top(restored, "What does parking cost?") == "parking.md"
        assert restored.verify() == [] and Keys(restored.workspace.db).authenticate(secret) is not None
        assert restored.workspace.db.setting("secret") is None, "a secret was in the backup"
        assert (restored.workspace.root / "datasets" / "问答集@1.jsonl").is_file()
        assert restored.rankings.dictionary("medical") is not None
        assert verify(restored.workspace.db).ok
        if name != "one.zip":
            return
        # It goes on as a workspace does.
        (tmp_path / "new.md").write_text("# 停车\n\n南区停车场全天免费。\n", "utf-8")
        assert restored.ingest([tmp_path / "new.md"], domain="medical").added == 1


def _register(workspace: Workspace, name: str) -> Path:
    """The row of a version whose only file is the one returned."""
    row = {"name": name, "domain": "medical", "base": "b", "base_hash": "b", "method": "lora", "path": f"adapters/{name}", "sha256": "0"}
    row |= {"dataset": "d", "dataset_version": "1", "labels": [], "config": {}, "metrics": {}, "created_at": utcnow()}
    with workspace.db.write() as connection:
        connection.execute(schema.adapter.insert().values(**row))
    file = workspace.root / "adapters" / name / "adapter_model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    return file


def test_an_adapter_removed_meanwhile_is_in_neither_database_nor_files(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _register(workspace, "medical@00000001")
    going = _register(workspace, "medical@00000002")
    pin = backing_up._pin_index

    def remove(index: Path, folder: Path) -> Path | None:
        if going.exists():
            with workspace.db.write() as connection:
                connection.execute(schema.adapter.delete().where(schema.adapter.c.name == "medical@00000002"))
            shutil.rmtree(going.parent)
        return pin(index, folder)

    monkeypatch.setattr(backing_up, "_pin_index", remove)
    made = backup(workspace, tmp_path / "b", link=False, progress=quiet)
    with Database(f"sqlite:///{made.place / 'appliance.db'}").read() as connection:
        named = connection.execute(sa.select(schema.adapter.c.name)).scalars().all()
    assert made.missing == () and named == [path.name for path in (made.place / "adapters").iterdir()] == ["medical@00000001"]


def test_what_the_workspace_itself_lacks_is_told(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(_register(workspace, "medical@00000001").parent)
    assert run_command(["--workspace", str(workspace.root), "backup", str(tmp_path / "b"), "--json"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out)["missing"] == ["adapters/medical@00000001"] and "adapters/medical@00000001" in said.err


def test_a_checkpoint_that_is_pruned_meanwhile_is_not_half_copied(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoint = workspace.root / "attempts" / "t" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        for name in ("complete", "optimizer.pt", "weights.safetensors"):
            (checkpoint / name).write_text(name, "utf-8")
    real = backing_up.place

    def place(source: Path, target: Path, link: bool) -> None:
        real(source, target, link)
        if source.parent.name == "checkpoint-1":
            shutil.rmtree(source.parent)

    monkeypatch.setattr(backing_up, "place", place)
    made = back_up(workspace, tmp_path / "b")
    copied = made / "attempts" / "t"
    assert [path.name for path in copied.iterdir()] == ["checkpoint-2"] and len(list((copied / "checkpoint-2").iterdir())) == 3


def test_open_jobs_do_not_run_again_after_a_restore(workspace: Workspace, tmp_path: Path) -> None:
    queue = Jobs(workspace.db)
    ended, waiting = (queue.add("ingest", {"domain": "medical"}) for _ in range(2))
    queue.finish(ended.id, "done")
    with workspace.db.write() as connection:
        row = {"id": "upl-1", "name": "x.md", "kind": "documents", "bytes": 1, "sha256": "0", "caller": "k", "created_at": utcnow()}
        connection.execute(tables_admin.upload.insert().values(**row))
    bring_back(back_up(workspace, tmp_path / "b"), tmp_path / "restored")
    with Workspace(tmp_path / "restored") as restored:
        states = {job.id: (job.state, job.finished_at is not None) for job in Jobs(restored.db).all()}
        assert states == {ended.id: ("done", True), waiting.id: ("cancelled", True)}
        with restored.db.read() as connection:
            assert connection.execute(sa.select(tables_admin.upload)).all() == []
    assert Jobs(workspace.db).get(waiting.id).state == "queued"


@pytest.mark.slow
def test_backup_while_it_is_ingested_and_asked(knowledge: Knowledge, tmp_path: Path, models: ModelStore) -> None:
    ended = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        number = 0
        with opened(knowledge.workspace.root, models) as own:
            while not ended.is_set():
                number += 1
                (tmp_path / "more").mkdir(exist_ok=True)
                (tmp_path / "more" / f"{number % 4}.md").write_text(f"# 通知 {number}\n\n第{number}号通知：探视时间调整。\n", "utf-8")
                own.ingest([tmp_path / "more"], domain="medical")
                own.compact()

    def ask() -> None:
        with opened(knowledge.workspace.root, models) as own:
            while not ended.is_set():
                assert top(own, "What does parking cost?") == "parking.md"

    def noting(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        return run

    threads = [threading.Thread(target=noting(work)) for work in (write, ask)]
    for thread in threads:
        thread.start()
    try:
        made = [back_up(knowledge.workspace, tmp_path / f"{number}.zip") for number in range(3)]
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []
    for place in made:
        bring_back(place, tmp_path / place.stem)
        with opened(tmp_path / place.stem, models) as restored:
            assert restored.verify() == [] and top(restored, "What does parking cost?") == "parking.md"
            assert verify(restored.workspace.db).ok


def test_what_was_taken_back_does_not_come_back(knowledge: Knowledge, tmp_path: Path, models: ModelStore) -> None:
    root, db = knowledge.workspace.root, knowledge.workspace.db
    keys = Keys(db)
    key, secret = keys.create("left")
    answers = VerifiedAnswers(knowledge)
    cited = answers.add(
        "medical", "What does parking cost?", "Parking in the north garage costs 3 crowns an hour.", ["parking.md"], "chief", 0.5
    )
    wrong = answers.add("medical", "探视几点？", "Visitors may come from 14:00 to 20:00 every day.", ["visiting.md"], "主任", 0.5)
    run = root / "runs" / "run-1"
    run.mkdir()
    outcome = {"answer": "3 crowns", "retrieved": ["parking.md"], "citations": ["parking.md"]}
    (run / "outputs.jsonl").write_text(json.dumps({"outcome": outcome}) + "\n", "utf-8")
    with db.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO run (id, dataset, dataset_version, domain, path, settings, created_at, finished_at) "
            "VALUES ('run-1', 'd', '1', 'medical', 'runs/run-1', '{}', '2026-01-01 00:00:00', '2026-01-01 00:01:00')"
        )
    made = back_up(knowledge.workspace, tmp_path / "older")
    knowledge.remove([PARKING])
    keys.revoke(key.id)
    answers.remove(wrong.id)
    entries = verify(db).entries
    knowledge.workspace.close()

    done = bring_back(made, root, force=True)
    assert done.taken_back is not None and done.to_json()["taken_back"] == {"documents": 1, "keys": 1, "answers": 1}
    with opened(root, models) as restored:
        passages = restored.search("What does parking in the north garage cost?", EVERYTHING).passages
        assert passages and all("crowns" not in passage.chunk.text or passage.document.id == "pay.md" for passage in passages)
        assert restored.documents.current(PARKING) is None
        assert Keys(restored.workspace.db).authenticate(secret) is None
        assert [(answer.id, bool(answer.suspended)) for answer in VerifiedAnswers(restored).all()] == [(cited.id, True)]
        assert "crowns" not in (root / "runs" / "run-1" / "outputs.jsonl").read_text("utf-8")
        answering = answering_with(restored, ScriptedEngine("Nothing is known."))
        for arm in ("quote", "rag", "auto"):
            answer = asyncio.run(
                answering.ask(Request("What does parking in the north garage cost?", domain="medical", arm=arm), Caller(EVERYTHING))
            )
            assert "3 crowns" not in answer.text and all(citation.doc_id != "parking.md" for citation in answer.citations), arm
        # The log of the replaced workspace goes on.
        verdict = verify(restored.workspace.db)
        assert verdict.ok and verdict.entries > entries
    for path in (root / "appliance.db", *(root / "index").rglob("*")):
        assert path.is_dir() or b"south garage free of charge" not in path.read_bytes(), path
    assert done.replaced is not None and (done.replaced / "appliance.toml").is_file()


def test_the_ledger_of_another_place_counts_too(knowledge: Knowledge, tmp_path: Path, models: ModelStore) -> None:
    made = back_up(knowledge.workspace, tmp_path / "b.zip")
    knowledge.remove([PARKING])
    done = bring_back(made, tmp_path / "new", ledger=knowledge.workspace.root)
    assert done.taken_back is not None and done.taken_back.documents == 1
    with opened(tmp_path / "new", models) as restored:
        assert restored.documents.current(PARKING) is None


def test_an_entry_of_another_ledger_may_be_older_than_all_of_the_own(workspace: Workspace, tmp_path: Path) -> None:
    def delete(db: Database, id: str, moment: datetime) -> None:
        with db.write() as connection:
            connection.execute(schema.deletion.insert().values(domain="medical", doc_id=id, sha256="0" * 64, deleted_at=moment))

    now = utcnow()
    row = {"id": "a", "caller": "k", "domain": "medical", "arm": "rag", "answer": "机密", "labels": [], "documents": [["medical", "x.md"]]}
    with workspace.db.write() as connection:
        connection.execute(schema.answer.insert().values(**row, created_at=now - timedelta(hours=2)))
    delete(workspace.db, "other.md", now)
    forget(workspace.db, workspace.root)
    made = back_up(workspace, tmp_path / "b")
    with Workspace.create(tmp_path / "later") as later:
        delete(later.db, "x.md", now - timedelta(hours=1))
    bring_back(made, tmp_path / "new", ledger=tmp_path / "later")
    assert "机密".encode() not in (tmp_path / "new" / "appliance.db").read_bytes()


def test_a_damaged_former_database_needs_consent(knowledge: Knowledge, tmp_path: Path, models: ModelStore) -> None:
    root = knowledge.workspace.root
    made = back_up(knowledge.workspace, tmp_path / "b.zip")
    knowledge.workspace.close()
    (root / "appliance.db").write_bytes(b"no database at all" * 500)
    with pytest.raises(ApplianceError, match=r"nobody knows what was deleted since.*--without-ledger"):
        bring_back(made, root, force=True)
    assert strays(root) == []
    assert bring_back(made, root, force=True, without_ledger=True).taken_back is None
    with opened(root, models) as restored:
        assert top(restored, "What does parking cost?") == "parking.md"


@pytest.mark.parametrize("content", [None, b""])
def test_a_former_database_that_is_lost_needs_consent_too(packed: Path, tmp_path: Path, content: bytes | None) -> None:
    root = tmp_path / "workspace"
    (root / "appliance.db").unlink()
    if content is not None:
        (root / "appliance.db").write_bytes(content)
    with pytest.raises(ApplianceError, match=r"nobody knows what was deleted since.*--without-ledger"):
        bring_back(packed, root, force=True)
    assert strays(root) == [] and (root / "appliance.db").exists() == (content is not None)
    assert bring_back(packed, root, force=True, without_ledger=True).taken_back is None


def test_a_workspace_in_use_or_in_the_way_is_left_alone(knowledge: Knowledge, tmp_path: Path) -> None:
    root = knowledge.workspace.root
    made = back_up(knowledge.workspace, tmp_path / "b.zip")
    with pytest.raises(UsageError, match="is a workspace already"):
        bring_back(made, root)
    with pytest.raises(UsageError, match=r"is in use: stop `appliance serve`"):
        bring_back(made, root, force=True)
    with pytest.raises(UsageError, match="not empty and no workspace"):
        bring_back(made, tmp_path / "copy" / "documents", force=True)
    for target, complaint in ((made, "exists"), (root / "inside", "inside the workspace"), (tmp_path / "no" / "b", "is no folder")):
        with pytest.raises(UsageError, match=complaint):
            back_up(knowledge.workspace, target)


def _end_at_rename(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process end at the rename of this number; one that is gone puts nothing back."""
    real, put_back, count = Path.rename, restoring._put_back, 0

    def rename(self: Path, to: Path) -> Path:
        nonlocal count
        count += 1
        if count == step:
            raise KeyboardInterrupt
        return real(self, to)

    patch.setattr(Path, "rename", rename)
    patch.setattr(restoring, "_put_back", lambda target: put_back(target) if count == 0 else None)


@pytest.mark.parametrize("steps", [(1, 2, 9, 10, 11, 17), pytest.param(range(1, 20), marks=pytest.mark.slow)])
def test_an_interrupted_restore_leaves_one_of_the_two(
    knowledge: Knowledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: ModelStore, steps: Sequence[int]
) -> None:
    """Gone at any rename: the folder is the former workspace, the new one, or none, and the next restore ends well."""
    made = back_up(knowledge.workspace, tmp_path / "b.zip")
    knowledge.remove([PARKING])
    knowledge.workspace.close()
    for step in steps:
        root = tmp_path / str(step)
        shutil.copytree(knowledge.workspace.root, root)
        (root / "我的笔记.txt").write_text("mine", "utf-8")
        with monkeypatch.context() as patch:
            _end_at_rename(step, patch)
            with suppress(KeyboardInterrupt):
                bring_back(made, root, force=True)
        assert bring_back(made, root, force=True).replaced is not None
        with Workspace(root) as restored:
            documents = DocumentReader(restored.db)
            assert documents.current(PARKING) is None, "the ledger was lost"
            assert documents.current(DocumentKey("medical", "visiting.md")) is not None
        assert (root / "我的笔记.txt").read_text("utf-8") == "mine"
        assert all(name.startswith(".replaced-") for name in strays(root)), step


@pytest.fixture
def packed(workspace: Workspace, tmp_path: Path) -> Path:
    """A backup of an empty workspace as a folder."""
    return back_up(workspace, tmp_path / "packed")


def _forge(packed: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((packed / MANIFEST).read_text("utf-8"))
    change(content)
    (packed / MANIFEST).write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:/evil", "a\\b", "a//b", "./a", "\0"])
def test_paths_that_leave_the_folder_are_refused(packed: Path, tmp_path: Path, name: str) -> None:
    _forge(packed, lambda content: content["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    with pytest.raises(ApplianceError, match="would leave the workspace's folder"):
        bring_back(packed, tmp_path / "new")
    assert not (tmp_path / "new").exists() and not (tmp_path / "evil").exists()


def test_altered_missing_and_extra_files_are_refused(packed: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    shutil.copytree(packed, original)

    def refused(complaint: str) -> None:
        with pytest.raises(ApplianceError, match=complaint):
            bring_back(packed, tmp_path / "new")
        assert not (tmp_path / "new").exists()
        shutil.rmtree(packed)
        shutil.copytree(original, packed)

    (packed / "appliance.toml").write_bytes((packed / "appliance.toml").read_bytes()[:-1] + b"#")
    refused("is not as it was written")
    with (packed / "appliance.db").open("ab") as file:
        file.write(b"\0")
    refused("is longer than")
    (packed / "appliance.toml").unlink()
    refused(r"appliance\.toml is missing")
    (packed / "extra").write_text("x")
    refused("holds 'extra', which its manifest does not name")
    (packed / "appliance.toml").unlink()
    (packed / "appliance.toml").symlink_to("/etc/passwd")
    refused("is a link")
    (packed / MANIFEST).write_text("[]")
    refused("is not one of ours")
    (packed / MANIFEST).unlink()
    refused("cannot be read")
    _forge(packed, lambda content: content.update(format=2))
    refused("newer version")
    _forge(packed, lambda content: content["files"]["appliance.toml"].update(bytes=1 << 60))
    refused("bytes are free|are free")


def test_a_zip_bomb_is_not_unpacked(packed: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as out:
        for path in packed.rglob("*"):
            if path.is_file() and path.name != "appliance.toml":
                out.write(path, path.relative_to(packed).as_posix())
        # A thousand times what the manifest promises, in a few kilobytes.
        out.writestr("appliance.toml", b"\0" * (64 << 20))
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(ApplianceError, match="is longer than"):
        bring_back(bomb, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as out, pytest.warns(UserWarning):
        out.writestr(MANIFEST, (packed / MANIFEST).read_text("utf-8"))
        for _ in range(2):
            out.write(packed / "appliance.db", "appliance.db")
    with pytest.raises(ApplianceError, match="a file twice"):
        Backup(tmp_path / "twice.zip")
    (tmp_path / "no.zip").write_bytes(b"")
    for place in (tmp_path / "no.zip", tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="no backup"):
            Backup(place)


def test_a_cut_off_zip_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    whole = back_up(workspace, tmp_path / "b.zip").read_bytes()
    for length in (len(whole) // 3, len(whole) - 1):
        (tmp_path / "cut.zip").write_bytes(whole[:length])
        with pytest.raises(ApplianceError):
            bring_back(tmp_path / "cut.zip", tmp_path / "new")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    (tmp_path / "cut.zip").write_bytes(flipped)
    with pytest.raises(ApplianceError):
        bring_back(tmp_path / "cut.zip", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(prepared_light: Path, tmp_path: Path) -> None:
    """No file may grow beyond a limit, as on a disk that is full."""
    root = tmp_path / "workspace"
    shutil.copytree(prepared_light / "workspace", root)
    program = "from appliance.cli.main import main; main()"
    size = (root / "appliance.db").stat().st_size

    def limit(most: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    def call(*arguments: object, most: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, "--workspace", str(root), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, preexec_fn=limit(most), check=False, env={**os.environ})

    for target in ("b.zip", "folder"):
        ran = call("backup", tmp_path / target, most=size // 2)
        assert ran.returncode == 1 and "error:" in ran.stderr and "Traceback" not in ran.stderr, ran.stderr
        assert not (tmp_path / target).exists() and strays(tmp_path) == [] == strays(root)
    assert call("backup", tmp_path / "b.zip", most=1 << 30).returncode == 0
    ran = call("restore", tmp_path / "b.zip", tmp_path / "new", most=size // 2)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr and not (tmp_path / "new").exists(), ran.stderr


def test_an_interrupted_backup_leaves_nothing(workspace: Workspace, tmp_path: Path) -> None:
    def stop(what: str, *_: object) -> None:
        if what == "writing":
            raise KeyboardInterrupt

    for name in ("b.zip", "folder"):
        with pytest.raises(KeyboardInterrupt):
            backup(workspace, tmp_path / name, link=False, progress=stop)
        assert not (tmp_path / name).exists() and strays(tmp_path) == [] == strays(workspace.root)
    # What a killed one left goes with the next.
    (workspace.root / ".backup-999999999").mkdir()
    back_up(workspace, tmp_path / "b.zip")
    assert strays(workspace.root) == []


def test_secrets_stay_out_of_a_backup() -> None:
    text = '# 注释\n[engines.a]\nurl = "https://me:hunter2@host:8000/v1"\napi_key_env = "KEY"\n[web]\napi_key = "sk-1"\n[database]\nurl = "sqlite:///x"\n'
    clean, found = redact(text)
    assert found == ("engines.a.url", "web.api_key") and "hunter2" not in clean and "sk-1" not in clean
    assert 'url = "https://me@host:8000/v1"' in clean and 'api_key_env = "KEY"' in clean and "# 注释" in clean and "sqlite" not in clean
    several = '[engines.a]\nurls = [\n  "http://one:8000/v1",  # 甲\n  "https://me:hunter2@two:8000/v1",\n]\n'
    assert redact(several) == (several.replace(":hunter2", ""), ("engines.a.urls",))
    given = '[engines.a]\nserver_args = ["--seed", "1", "--api-key", "k1", "--hf-token=k2", "--max-num-batched-tokens", "8"]\n'
    kept, lost = redact(given)
    assert tomllib.loads(kept)["engines"]["a"]["server_args"] == ["--seed", "1", "--max-num-batched-tokens", "8"]
    assert lost == ("engines.a.server_args",)


def test_the_database_of_a_backup_is_one_file(packed: Path) -> None:
    assert [path.name for path in packed.glob("appliance.db*")] == ["appliance.db"]
    connection = sqlite3.connect(f"file:{packed / 'appliance.db'}?mode=ro", uri=True)
    assert connection.execute("SELECT count(*) FROM lock").fetchone() == (0,)
    connection.close()
