"""The inverted index of one segment, and its file: written once, then mapped, so that opening it reads nothing.

The file is little endian: four int64 (format, terms V, postings P, chunks n), then `terms` uint64 [V], `starts` int64 [V + 1],
`ordinals` int32 [P], `lengths` int32 [n], `counts` uint16 [P]. Every array begins at a multiple of its item size.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.types import IndexCorrupt

_FORMAT = 1
_HEADER = 4 * 8
# Postings handled at one time by `merge`, which bounds its memory.
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Postings:
    """The inverted index of one segment.

    `terms` [V] are sorted 64-bit hashes of terms (no words leave the database; by the birthday bound two million terms collide with
    probability 1e-7); the postings of term i are ``starts[i]:starts[i + 1]`` of `ordinals` and `counts`; `lengths` [n] are in terms.
    """

    terms: NDArray[np.uint64]
    starts: NDArray[np.int64]
    ordinals: NDArray[np.int32]
    counts: NDArray[np.uint16]
    lengths: NDArray[np.int32]

    def save(self, path: Path) -> None:
        made = _create(path, len(self.terms), len(self.ordinals), len(self.lengths))
        for name in ("terms", "starts", "ordinals", "counts", "lengths"):
            getattr(made, name)[:] = getattr(self, name)

    @staticmethod
    def load(path: Path) -> Postings:
        """Map a file. Raises IndexCorrupt if it is none of this format."""
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i8", count=4).tolist()
        if len(header) < 4 or header[0] != _FORMAT or min(header) < 0 or size != _size(*header[1:]):
            raise IndexCorrupt(f"{path}: no postings of format {_FORMAT}; run `appliance index rebuild`, or restore a backup")
        return _over(np.memmap(path, dtype=np.uint8, mode="r"), *header[1:])


def merge(parts: Sequence[tuple[Postings, NDArray[np.int64]]], path: Path) -> None:
    """Write the postings of some rows (ascending) of several segments; the rows get new ordinals in the order of `parts`.

    Postings of other rows are left out, and so are terms that then have none. Memory: a few times `_BLOCK`, and the terms.
    """
    bases = np.cumsum([0, *(len(rows) for _, rows in parts)])
    numbers = [_renumber(postings, rows, int(base)) for (postings, rows), base in zip(parts, bases, strict=False)]
    kept = [_kept(postings, number) for (postings, _), number in zip(parts, numbers, strict=True)]
    terms = np.unique(np.concatenate([postings.terms[counts > 0] for (postings, _), counts in zip(parts, kept, strict=True)]))
    totals = np.zeros(len(terms), dtype=np.int64)
    for (postings, _), counts in zip(parts, kept, strict=True):
        totals[np.searchsorted(terms, postings.terms[counts > 0])] += counts[counts > 0]
    made = _create(path, len(terms), int(totals.sum()), int(bases[-1]))
    made.terms[:] = terms
    made.starts[:] = np.concatenate([[0], np.cumsum(totals)])
    # Where the next posting of each term goes.
    cursor = made.starts[:-1].copy()
    for (postings, rows), number, counts, base in zip(parts, numbers, kept, bases, strict=False):
        made.lengths[base : base + len(rows)] = postings.lengths[rows]
        for first, last in _blocks(postings.starts):
            place = slice(int(postings.starts[first]), int(postings.starts[last]))
            ordinals = number[postings.ordinals[place]]
            alive = ordinals >= 0
            runs = counts[first:last]
            entries = np.searchsorted(terms, postings.terms[first:last][runs > 0])
            runs = runs[runs > 0]
            within = np.arange(int(runs.sum())) - np.repeat(np.cumsum(runs) - runs, runs)
            places = np.repeat(cursor[entries], runs) + within
            made.ordinals[places] = ordinals[alive]
            made.counts[places] = postings.counts[place][alive]
            cursor[entries] += runs
        release(postings.ordinals)
    release(made.ordinals)


def reserve(path: Path, size: int) -> None:
    """Take the space a file needs before it is mapped: writing to a mapped file that finds none ends the process. Raises OSError."""
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)


def release(array: NDArray[Any]) -> None:
    """Give back the memory of a mapped file's pages; they are read from the file again when they are needed. Written ones are kept."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def _renumber(postings: Postings, rows: NDArray[np.int64], base: int) -> NDArray[np.int32]:
    """The new ordinal of each old one, -1 for those left out."""
    number = np.full(len(postings.lengths), -1, dtype=np.int32)
    number[rows] = np.arange(base, base + len(rows), dtype=np.int32)
    return number


def _kept(postings: Postings, number: NDArray[np.int32]) -> NDArray[np.int64]:
    """How many postings of each term stay."""
    counts = np.zeros(len(postings.terms), dtype=np.int64)
    for first, last in _blocks(postings.starts):
        start = int(postings.starts[first])
        alive = number[postings.ordinals[start : int(postings.starts[last])]] >= 0
        counts[first:last] = np.add.reduceat(alive, postings.starts[first:last] - start, dtype=np.int64)
    release(postings.ordinals)
    return counts


def _blocks(starts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of terms with about `_BLOCK` postings each."""
    first, terms = 0, len(starts) - 1
    while first < terms:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + _BLOCK, "right")) - 1)
        yield first, min(last, terms)
        first = last


def _size(terms: int, postings: int, chunks: int) -> int:
    return _HEADER + 8 * terms + 8 * (terms + 1) + 4 * postings + 4 * chunks + 2 * postings


def _create(path: Path, terms: int, postings: int, chunks: int) -> Postings:
    """A new file, mapped for writing."""
    size = _size(terms, postings, chunks)
    path.touch()
    reserve(path, size)
    raw = np.memmap(path, dtype=np.uint8, mode="r+", shape=(size,))
    raw[:_HEADER].view("<i8")[:] = (_FORMAT, terms, postings, chunks)
    return _over(raw, terms, postings, chunks)


def _over(raw: NDArray[np.uint8], terms: int, postings: int, chunks: int) -> Postings:
    arrays: list[NDArray[Any]] = []
    start = _HEADER
    for kind, count in (("<u8", terms), ("<i8", terms + 1), ("<i4", postings), ("<i4", chunks), ("<u2", postings)):
        end = start + count * np.dtype(kind).itemsize
        arrays.append(raw[start:end].view(kind))
        start = end
    found, starts, ordinals, lengths, counts = arrays
    return Postings(found, starts, ordinals, counts, lengths)
