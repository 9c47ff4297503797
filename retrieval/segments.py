"""Immutable segments on disk: `<id>/vectors.npy`, `lexical.bin`, `ann.faiss` in big ones, and `segment.json` with size and hash of each.

A segment is written as `<id>.tmp`, made durable, and renamed: a folder without `.tmp` is complete. An opened one is mapped, not loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval import ann, postings
from retrieval.ann import Ann
from retrieval.embed import Vectors
from retrieval.postings import Postings
from retrieval.types import IndexCorrupt

REMEDY = "run `appliance index rebuild`, or restore a backup"
_FORMAT = 2
_FILES = ("vectors.npy", "lexical.bin")
_ANN = "ann.faiss"
# Rows copied at one time.
_BLOCK = 1 << 16

# Files whose content was compared with its hash: path to size, modification time and inode as they were then.
Checked = MutableMapping[Path, tuple[int, int, int]]


@dataclass(frozen=True, slots=True)
class Segment:
    """An opened, checked segment. `vectors` [n, dim] and `postings` are mapped from the files; `sha256` is the hash of segment.json.

    `ann` is the approximate index of a big segment; one without is searched exactly.
    """

    id: str
    sha256: str
    embedding_hash: str
    vectors: Vectors
    postings: Postings
    ann: Ann | None = None


def write_segment(folder: Path, id: str, vectors: Vectors, postings: Postings, embedding_hash: str, step: Callable[[str], None]) -> None:
    """Write segment `id` below `folder` durably. Raises OSError (for instance when the disk is full), leaving nothing behind."""

    def fill(place: Path) -> dict[str, Any]:
        _new_vectors(place / "vectors.npy", vectors.shape)[:] = vectors
        postings.save(place / "lexical.bin")
        return {"chunks": len(vectors), "dim": vectors.shape[1], "search": {"method": "exact"}}

    _write(folder, id, embedding_hash, fill, step)


def merge_segments(
    folder: Path,
    id: str,
    parts: Sequence[tuple[Segment, NDArray[np.int64]]],
    languages: NDArray[np.int32],
    embedding_hash: str,
    step: Callable[[str], None],
) -> dict[str, Any]:
    """Write segment `id` from rows (ascending) of opened segments, in the order of `parts`; how it is searched (`ann.build`).

    `languages` [n] numbers the language of each new row. Nothing is embedded; memory stays bounded. Raises OSError as `write_segment`.
    """
    made: dict[str, Any] = {}

    def fill(place: Path) -> dict[str, Any]:
        dim = parts[0][0].vectors.shape[1]
        vectors = _new_vectors(place / "vectors.npy", (len(languages), dim))
        end = 0
        for segment, rows in parts:
            for start in range(0, len(rows), _BLOCK):
                block = rows[start : start + _BLOCK]
                vectors[end : end + len(block)] = segment.vectors[block]
                end += len(block)
                postings.release(segment.vectors)
                postings.release(vectors)
        postings.merge([(segment.postings, rows) for segment, rows in parts], place / "lexical.bin")
        made.update(ann.build(vectors, languages, place / _ANN))
        return {"chunks": len(vectors), "dim": dim, "search": made}

    _write(folder, id, embedding_hash, fill, step)
    return made


def describe(folder: Path, id: str, sha256: str | None = None) -> tuple[dict[str, Any], str]:
    """The content and hash of a segment's segment.json. Raises IndexCorrupt if it is missing, damaged, or not the one `sha256` names."""
    path = folder / id / "segment.json"
    data = read(path)
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise IndexCorrupt(f"{path}: the content is not what the generation's manifest names; {REMEDY}")
    try:
        description = json.loads(data)
    except ValueError as error:
        raise IndexCorrupt(f"{path}: not valid JSON ({error}); {REMEDY}") from error
    if not isinstance(description, dict) or description.get("format") != _FORMAT or not set(_FILES) <= set(description.get("files", ())):
        raise IndexCorrupt(f"{path}: not a segment description of format {_FORMAT}; {REMEDY}")
    return description, found


def open_segment(folder: Path, id: str, sha256: str | None = None, checked: Checked | None = None) -> Segment:
    """Check every file of a segment and map it. Raises IndexCorrupt naming the first bad file and the remedy.

    Checking reads every byte: a gigabyte or so a second. A file in `checked` that looks as it did when it was checked is not read again.
    """
    description, found = describe(folder, id, sha256)
    for name, expected in description["files"].items():
        _check(folder / id / name, expected, checked if checked is not None else {})
    vectors = np.load(folder / id / "vectors.npy", mmap_mode="r", allow_pickle=False)
    index = ann.load(folder / id / _ANN, description["search"]["scanned"]) if _ANN in description["files"] else None
    return Segment(id, found, description["embedding"], vectors, Postings.load(folder / id / "lexical.bin"), index)


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file or a folder's entries durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(folder: Path, id: str, embedding_hash: str, fill: Callable[[Path], dict[str, Any]], step: Callable[[str], None]) -> None:
    """Let `fill` write the files and say what is in them, describe them, and make all of it durable."""
    place, temporary = folder / id, folder / f"{id}.tmp"
    temporary.mkdir(parents=True)
    try:
        facts = fill(temporary)
        names = sorted(path.name for path in temporary.iterdir())
        files = {name: {"bytes": (temporary / name).stat().st_size, "sha256": hash_file(temporary / name)} for name in names}
        description = {"format": _FORMAT, "id": id, "embedding": embedding_hash, **facts, "files": files}
        (temporary / "segment.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
        for name in (*names, "segment.json"):
            sync(temporary / name)
        sync(temporary)
        step("segment-written")
        temporary.rename(place)
        sync(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    step("segment-renamed")


def _new_vectors(path: Path, shape: tuple[int, ...]) -> Vectors:
    """A new file of vectors, mapped for writing."""
    made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    postings.reserve(path, path.stat().st_size)
    return made


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What a file looks like without reading it: size, modification time and inode; None if there is none."""
    if not path.is_file():
        return None
    state = path.stat()
    return state.st_size, state.st_mtime_ns, state.st_ino


def _check(path: Path, expected: dict[str, Any], checked: Checked) -> None:
    now = stamp(path)
    if now is None or now[0] != expected["bytes"]:
        state = "missing" if now is None else f"{now[0]} bytes long, expected {expected['bytes']}"
        raise IndexCorrupt(f"{path}: {state}; {REMEDY}")
    if checked.get(path) == now:
        return
    try:
        found = hash_file(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if found != expected["sha256"]:
        raise IndexCorrupt(f"{path}: the content has changed since it was written (sha256 differs); {REMEDY}")
    checked[path] = now


def read(path: Path) -> bytes:
    """A small file. Raises IndexCorrupt if it is missing or cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise IndexCorrupt(f"{path}: missing; {REMEDY}") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> IndexCorrupt:
    return IndexCorrupt(f"{path}: cannot be read ({error.strerror}); check the disk and the permissions, or {REMEDY}")
