"""Hashing, locking and durable writing of model folders."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from appliance.errors import ApplianceError
from finetune.disk import sync

# What is being done, how much is done, and the whole if known (bytes). May be called from another thread.
Progress = Callable[[str, int, int | None], None]

_MODEL_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt", ".bin"})


class FileRecord(TypedDict):
    """Size in bytes, modification time in nanoseconds, and content hash of one file."""

    size: int
    mtime_ns: int
    sha256: str


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_files(folder: Path) -> list[Path]:
    """The files that make up a model: at most one folder deep (pooling and dense modules), nothing hidden, no record of ours."""
    found = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file() and path.suffix in _MODEL_SUFFIXES]
    inside = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return sorted(path for path in inside if path.relative_to(folder).as_posix() != "model.json")


def record_files(folder: Path, progress: Progress | None = None) -> dict[str, FileRecord]:
    """Hash every model file; keys are POSIX paths relative to `folder`."""
    records: dict[str, FileRecord] = {}
    paths = model_files(folder)
    total = sum(path.stat().st_size for path in paths)
    done = 0
    for path in paths:
        stat = path.stat()
        records[path.relative_to(folder).as_posix()] = {
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "sha256": sha256_file(path),
        }
        done += stat.st_size
        if progress is not None:
            progress("checking files", done, total)
    return records


def content_hash(records: dict[str, FileRecord], weights_only: bool) -> str:
    """One sha256 over the names and hashes of the weight files, or of all files."""
    weights = {name for name in records if name.endswith(".safetensors")} or {name for name in records if name.endswith(".bin")}
    digest = hashlib.sha256()
    for name in sorted(weights if weights_only else records):
        digest.update(f"{name}\0{records[name]['sha256']}\n".encode())
    return digest.hexdigest()


def sync_tree(folder: Path) -> None:
    """Make every file below `folder` readable for all users of the store, and flush files and folders to the disk."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(0o644)
        sync(path)


def folder_size(folder: Path) -> int:
    """Bytes below `folder`; files that vanish while looking do not count."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(base) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


@contextmanager
def file_lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock; the system releases it when the process dies. Calls `waiting` once if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses below `folder` into an ApplianceError with a remedy."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or "No space left" in str(error) or "os error 28" in str(error):
            raise ApplianceError(f"the disk is full under {folder}; free some space and pull again (nothing half-made was kept)") from error
        raise ApplianceError(f"cannot write the model under {folder}: {error}") from error
