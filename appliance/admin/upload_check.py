"""Whether a file is what its name says, found out from its bytes. Runs in a process of its own with limits: the file may be hostile.

Only the standard library is used, and nothing is unpacked to disk. The parsers check again what they read.
"""

from __future__ import annotations

import json
import stat
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Literal

# Bytes from which binary content is told, and those of an archive: members, bytes of all of them, and how many times the file's own size.
# Documents pack 2 to 30 times; a bomb packs a thousand times.
_HEAD = 1 << 16
_MEMBERS, _TOTAL, _RATIO, _SMALL = 20_000, 4 << 30, 300, 16 << 20
_TEXT = ("md", "markdown", "txt", "text", "html", "htm", "xhtml", "csv", "tsv", "jsonl", "ndjson", "json", "yaml", "toml")
# What an office file must hold to be one.
_PARTS = {"docx": "word/document.xml", "xlsx": "xl/workbook.xml", "pptx": "ppt/presentation.xml"}
_TARS: dict[str, Literal["r|", "r|gz"]] = {"tar": "r|", "tar.gz": "r|gz", "tgz": "r|gz"}
_MAGIC = {
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a zip archive or office file",
    b"\x1f\x8b": "gzip data",
    b"\x7fELF": "a program",
    b"MZ": "a program",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"SQLite format 3\0": "a database",
    b"\xd0\xcf\x11\xe0": "an old office file",
    b"PAR1": "Parquet data",
    b"ARROW1": "Arrow data",
}
_BOMS = (b"\xff\xfe", b"\xfe\xff")
_CPU_SECONDS, _MEMORY = 60, 1 << 30


class Refused(Exception):
    """The file is not taken; the message says why."""


def check(path: Path, suffix: str) -> None:
    """Raises Refused unless the content of `path` is of the format that `suffix` (lower case, without dot) names."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, path.stat().st_size - 8))
        tail = file.read()
    if not head:
        raise Refused("the file is empty")
    if suffix in _TEXT:
        _text(head, suffix)
    elif suffix == "pdf":
        _is(b"%PDF-" in head[:1024], suffix, head)
    elif suffix in ("zip", *_PARTS):
        _is(head.startswith(b"PK\x03\x04"), suffix, head)
        _zip(path, suffix)
    elif suffix in _TARS:
        _is(suffix == "tar" or head.startswith(b"\x1f\x8b"), suffix, head)
        _tar(path, suffix)
    elif suffix == "parquet":
        _is(head.startswith(b"PAR1") and tail.endswith(b"PAR1"), suffix, head)
    elif suffix == "arrow":
        _is(head.startswith((b"ARROW1", b"\xff\xff\xff\xff")), suffix, head)
    else:
        raise Refused(f"the format .{suffix} is not taken")


def _is(fits: bool, suffix: str, head: bytes) -> None:
    if not fits:
        found = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), "something else")
        raise Refused(f"it is called .{suffix}, but its content is {found}")


def _text(head: bytes, suffix: str) -> None:
    found = next((what for magic, what in _MAGIC.items() if head.startswith(magic) and (len(magic) > 2 or b"\0" in head)), None)
    if found is None and b"\0" in head and not head.startswith(_BOMS):
        found = "binary data"
    if found is not None:
        raise Refused(f"it is called .{suffix}, but its content is {found}")


def _zip(path: Path, suffix: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _sizes(path, [member.file_size for member in members])
            for member in members:
                _name(member.filename)
                if member.flag_bits & 1:
                    raise Refused(f"{member.filename[:100]} in it is encrypted")
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise Refused(f"{member.filename[:100]} in it is a link")
            names = {member.filename for member in members}
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise Refused(f"the archive is damaged ({error})") from error
    if suffix in _PARTS and not {"[Content_Types].xml", _PARTS[suffix]} <= names:
        raise Refused(f"it is called .{suffix}, but has no {_PARTS[suffix]} in it")


def _tar(path: Path, suffix: str) -> None:
    sizes: list[int] = []
    try:
        with tarfile.open(path, _TARS[suffix]) as archive:
            for member in archive:
                sizes.append(member.size)
                _sizes(path, sizes)
                _name(member.name)
                if not (member.isfile() or member.isdir()):
                    raise Refused(f"{member.name[:100]} in it is a link or a device")
    except (tarfile.TarError, zlib.error, OSError, ValueError, EOFError) as error:
        raise Refused(f"the archive is damaged ({error})") from error


def _sizes(path: Path, sizes: list[int]) -> None:
    if len(sizes) > _MEMBERS:
        raise Refused(f"it has more than {_MEMBERS:,} members; pack it as several archives")
    limit = min(_TOTAL, max(_SMALL, _RATIO * path.stat().st_size))
    if sum(sizes) > limit:
        raise Refused(f"it unpacks to more than {limit >> 20} MB, which no real documents of its size do")


def _name(name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or (len(name) > 1 and name[1] == ":") or "\0" in name:
        raise Refused(f"a member is called {name[:100]!r}, which leads out of the archive")


def _limit() -> None:
    """Bound this process, where the system can."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


def main() -> None:
    """``python -c … PATH SUFFIX``: prints null, or why the file is refused, as JSON."""
    _limit()
    try:
        check(Path(sys.argv[1]), sys.argv[2])
    except Refused as error:
        print(json.dumps(str(error)))
    except MemoryError:
        print(json.dumps("it needs more memory than a document of its size should"))
    else:
        print("null")
