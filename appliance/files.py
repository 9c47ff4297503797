"""Writing a file whole or not at all, by several processes at once if it must be."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from finetune.disk import sync


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A place to write what takes the place of `path`, durably, when the block ends; if it fails, `path` stays as it was.

    Raises OSError if the folder cannot be written.
    """
    # A name of its own, because two processes may write the same file at once: the last one stays.
    # It ends as the file does, by which it may be read back before it takes its place.
    place = path.with_name(f".tmp.{secrets.token_hex(4)}.{path.name}")
    try:
        yield place
        sync(place)
        place.replace(path)
    except BaseException:
        place.unlink(missing_ok=True)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """`beside` as an open UTF-8 text file."""
    with beside(path) as place, place.open("w", encoding="utf-8", newline="\n") as file:
        yield file


def write_whole(path: Path, text: str) -> None:
    """`whole_file` for a text in hand."""
    with whole_file(path) as file:
        file.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """`beside` for bytes in hand."""
    with beside(path) as place:
        place.write_bytes(data)
