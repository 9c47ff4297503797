"""Archives: their members as files in a folder of our own, within limits of size, number and compression."""

from __future__ import annotations

import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from retrieval.parsers import ParseError, Skipped, clean, is_archive, supported

_MEMBER_BYTES = 512 << 20
_TOTAL_BYTES = 4 << 30
_MEMBERS = 100_000
# Documents pack 2 to 30 times; a bomb packs a thousand times.
_RATIO = 300
_SMALL = 16 << 20
_BLOCK = 1 << 20


class Member(NamedTuple):
    """One unpacked file: its POSIX path inside the archive, and where it lies now."""

    name: str
    path: Path


class _Entry(NamedTuple):
    name: str
    size: int
    refusal: str | None
    source: zipfile.ZipInfo | tarfile.TarInfo


def unpack(path: Path, name: str, folder: Path) -> Iterator[Member | Skipped]:
    """Unpacks what can be ingested into `folder`, under names of our own, so that no member can leave it.

    Hidden files are passed over, archives inside the archive are not followed. Raises ParseError if the archive is damaged, or a bomb.
    """
    try:
        yield from _unpack(path, name, folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise ParseError(f"{name}: the archive cannot be unpacked ({type(error).__name__}: {error}); pack it again") from error


def _unpack(path: Path, name: str, folder: Path) -> Iterator[Member | Skipped]:
    limit = max(_SMALL, _RATIO * path.stat().st_size)
    seen: set[str] = set()
    total = 0
    with _open(path) as archive:
        for number, entry in enumerate(_entries(archive), 1):
            if number > _MEMBERS:
                raise ParseError(f"{name}: more than {_MEMBERS:,} members; pack it as several archives")
            shown = f"{name}/{entry.name}"
            if any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in entry.name.split("/")):
                continue
            refusal = entry.refusal or _refusal(entry.name, seen)
            if refusal is None and entry.size > _MEMBER_BYTES:
                refusal = f"{entry.size >> 20} MB, at most {_MEMBER_BYTES >> 20} MB are read of one member"
            if refusal is not None:
                yield Skipped(shown, refusal)
                continue
            seen.add(entry.name)
            target = folder / f"{number}{PurePosixPath(entry.name).suffix}"
            with target.open("wb") as out, _member(archive, entry) as file:
                while block := file.read(_BLOCK):
                    total += len(block)
                    if total > min(limit, _TOTAL_BYTES):
                        what = f"{_TOTAL_BYTES >> 30} GB" if limit > _TOTAL_BYTES else f"{_RATIO} times its size, as no real documents do"
                        raise ParseError(f"{name}: unpacks to more than {what}; it is not read")
                    out.write(block)
            yield Member(entry.name, target)


def _open(path: Path) -> zipfile.ZipFile | tarfile.TarFile:
    # As a stream, so that no member of a compressed archive is unpacked twice.
    return zipfile.ZipFile(path) if path.suffix.lower() == ".zip" else tarfile.open(path, "r|*")


def _entries(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[_Entry]:
    if isinstance(archive, zipfile.ZipFile):
        for info in archive.infolist():
            if not info.is_dir():
                is_link = stat.S_ISLNK(info.external_attr >> 16)
                refusal = "a link is refused" if is_link else "it is encrypted; unpack it with its password" if info.flag_bits & 1 else None
                yield _Entry(_zip_name(info), info.file_size, refusal, info)
        return
    for member in archive:
        if not member.isdir():
            refusal = None if member.isreg() else "a link is refused" if member.islnk() or member.issym() else "not a regular file"
            yield _Entry(_decode(member.name.encode("utf-8", "surrogateescape")), member.size, refusal, member)


def _member(archive: zipfile.ZipFile | tarfile.TarFile, entry: _Entry) -> IO[bytes]:
    if isinstance(archive, zipfile.ZipFile) and isinstance(entry.source, zipfile.ZipInfo):
        return archive.open(entry.source)
    if isinstance(archive, tarfile.TarFile) and isinstance(entry.source, tarfile.TarInfo):
        file = archive.extractfile(entry.source)
        if file is not None:
            return file
    raise tarfile.ExtractError(f"{entry.name} is no file")


def _zip_name(info: zipfile.ZipInfo) -> str:
    # Without the flag for UTF-8 the name is in the packer's own encoding, which zipfile takes for cp437.
    return clean(info.filename) if info.flag_bits & 0x800 else _decode(info.filename.encode("cp437", "replace"))


def _decode(name: bytes) -> str:
    try:
        return clean(name.decode("utf-8"))
    except UnicodeDecodeError:
        return clean(name.decode("gb18030", "replace"))


def _refusal(name: str, seen: set[str]) -> str | None:
    if name.startswith("/") or "\\" in name or ".." in name.split("/") or re.match(r"[A-Za-z]:", name):
        return "a path that leaves the archive is refused"
    if name in seen:
        return "the archive has two members of this name; the first was read"
    path = PurePosixPath(name)
    if is_archive(Path(path)):
        return "an archive inside an archive is not followed"
    return None if supported(Path(path)) else f"the format {path.suffix or '(no suffix)'} is not supported"
