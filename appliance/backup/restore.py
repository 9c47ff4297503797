"""`appliance restore`: a backup becomes a workspace, and what was taken back since it was made stays taken back."""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from appliance.backup.archive import DATABASE, Backup, Progress
from appliance.backup.backup import KEPT
from appliance.config import FILE_NAME
from appliance.errors import ApplianceError, UsageError
from appliance.knowledge.forgetting import forget
from appliance.store import audit_log
from appliance.store.database import Database
from appliance.store.ledger import apply_ledger
from appliance.store.schema import api_key, deletion, verified
from appliance.store.tables_admin import audit
from appliance.workspace import FOLDERS
from finetune.disk import sync

# Folders in the workspace: what is being restored; the former files while they are moved out, while the new ones are moved in, and at last.
_COMING, _LEAVING, _ENTERING, _REPLACED = ".restore-", ".leaving-", ".entering-", ".replaced-"
# Rows of the audit log copied at a time.
_ROWS = 1_000
# Space that migrating and applying the ledger may take besides the files.
_SPARE = 64 << 20


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What was undone in a restored workspace because it had been taken back since: numbers of documents, keys and approved answers."""

    documents: int = 0
    keys: int = 0
    answers: int = 0


@dataclass(frozen=True, slots=True)
class Restored:
    """A finished restore. `replaced` is where the former workspace is kept; `taken_back` is None if nothing told it."""

    workspace: Path
    created_at: str
    files: int
    bytes: int
    generation: str | None
    taken_back: TakenBack | None
    redacted: tuple[str, ...]
    replaced: Path | None

    def to_json(self) -> dict[str, Any]:
        places = {"workspace": str(self.workspace), "replaced": str(self.replaced) if self.replaced else None}
        return {**asdict(self), **places, "redacted": list(self.redacted)}


def check(place: Path, progress: Progress) -> Backup:
    """Read all of a backup and compare it with its manifest; it is returned closed. Raises what `Backup` raises."""
    with Backup(place) as found:
        found.extract(None, progress)
        return found


def restore(place: Path, target: Path, *, force: bool, ledger: Path | None, without_ledger: bool, progress: Progress) -> Restored:
    """Make the backup the workspace in `target`: new, or with `force` in place of the one that is there, which is kept aside.

    Documents deleted, keys revoked and approved answers withdrawn since the backup are taken out of it again, as the workspace in
    `target`, or else the one in `ledger`, tells; the audit log of that one goes on. With `without_ledger` a damaged one is done without.

    Everything is read, checked and changed beside the workspace before anything is moved; an interrupted restore leaves the former one,
    or a folder that is none, in which the next restore puts it back first.

    Raises UsageError for a target that is in the way or in use, ApplianceError for a backup that is damaged.
    """
    target = target.absolute()
    with Backup(place) as source:
        _put_back(target)
        occupied = (target / FILE_NAME).is_file()
        if occupied and not force:
            raise UsageError(f"{target} is a workspace already; name a new folder, or replace it with --force")
        if not occupied and target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target} is not empty and no workspace; name a new folder")
        space = shutil.disk_usage(_existing(target)).free
        if space < source.manifest.bytes + _SPARE:
            raise ApplianceError(f"{target}: the backup needs {source.manifest.bytes + _SPARE:,} bytes and {space:,} are free")
        told_by = target / DATABASE if occupied else ledger / DATABASE if ledger is not None else None
        if occupied:
            _close(target / DATABASE, without_ledger)
        was_there = target.exists()
        target.mkdir(parents=True, exist_ok=True)
        coming = target / f"{_COMING}{secrets.token_hex(4)}"
        try:
            coming.mkdir()
            source.extract(coming, progress)
            for name in FOLDERS:
                (coming / name).mkdir(exist_ok=True)
            taken_back = _bring_up_to_date(coming, told_by, source, without_ledger)
            replaced = _swap(target, coming)
        except BaseException:
            _put_back(target)
            if not was_there:
                shutil.rmtree(target, ignore_errors=True)
            raise
        made = source.manifest
        return Restored(
            workspace=target,
            created_at=made.created_at,
            files=len(made.files),
            bytes=made.bytes,
            generation=made.generation,
            taken_back=taken_back,
            redacted=made.redacted,
            replaced=replaced,
        )


def _close(database: Path, without_ledger: bool) -> None:
    """Make sure that nobody has the former database open: its log can then be folded into the file. Raises UsageError if somebody has."""
    if not database.is_file():
        _lost(database, FileNotFoundError("there is no such file"), without_ledger)
        return
    try:
        with closing(sqlite3.connect(database, timeout=1)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise UsageError(f"{database.parent} is in use: stop `appliance serve` and `appliance worker`, then restore") from error
        _lost(database, error, without_ledger)
    except sqlite3.DatabaseError as error:
        _lost(database, error, without_ledger)


def _lost(database: Path, error: Exception, without_ledger: bool) -> None:
    """Raises ApplianceError where deletions since the backup would be forgotten without the user having said so."""
    if not without_ledger:
        raise ApplianceError(
            f"{database} cannot be read ({error}), so nobody knows what was deleted since the backup; "
            "name a later copy of the workspace with --ledger, or accept with --without-ledger that deleted documents may come back"
        ) from error


def _bring_up_to_date(coming: Path, told_by: Path | None, source: Backup, without_ledger: bool) -> TakenBack | None:
    """Migrate the restored database, take out of it what was taken back since, and go on with the audit log; None: nothing told it."""
    database = Database(f"sqlite:///{coming / DATABASE}")
    taken_back: TakenBack | None = None
    continued = False
    try:
        database.migrate()
        if told_by is not None:
            try:
                with _opened(told_by) as former:
                    continued = _continue_log(former, database)
                    taken_back = _take_back(former, database)
            except (ApplianceError, sa.exc.DatabaseError) as error:
                _lost(told_by, error, without_ledger)
        forget(database, coming, again=True)
        facts = {"created_at": source.manifest.created_at, "manifest": source.sha256, "log_continued": continued}
        facts |= {"taken_back": asdict(taken_back) if taken_back else None}
        with database.write() as connection:
            database.audit(connection, "workspace.restore", facts)
        database.scrub()
    finally:
        database.close()
    return taken_back


@contextmanager
def _opened(path: Path) -> Iterator[Database]:
    """The database that tells what was taken back."""
    if not path.is_file():
        raise ApplianceError(f"there is no {path}")
    former = Database(f"sqlite:///{path}")
    try:
        if not sa.inspect(former.engine).has_table(deletion.name):
            # An empty file would tell that nothing was ever deleted.
            raise ApplianceError(f"{path} has no ledger of deletions")
        former.migrate()
        yield former
    finally:
        former.close()


def _take_back(former: Database, database: Database) -> TakenBack:
    documents = apply_ledger(former, database)
    with former.read() as connection:
        revoked = connection.execute(sa.select(api_key.c.id, api_key.c.revoked_at).where(api_key.c.revoked_at.is_not(None))).all()
        withdrawals = connection.execute(sa.select(audit.c.entry).where(audit.c.action == "verified.remove")).scalars().all()
    withdrawn = [json.loads(entry)["details"]["id"] for entry in withdrawals]
    keys = answers = 0
    with database.write() as connection:
        for id, moment in revoked:
            still_valid = (api_key.c.id == id, api_key.c.revoked_at.is_(None))
            keys += connection.execute(api_key.update().where(*still_valid).values(revoked_at=moment)).rowcount
        for id in withdrawn:
            answers += connection.execute(verified.delete().where(verified.c.id == id)).rowcount
    return TakenBack(len(documents), keys, answers)


def _continue_log(former: Database, database: Database) -> bool:
    """Add the entries written since the backup, if the former log begins with the restored one."""
    with database.read() as connection:
        seq, sha256 = audit_log.head(connection) or (0, audit_log.GENESIS)
    with former.read() as old, database.write() as new:
        known = old.execute(sa.select(audit.c.sha256).where(audit.c.seq == seq)).scalar_one_or_none()
        if known != sha256 and seq > 0:
            return False
        for rows in old.execute(sa.select(audit).where(audit.c.seq > seq).order_by(audit.c.seq)).mappings().partitions(_ROWS):
            new.execute(audit.insert(), [dict(row) for row in rows])
        head = audit_log.head(old)
        if head is not None:
            audit_log.keep_head(new, *head)
    return True


def _swap(target: Path, coming: Path) -> Path | None:
    """Move the former workspace's files aside and the new ones in, the file that makes the folder a workspace first and last."""
    token = coming.name.removeprefix(_COMING)
    aside = target / f"{_LEAVING}{token}"
    aside.mkdir()
    for path in sorted(_ours(target), key=lambda path: path.name != FILE_NAME):
        path.rename(aside / path.name)
    aside = aside.rename(target / f"{_ENTERING}{token}")
    for path in sorted(coming.iterdir(), key=lambda path: path.name == FILE_NAME):
        path.rename(target / path.name)
    coming.rmdir()
    sync(target)
    return _done(aside)


def _put_back(target: Path) -> None:
    """Undo or finish what an interrupted restore left in `target`."""
    if not target.is_dir():
        return
    for aside in target.glob(f"{_ENTERING}*"):
        if (target / FILE_NAME).is_file():
            _done(aside)
            continue
        # All of the former files are aside, so those of that name are new.
        for path in _ours(target):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        aside.rename(target / f"{_LEAVING}{aside.name.removeprefix(_ENTERING)}")
    for aside in target.glob(f"{_LEAVING}*"):
        for path in sorted(aside.iterdir(), key=lambda path: path.name == FILE_NAME):
            path.rename(target / path.name)
        aside.rmdir()
    for path in target.glob(f"{_COMING}*"):
        shutil.rmtree(path)


def _done(aside: Path) -> Path | None:
    """Keep the former files under their last name, if there were any."""
    if not any(aside.iterdir()):
        aside.rmdir()
        return None
    return aside.rename(aside.with_name(f"{_REPLACED}{aside.name.removeprefix(_ENTERING)}"))


def _ours(target: Path) -> list[Path]:
    """What belongs to a workspace in a folder; other files stay where they are."""
    names = {FILE_NAME, DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", *FOLDERS, *KEPT}
    return [path for path in target.iterdir() if path.name in names]


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
