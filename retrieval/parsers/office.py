"""What DOCX, PPTX and XLSX have in common: a zip archive of XML, checked before it is unpacked."""

from __future__ import annotations

import zipfile
from pathlib import Path

from retrieval.parsers import ParseError

_LIMIT = 1 << 30
# Office files pack their XML some 5 to 30 times; only emptiness packs better than this.
_RATIO = 300
_SMALL = 16 << 20
_OLE = b"\xd0\xcf\x11\xe0"


def check(path: Path, name: str, kind: str) -> None:
    """Raises ParseError if the file is no zip archive of kind "DOCX", "PPTX" or "XLSX", or unpacks to too much."""
    with path.open("rb") as file:
        begin = file.read(4)
    if begin == _OLE:
        raise ParseError(f"{name}: it is protected by a password, or in the format before 2007; remove the password, save it as {kind}")
    if not zipfile.is_zipfile(path):
        raise ParseError(f"{name}: this is no {kind} file (no zip archive inside); save it from its own program as .{kind.lower()}")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    # zipfile never unpacks more of a member than its declared size.
    size = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if size > _LIMIT:
        raise ParseError(f"{name}: unpacks to {size >> 20} MB, at most {_LIMIT >> 20} MB are read; split the file")
    if size > _SMALL and size > _RATIO * packed:
        raise ParseError(f"{name}: unpacks to {size // max(packed, 1)} times its size, as no real {kind} file does; it is not opened")
