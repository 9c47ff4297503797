"""Files sent to a running appliance: written to a quarantine, checked by content, and kept only until the job that takes them has ended.

A file lies in ``uploads/quarantine/ID`` until it is checked, then in ``uploads/ID/NAME``; its name becomes the document's id. One that is
refused is removed at once, one that no job takes after a day.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import sqlalchemy as sa

from appliance.errors import ApplianceError, UsageError
from appliance.store.database import Database, utcnow
from appliance.store.tables_admin import job
from appliance.store.tables_admin import upload as table
from appliance.workspace import Workspace
from finetune.llama_factory import REGISTRY
from finetune.reading import FORMATS
from retrieval.parsers import ARCHIVES, SUFFIXES

logger = logging.getLogger("appliance.admin.uploads")

Purpose = Literal["documents", "dataset"]
KEPT = timedelta(hours=24)
_QUARANTINE = "quarantine"
_CHECK_SECONDS = 120
_NAME_CHARS, _PART_BYTES, _PARTS = 500, 200, 16
# Files that may wait, and of how many largest ones the bytes.
_WAITING_FILES, _WAITING_LARGEST = 1000, 16
# Letters of every script, but nothing invisible, and nothing that one system or another takes for more than a name.
_ODD = re.compile(r'[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff<>:"|?*\\]')


class Refused(UsageError):
    """A file that is not taken; the message says why. It has been removed."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was taken. `kind` is its format, `caller` the key that sent it, `job` what takes it."""

    id: str
    name: str
    kind: str
    bytes: int
    sha256: str
    caller: str
    job: str | None
    created_at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "kind": self.kind,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "job": self.job,
            "created_at": self.created_at.isoformat(timespec="seconds"),
        }


@dataclass(slots=True)
class Incoming:
    """A file that is being received. `write` raises OSError on a full disk, and Refused once `full` says that there is no more room."""

    id: str
    name: str
    suffix: str
    path: Path
    file: BinaryIO
    digest: Any
    full: Callable[[], bool]
    size: int = 0

    def write(self, block: bytes) -> None:
        if self.full():
            raise Refused("too many files are being sent at once or wait; have some of them ingested or registered first")
        self.file.write(block)
        self.digest.update(block)
        self.size += len(block)


class Uploads:
    """The files sent to a workspace."""

    def __init__(self, workspace: Workspace, database: Database | None = None) -> None:
        """`database` carries the name of who acts, for the audit log."""
        self._folder = workspace.root / "uploads"
        self._database = database or workspace.db
        self._room = _WAITING_LARGEST * workspace.config.server.max_upload_bytes

    @contextmanager
    def receive(self, name: str, purpose: Purpose) -> Iterator[Incoming]:
        """A place in the quarantine; what is left there when the block ends is removed.

        Raises Refused for a name that cannot be taken, and where too many files wait already.
        """
        kept = safe_name(name)
        suffix = format_of(kept, purpose)
        quarantine = self._folder / _QUARANTINE
        quarantine.mkdir(parents=True, exist_ok=True)
        waiting = self.all()
        if len(waiting) >= _WAITING_FILES or self._full():
            raise Refused(f"{len(waiting)} files wait to be ingested or registered, which is enough; do that with some of them first")
        identity = f"upl-{secrets.token_hex(8)}"
        path = quarantine / identity
        try:
            with path.open("wb") as file:
                yield Incoming(identity, kept, suffix, path, file, hashlib.sha256(), self._full)
        finally:
            path.unlink(missing_ok=True)

    def _full(self) -> bool:
        """Whether what waits and what is being received take up the room; others may be sending at the same time."""
        # Unlike rglob, walk goes on where a folder is removed meanwhile.
        found = (Path(folder, name) for folder, _, names in os.walk(self._folder) for name in names)
        return sum(map(_size, found)) >= self._room

    def release(self, incoming: Incoming, caller: str) -> Upload:
        """Check a received file by its content and take it. Raises Refused (the file is removed), OSError on a full disk."""
        incoming.file.flush()
        os.fsync(incoming.file.fileno())
        if why := _checked(incoming.path, incoming.suffix):
            self.refuse(incoming.name, why)
        target = self._folder / incoming.id / PurePosixPath(incoming.name)
        target.parent.mkdir(parents=True)
        incoming.path.replace(target)
        now = utcnow()
        made = Upload(incoming.id, incoming.name, incoming.suffix, incoming.size, incoming.digest.hexdigest(), caller, None, now)
        with self._database.write() as connection:
            connection.execute(table.insert().values({field: getattr(made, field) for field in Upload.__slots__}))
            facts = {"upload": made.id, "name": made.name, "bytes": made.bytes, "sha256": made.sha256}
            self._database.audit(connection, "upload.add", facts)
        return made

    def refuse(self, name: str, why: str) -> None:
        """Log that a file was refused, and raise Refused."""
        with self._database.write() as connection:
            self._database.audit(connection, "upload.refuse", {"name": name, "why": why})
        raise Refused(f"{name} is refused: {why}")

    def all(self, caller: str | None = None) -> list[Upload]:
        """The files that wait or are being taken, oldest first; those of one caller, or all."""
        query = sa.select(table).order_by(table.c.created_at, table.c.id)
        query = query if caller is None else query.where(table.c.caller == caller)
        with self._database.read() as connection:
            return [Upload(**row._asdict()) for row in connection.execute(query)]

    def waiting(self, ids: Collection[str], caller: str) -> list[Upload]:
        """These files of the caller's that no job has taken, in the order of `ids`. Raises UsageError naming one that is not there."""
        found = {upload.id: upload for upload in self.all(caller) if upload.job is None}
        for identity in ids:
            if identity not in found:
                raise UsageError(f"no upload {identity!r} of this key waits; it may be taken by a job already, or older than a day")
        return [found[identity] for identity in dict.fromkeys(ids)]

    def take(self, uploads: Sequence[Upload], job: str) -> None:
        """Leave the files to a job. Raises UsageError if another one was faster."""
        ids = [upload.id for upload in uploads]
        with self._database.write() as connection:
            free = sa.and_(table.c.id.in_(ids), table.c.job.is_(None))
            if connection.execute(table.update().where(free).values(job=job)).rowcount != len(ids):
                raise UsageError("another job has taken one of the uploads already; send the file again")

    def place(self, upload: Upload) -> tuple[Path, Path]:
        """(the folder that the file's name starts at, the file)."""
        return self._folder / upload.id, self._folder / upload.id / PurePosixPath(upload.name)

    def taken(self, job: str) -> None:
        """Remove the files of a job that has ended."""
        self._remove(sa.select(table.c.id).where(table.c.job == job))

    def remove(self, upload: Upload) -> None:
        """Remove a file that is not wanted any more."""
        self._remove(sa.select(table.c.id).where(table.c.id == upload.id, table.c.job.is_(None)))
        with self._database.write() as connection:
            self._database.audit(connection, "upload.remove", {"upload": upload.id, "name": upload.name})

    def expire(self) -> None:
        """Remove what nobody took or whose job has ended or never was, and what a killed process left in the quarantine or beside the
        table."""
        old = table.c.created_at < utcnow() - KEPT
        unknown = sa.or_(table.c.job.is_(None), table.c.job.not_in(sa.select(job.c.id)))
        over = table.c.job.in_(sa.select(job.c.id).where(job.c.finished_at.is_not(None)))
        self._remove(sa.select(table.c.id).where(sa.or_(over, sa.and_(old, unknown))))
        known = {upload.id for upload in self.all()}
        places = [*self._folder.glob("upl-*"), *(self._folder / _QUARANTINE).glob("upl-*")]
        for place in places:
            if place.name not in known and time.time() - place.stat().st_mtime > KEPT.total_seconds():
                _erase(place)

    def _remove(self, which: sa.Select[Any]) -> None:
        with self._database.read() as connection:
            ids = list(connection.execute(which).scalars())
        for identity in ids:
            _erase(self._folder / identity)
        if ids:
            with self._database.write() as connection:
                connection.execute(table.delete().where(table.c.id.in_(ids)))


def safe_name(name: str) -> str:
    """`name` as a relative POSIX path in NFC. Raises Refused where it could lead anywhere else, or be taken for another."""
    kept = unicodedata.normalize("NFC", name)
    parts = kept.split("/")
    reason = ""
    if not kept.strip() or len(kept) > _NAME_CHARS or len(parts) > _PARTS:
        reason = f"give 1 to {_NAME_CHARS} characters in at most {_PARTS} parts"
    elif found := _ODD.search(kept):
        reason = f"it has {found.group()!r} in it"
    elif any(part in ("", ".", "..") or part.startswith(".") or part != part.strip() or part.endswith(".") for part in parts):
        reason = "a part of it is empty, hidden, or no name; give a relative path like handbook/visiting.md"
    elif any(len(part.encode()) > _PART_BYTES for part in parts):
        reason = f"a part of it has more than {_PART_BYTES} bytes"
    if reason:
        raise Refused(f"{name[:100]!r} cannot be a file's name: {reason}")
    return kept


def format_of(name: str, purpose: Purpose) -> str:
    """The suffix that says how the file is read, without its dot. Raises Refused for one that is not read for this purpose."""
    known = (*SUFFIXES, *ARCHIVES) if purpose == "documents" else FORMATS
    if purpose == "dataset" and name.rpartition("/")[2] == REGISTRY:
        raise Refused(f"{name} is refused: it names other files; send each data set by itself")
    # Longest first, so that .tar.gz is not taken for .gz.
    for suffix in sorted(known, key=len, reverse=True):
        if name.lower().endswith(suffix) and len(name.rpartition("/")[2]) > len(suffix):
            return suffix.removeprefix(".")
    raise Refused(f"{name} is refused: for {purpose} these formats are read: {' '.join(sorted(known))}")


def _checked(path: Path, suffix: str) -> str | None:
    """Why the content does not fit the suffix, None if it does; see `appliance.admin.upload_check`."""
    program = [sys.executable, "-P", "-c", "from appliance.admin.upload_check import main; main()", str(path), suffix]
    try:
        done = subprocess.run(program, capture_output=True, timeout=_CHECK_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"it could not be checked within {_CHECK_SECONDS} seconds"
    except OSError as error:
        raise ApplianceError(f"the file could not be checked: {error}") from error
    if done.returncode != 0:
        if done.returncode < 0:
            # Killed at one of its limits.
            return "it could not be checked: looking into it takes too much memory or time"
        logger.error("the check of a .%s file that was sent in failed: %s", suffix, done.stderr.decode(errors="replace"))
        return "it could not be checked: the check itself failed, and the operator's log says why"
    why: str | None = json.loads(done.stdout)
    return why


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        # It was released meanwhile.
        return 0


def _erase(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)
