"""Paths to the files an ingest reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval import parsers
from retrieval.parsers import Skipped
from retrieval.types import RetrievalError


@dataclass(frozen=True, slots=True)
class Source:
    """One file: the root it was found under (an absolute path) and its POSIX path relative to it, which is its document's id."""

    root: str
    name: str
    path: Path


def scan(paths: Sequence[Path], archives: bool = False) -> tuple[list[Source], list[Skipped]]:
    """The files to read, by root and name, and those left out with the reason. Archives are among the files only with `archives`.

    Raises RetrievalError for a missing or unreadable path, a single file of an unsupported format, and a folder without one
    supported file, so that nothing is changed by a mistake in a path.
    """
    if not paths:
        raise RetrievalError("no path was given; name at least one file or folder")
    sources: list[Source] = []
    skipped: list[Skipped] = []
    for path in paths:
        if not path.exists():
            raise RetrievalError(f"{path}: there is no such file or folder")
        root = path.resolve()
        if not os.access(root, os.R_OK | (os.X_OK if root.is_dir() else 0)):
            raise RetrievalError(f"{path}: cannot be read; check its permissions")
        if root.is_dir():
            found = sorted(_walk(root, skipped, archives), key=lambda source: source.name)
            if not found:
                suffixes = " ".join(sorted(parsers.SUFFIXES))
                raise RetrievalError(f"{path}: nothing in this folder can be ingested; supported are {suffixes}")
            sources.extend(found)
        elif (reason := _unsupported(root, archives)) is not None:
            raise RetrievalError(f"{path}: {reason}; supported are {' '.join(sorted(parsers.SUFFIXES))}")
        else:
            sources.append(Source(str(root), path.name, root))
    return sources, skipped


def _walk(root: Path, skipped: list[Skipped], archives: bool) -> Iterator[Source]:
    def refuse(error: OSError) -> None:
        raise RetrievalError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error

    for folder, folders, files in os.walk(root, onerror=refuse):
        here = Path(folder)
        for name in list(folders):
            if (here / name).is_symlink():
                folders.remove(name)
                skipped.append(Skipped((here / name).relative_to(root).as_posix(), "a link to a folder is not followed"))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            path = here / name
            relative = path.relative_to(root).as_posix()
            if (reason := _refusal(path, root, archives)) is not None:
                skipped.append(Skipped(relative.encode("utf-8", "backslashreplace").decode(), reason))
            else:
                yield Source(str(root), relative, path)


def _refusal(path: Path, root: Path, archives: bool) -> str | None:
    if path.is_symlink():
        target = path.resolve()
        if not target.is_relative_to(root):
            return "a link that leaves the folder is refused"
        if not target.exists():
            return "a link to nothing"
    if not path.is_file():
        return "not a regular file"
    if not _is_text(path.relative_to(root)):
        return "its name is not UTF-8; rename it"
    return _unsupported(path, archives)


def _unsupported(path: Path, archives: bool) -> str | None:
    if parsers.is_archive(path):
        return None if archives else "an archive is read only with --archives"
    return None if parsers.supported(path) else f"the format {path.suffix or '(no suffix)'} is not supported"


def _is_text(path: Path) -> bool:
    """Whether the name can be stored: names that are not UTF-8 come with lone surrogates."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
