"""`appliance backup`: a consistent copy of a workspace, made while it is in use, and checked before it is called one."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil
import tomlkit

from appliance.backup.archive import DATABASE, Backup, Manifest, Progress, is_zip, place, sealed, write
from appliance.config import FILE_NAME
from appliance.errors import ApplianceError, UsageError
from appliance.store.audit_log import GENESIS, HEAD
from appliance.workspace import FOLDERS, Workspace
from finetune.disk import sync

# Besides the index, whose files the database names.
KEPT = (*(name for name in FOLDERS if name != "index"), "dictionaries", "synonyms", "attempts")
_STAGING = ".backup-"
# Snapshots taken until none of the files they name is gone before it is copied.
_TRIES = 5
_SECRETS = ("password", "secret", "token", "api_key")


@dataclass(frozen=True, slots=True)
class Made:
    """A finished backup; `manifest_sha256` vouches for all of it.

    `missing` are files of adapters and data sets that the database names and the workspace itself does not have.
    """

    place: Path
    files: int
    bytes: int
    generation: str | None
    redacted: tuple[str, ...]
    missing: tuple[str, ...]
    manifest_sha256: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "place": str(self.place), "redacted": list(self.redacted), "missing": list(self.missing)}


def backup(workspace: Workspace, target: Path, *, link: bool, progress: Progress) -> Made:
    """Copy the workspace to `target` (a new folder, or a zip file if it is called so) while others use and change it.

    The copy is what the database was at one moment, with the files it names; open jobs are cancelled in it. It holds no secret in plain
    text: the workspace's own is left out, and so are passwords in the configuration. With `link` a folder on the same disk shares the
    index's and adapters' bytes.

    Raises UsageError for a target that exists or a database in PostgreSQL, ApplianceError if a file of the index is missing.
    """
    if workspace.db.is_postgres:
        raise UsageError(
            "this workspace's database is in PostgreSQL: back it up with pg_dump and copy the folder; see docs/operations.md#postgresql"
        )
    target = target.absolute()
    if target.exists():
        raise UsageError(f"{target} exists; name a new folder or zip file")
    if target.is_relative_to(workspace.root):
        raise UsageError(f"{target} is inside the workspace; name a place outside, best on another disk")
    if link and is_zip(target):
        raise UsageError("--link is for folders: a zip file holds copies")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is no folder")
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    _discard(partial)
    try:
        with _staged(workspace, progress) as (folder, manifest, missing):
            write(folder, manifest, partial, link, progress)
        with Backup(partial) as made:
            made.extract(None, progress)
            sha256 = made.sha256
        partial.rename(target)
        sync(target.parent)
    except BaseException:
        _discard(partial)
        raise
    result = Made(target, len(manifest.files), manifest.bytes, manifest.generation, manifest.redacted, missing, sha256)
    with workspace.db.write() as connection:
        workspace.db.audit(connection, "workspace.backup", {"files": result.files, "bytes": result.bytes, "manifest": sha256})
    return result


@contextmanager
def _staged(workspace: Workspace, progress: Progress) -> Iterator[tuple[Path, Manifest, tuple[str, ...]]]:
    """All files of a backup in a folder inside the workspace, where second names cost no space and nobody removes them; what is missing."""
    for old in workspace.root.glob(f"{_STAGING}*"):
        if not old.name.removeprefix(_STAGING).isdecimal() or not psutil.pid_exists(int(old.name.removeprefix(_STAGING))):
            _discard(old)
    folder = workspace.root / f"{_STAGING}{os.getpid()}"
    try:
        missing: tuple[str, ...] = ()
        for attempt in range(1, _TRIES + 1):
            _discard(folder)
            folder.mkdir()
            facts = _snapshot(workspace, folder / DATABASE)
            if (gone := _pin_index(workspace.root / "index", folder)) is not None:
                if attempt == _TRIES:
                    raise ApplianceError(f"{gone} is missing; look at `appliance index verify`, nothing was backed up")
                continue
            for name in KEPT:
                _copy(workspace.root / name, folder / name, link=name == "adapters")
            before, missing = missing, _missing(folder, workspace.root)
            # What was removed meanwhile is not named by the next snapshot; what that names and nobody has was lost long ago.
            if missing in ((), before):
                break
        config, redacted = redact((workspace.root / FILE_NAME).read_text("utf-8"))
        (folder / FILE_NAME).write_text(config, "utf-8")
        progress("hashing", 0, None)
        yield folder, sealed(folder, redacted=redacted, **facts), missing
    finally:
        _discard(folder)


def _snapshot(workspace: Workspace, copy: Path) -> dict[str, Any]:
    """SQLite's own copy of the database at one moment, without its secret and locks; what the manifest says of it."""
    began = datetime.now(UTC)
    try:
        return {"created_at": began.isoformat(timespec="seconds"), "version": version("appliance"), **_copy_database(workspace, copy)}
    except sqlite3.Error as error:
        raise ApplianceError(
            f"the database {workspace.db.name} could not be copied to {copy}: {error}; is the disk full or failing?"
        ) from error


def _copy_database(workspace: Workspace, copy: Path) -> dict[str, Any]:
    with closing(sqlite3.connect(str(workspace.db.engine.url.database))) as source, closing(sqlite3.connect(copy)) as database:
        source.backup(database)
        # The copy is one file; what is taken out of it is overwritten.
        database.execute("PRAGMA journal_mode=DELETE")
        database.execute("PRAGMA secure_delete=ON")
        with database:
            database.execute("DELETE FROM setting WHERE key = 'secret'")
            database.execute("DELETE FROM lock")
            # The files that were sent in are not part of a backup, and nobody expects an old job to run after a restore.
            database.execute("DELETE FROM upload")
            database.execute(
                "UPDATE job SET state = 'cancelled', process = NULL, finished_at = ?, error = 'not done when the backup was made' "
                "WHERE state IN ('queued', 'running')",
                (datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),),
            )
        problem = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise ApplianceError(f"the database {workspace.db.name} is damaged: {problem}; restore it from an older backup")
        revision = database.execute("SELECT version_num FROM alembic_version").fetchone()[0]
        generation = database.execute("SELECT value FROM pointer WHERE name = 'index'").fetchone()
        head = database.execute("SELECT value FROM setting WHERE key = ?", (HEAD,)).fetchone()
    return {
        "revision": revision,
        "generation": generation and generation[0],
        "audit_head": head[0] if head else f"0 {GENESIS}",
    }


def _pin_index(index: Path, folder: Path) -> Path | None:
    """Give the segments and manifests that the copied database names a second name; the first that is missing."""
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        segments: list[Path] = [index / "segments" / name for (name,) in database.execute("SELECT id FROM segment")]
        manifests: list[Path] = [index / "manifests" / name for (name,) in database.execute("SELECT manifest FROM generation")]
    for path in (*segments, *manifests):
        try:
            for file in [path] if path.is_file() else list(path.iterdir()):
                place(file, folder / "index" / file.relative_to(index), link=True)
        except FileNotFoundError:
            return path
    # A segment that was being deleted may have been seen in part.
    for segment in segments:
        pinned = folder / "index" / "segments" / segment.name
        described = pinned / "segment.json"
        names = json.loads(described.read_bytes())["files"] if described.is_file() else [described.name]
        for name in names:
            if not (pinned / name).is_file():
                return segment / name
    return None


def _missing(folder: Path, root: Path) -> tuple[str, ...]:
    """Adapters, model versions and data sets that the copied database names and the copy does not have, as paths in the workspace."""
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        named = [root / path for (path,) in database.execute("SELECT path FROM adapter UNION SELECT path FROM dataset ORDER BY path")]
    inside = [str(path.relative_to(root)) for path in named if path.is_relative_to(root)]
    return tuple(name for name in inside if not (folder / name).exists())


def _copy(source: Path, target: Path, link: bool) -> None:
    """Copy what is below a folder, except what is being written now (hidden or temporary names)."""
    for path, folders, _ in os.walk(source):
        folders[:] = [name for name in folders if not _passing(name)]
        _copy_files(Path(path), target / Path(path).relative_to(source), link)


def _copy_files(source: Path, target: Path, link: bool) -> None:
    """Copy the files of one folder as they are together: where some go meanwhile, as an old checkpoint's do, the rest is copied anew."""
    while True:
        names = _files(source)
        with suppress(FileNotFoundError):
            for name in names:
                place(source / name, target / name, link)
            if names <= _files(source):
                return
        shutil.rmtree(target, ignore_errors=True)


def _files(folder: Path) -> set[str]:
    """The names of the finished files in a folder; none where it is gone."""
    try:
        return {file.name for file in folder.iterdir() if not _passing(file.name) and not file.is_symlink() and file.is_file()}
    except FileNotFoundError:
        return set()


def _passing(name: str) -> bool:
    return name.startswith(".") or name.endswith((".tmp", ".partial"))


def redact(text: str) -> tuple[str, tuple[str, ...]]:
    """A configuration without secrets: passwords in URLs, settings and options of a command named like one; and what lost theirs."""
    document = tomlkit.parse(text)
    found: list[str] = []
    # The copy's database is beside it, whatever was configured.
    document.get("database", {}).pop("url", None)

    def clean(here: Any, path: str) -> None:
        for key, value in list(here.items()):
            name = f"{path}{key}"
            if isinstance(value, dict):
                clean(value, f"{name}.")
            elif isinstance(value, str) and key.lower().endswith(_SECRETS):
                del here[key]
                found.append(name)
            elif isinstance(value, str) and (bare := _without_password(str(value))) != value:
                here[key] = bare
                found.append(name)
            elif isinstance(value, list):
                words = [item if isinstance(item, str) else "" for item in value]
                secret = _secret_words(words)
                urls = [at for at, word in enumerate(words) if _without_password(word) != word]
                for at in urls:
                    value[at] = _without_password(words[at])
                for at in reversed(secret):
                    del value[at]
                found.extend([name] if urls or secret else [])

    clean(document, "")
    return tomlkit.dumps(document), tuple(found)


def _secret_words(words: Sequence[str]) -> list[int]:
    """The places of ``--api-key VALUE`` or ``--api-key=VALUE`` and of options named like it."""
    found: list[int] = []
    for at, word in enumerate(words):
        option, joined, _ = word.partition("=")
        if option.startswith("--") and option.replace("-", "_").lower().endswith(_SECRETS):
            follows = not joined and at + 1 < len(words) and not words[at + 1].startswith("--")
            found += [at, at + 1] if follows else [at]
    return found


def _without_password(value: str) -> str:
    try:
        parts = urlsplit(value)
        if not parts.password:
            return value
    except ValueError:
        return value
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}@{host}"))


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
