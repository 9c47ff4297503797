"""Immutable segments on disk: `<id>/vectors.npy`, `lexical.npz`, and `segment.json` with the size and hash of both.

A segment is written as `<id>.tmp`, made durable, and renamed: a folder without `.tmp` is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.embed import Vectors
from retrieval.lexical import Postings
from retrieval.types import IndexCorrupt

REMEDY = "run `appliance index rebuild`, or restore a backup"
_FORMAT = 1
_FILES = ("vectors.npy", "lexical.npz")


@dataclass(frozen=True, slots=True)
class Segment:
    """An opened, checked segment. `vectors` [n, dim] is mapped from the file; `sha256` is the hash of segment.json."""

    id: str
    sha256: str
    embedding_hash: str
    vectors: Vectors
    postings: Postings


def write_segment(folder: Path, id: str, vectors: Vectors, postings: Postings, embedding_hash: str, step: Callable[[str], None]) -> None:
    """Write segment `id` below `folder` durably. Raises OSError (for instance when the disk is full), leaving nothing behind."""
    place, temporary = folder / id, folder / f"{id}.tmp"
    temporary.mkdir(parents=True)
    try:
        np.save(temporary / "vectors.npy", np.ascontiguousarray(vectors, dtype=np.float32), allow_pickle=False)
        postings.save(temporary / "lexical.npz")
        files = {name: {"bytes": (temporary / name).stat().st_size, "sha256": hash_file(temporary / name)} for name in _FILES}
        shape = {"chunks": len(vectors), "dim": vectors.shape[1]}
        description = {"format": _FORMAT, "id": id, "embedding": embedding_hash, **shape, "files": files}
        (temporary / "segment.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
        for name in (*_FILES, "segment.json"):
            sync(temporary / name)
        sync(temporary)
        step("segment-written")
        temporary.rename(place)
        sync(folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    step("segment-renamed")


def describe(folder: Path, id: str, sha256: str | None = None) -> tuple[dict[str, Any], str]:
    """The content and hash of a segment's segment.json. Raises IndexCorrupt if it is missing, damaged, or not the one `sha256` names."""
    path = folder / id / "segment.json"
    data = _read(path)
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise IndexCorrupt(f"{path}: the content is not what the generation's manifest names; {REMEDY}")
    try:
        description = json.loads(data)
    except ValueError as error:
        raise IndexCorrupt(f"{path}: not valid JSON ({error}); {REMEDY}") from error
    if not isinstance(description, dict) or description.get("format") != _FORMAT or set(description.get("files", ())) != set(_FILES):
        raise IndexCorrupt(f"{path}: not a segment description of format {_FORMAT}; {REMEDY}")
    return description, found


def open_segment(folder: Path, id: str, sha256: str | None = None) -> Segment:
    """Check every file of a segment and open it. Raises IndexCorrupt naming the first bad file and the remedy."""
    description, found = describe(folder, id, sha256)
    for name, expected in description["files"].items():
        path = folder / id / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            state = "missing" if size is None else f"{size} bytes long, expected {expected['bytes']}"
            raise IndexCorrupt(f"{path}: {state}; {REMEDY}")
        if hash_file(path) != expected["sha256"]:
            raise IndexCorrupt(f"{path}: the content has changed since it was written (sha256 differs); {REMEDY}")
    vectors = np.load(folder / id / "vectors.npy", mmap_mode="r", allow_pickle=False)
    return Segment(id, found, description["embedding"], vectors, Postings.load(folder / id / "lexical.npz"))


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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise IndexCorrupt(f"{path}: missing; {REMEDY}") from error
