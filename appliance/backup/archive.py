"""The form of a backup: a folder or a zip file with the files of a workspace and a manifest that names each with its size and sha256.

What is read from one is taken for hostile until its hash is right: paths that leave the folder, links, files that the manifest does not
name, and files longer than it says are refused before anything is put where it belongs.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from appliance.errors import ApplianceError, UsageError
from finetune.disk import sync

MANIFEST = "manifest.json"
DATABASE = "appliance.db"
_FORMAT = 1
# A manifest of a million files has about 200 MB.
_MANIFEST_BYTES = 1 << 28
_BLOCK = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")

Progress = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a backup."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds. `redacted` are settings whose secrets were left out; `audit_head` is number and hash of the newest entry."""

    created_at: str
    version: str
    revision: str
    generation: str | None
    audit_head: str
    redacted: tuple[str, ...]
    files: Mapping[str, Entry]

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.files.values())

    def text(self) -> str:
        return json.dumps({"format": _FORMAT, **asdict(self)}, ensure_ascii=False, indent=1, sort_keys=True)


def sealed(folder: Path, **facts: Any) -> Manifest:
    """The manifest of every file below `folder`."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sha256, size = digest(path)
        files[path.relative_to(folder).as_posix()] = Entry(size, sha256)
    return Manifest(files=files, **facts)


def digest(path: Path) -> tuple[str, int]:
    """The sha256 and size in bytes of a file."""
    found, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
            size += len(block)
    return found.hexdigest(), size


def is_zip(target: Path) -> bool:
    """Whether a backup of this name is one file."""
    return target.suffix.lower() == ".zip"


def write(source: Path, manifest: Manifest, target: Path, link: bool, progress: Progress) -> None:
    """Write the backup of the files in `source` to `target`, which must not be there: a zip file or a folder, as its name says.

    With `link` a folder shares the bytes of `source` where the file system can.
    """
    done = 0
    if not is_zip(target):
        target.mkdir()
        for name, entry in manifest.files.items():
            place(source / name, target / name, link)
            done += entry.bytes
            progress("writing", done, manifest.bytes, "bytes")
        (target / MANIFEST).write_text(manifest.text(), "utf-8")
        sync(target / MANIFEST)
        sync(target)
        return
    with target.open("xb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as out:
            out.writestr(MANIFEST, manifest.text())
            for name, entry in manifest.files.items():
                out.write(source / name, name)
                done += entry.bytes
                progress("writing", done, manifest.bytes, "bytes")
        file.flush()
        os.fsync(file.fileno())


def place(source: Path, target: Path, link: bool) -> None:
    """Copy a file, or with `link` give it a second name where that can be; the folders above it are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link and _linked(source, target):
        return
    shutil.copyfile(source, target)
    sync(target)


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        # Another file system, or one without links.
        return False
    return True


class Backup:
    """A backup being read. Raises UsageError where there is none, ApplianceError where it is damaged or would do harm."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._zip: zipfile.ZipFile | None = None
        if not place.exists():
            raise UsageError(f"there is no backup {place}")
        if not place.is_dir():
            try:
                self._zip = zipfile.ZipFile(place)
            except (zipfile.BadZipFile, OSError) as error:
                raise UsageError(f"{place} is no backup ({error}); name the folder or the zip file that `appliance backup` made") from error
        try:
            self.manifest, self.sha256 = self._read_manifest()
            self._check_names()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Backup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()

    def extract(self, folder: Path | None, progress: Progress) -> None:
        """Compare every file with the manifest, and with `folder` write it there. Raises ApplianceError at the first wrong one."""
        done = 0
        for name, entry in self.manifest.files.items():
            target = None if folder is None else folder / name
            if target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
            with self._opened(name) as source, open(target or os.devnull, "wb") as out:  # noqa: PTH123
                found, left = hashlib.sha256(), entry.bytes
                # One byte more than there may be shows a file that is too long, without reading all of it.
                while block := source.read(min(_BLOCK, left + 1)):
                    if len(block) > left:
                        raise self._damaged(f"{name} is longer than the {entry.bytes} bytes of the manifest")
                    found.update(block)
                    out.write(block)
                    left -= len(block)
                if left or found.hexdigest() != entry.sha256:
                    raise self._damaged(f"{name} is not as it was written (sha256 or size differs)")
                if target is not None:
                    out.flush()
                    os.fsync(out.fileno())
            done += entry.bytes
            progress("verifying" if folder is None else "restoring", done, self.manifest.bytes, "bytes")

    @contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        try:
            with self._zip.open(name) if self._zip is not None else (self.place / name).open("rb") as file:
                yield file
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, FileNotFoundError, NotImplementedError, RuntimeError) as error:
            raise self._damaged(f"{name} cannot be read: {error}") from error

    def _read_manifest(self) -> tuple[Manifest, str]:
        with self._opened(MANIFEST) as file:
            data = file.read(_MANIFEST_BYTES + 1)
        if len(data) > _MANIFEST_BYTES:
            raise self._damaged(f"{MANIFEST} is larger than any of ours")
        try:
            content = json.loads(data)
            if content.pop("format") != _FORMAT:
                raise self._damaged("it was made by a newer version of the appliance; restore it with that one")
            files = {str(name): Entry(int(entry["bytes"]), str(entry["sha256"])) for name, entry in content.pop("files").items()}
            manifest = Manifest(files=files, **{**content, "redacted": tuple(content["redacted"])})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise self._damaged(f"{MANIFEST} is not one of ours: {error!r}") from error
        return manifest, hashlib.sha256(data).hexdigest()

    def _check_names(self) -> None:
        for name, entry in self.manifest.files.items():
            parts = name.split("/")
            if "\\" in name or "\0" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts) or name == MANIFEST:
                raise self._damaged(f"the path {name!r} would leave the workspace's folder")
            if entry.bytes < 0 or not _SHA256.fullmatch(entry.sha256):
                raise self._damaged(f"{name}: its size or sha256 in the manifest is none")
        if DATABASE not in self.manifest.files:
            raise self._damaged(f"it has no {DATABASE}")
        held = self._members()
        if extra := sorted(held - {*self.manifest.files, MANIFEST}):
            raise self._damaged(f"it holds {extra[0]!r}, which its manifest does not name")
        if missing := sorted({*self.manifest.files} - held):
            raise self._damaged(f"{missing[0]} is missing")

    def _members(self) -> set[str]:
        """The names of all files in the backup; links and other special files are refused."""
        if self._zip is not None:
            infos = self._zip.infolist()
            names = {info.filename for info in infos}
            if len(names) != len(infos):
                raise self._damaged("it holds a file twice")
            if special := [
                info.filename for info in infos if info.is_dir() or stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG)
            ]:
                raise self._damaged(f"{special[0]} is a link or a special file")
            return names
        names = set()
        for path in self.place.rglob("*"):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise self._damaged(f"{path.relative_to(self.place)} is a link or a special file")
            if path.is_file():
                names.add(path.relative_to(self.place).as_posix())
        return names

    def _damaged(self, what: str) -> ApplianceError:
        return ApplianceError(f"the backup {self.place} cannot be used: {what}; nothing was changed")
