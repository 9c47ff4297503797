"""Writing a file whole or not at all, by several processes at once if it must be."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 text file that takes the place of `path` when the block ends; if it fails, `path` stays as it was.

    Raises OSError if the folder cannot be written.
    """
    # A name of its own, because two processes may write the same file at once: the last one stays.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """`whole_file` for bytes in hand."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """`whole_file` for a text in hand."""
    with whole_file(path) as file:
        file.write(text)
