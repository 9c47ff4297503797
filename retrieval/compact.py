"""Merging segments: the rows still needed go into new, bigger segments beside the live ones, and what was deleted leaves the disk.

Nothing is parsed or embedded again. Chunks keep their rows in the database and move to their new places for every generation at once,
in the transaction that makes the result live; so older generations stay searchable, and rolling back to one works as before. Live rows
and rows that only older generations have go to different segments: searching the live generation does not pass by its history.

An ingest merges by itself, as log-structured stores do: whenever there are `FANOUT` segments of about one size (a factor of `FANOUT`),
they become one, so that a chunk is copied as often as the logarithm of the base's size (O'Neil et al., The LSM-tree, 1996), and a
big segment of which a third is dead is written anew. `appliance index compact` merges whatever can be.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.commit import collect, commit, full_disk
from retrieval.staging import Progress
from retrieval.store import DocumentStore, Lock, MergedSegment, SegmentRows, StoredChunks, Writer
from retrieval.vectors import Step, VectorStore, no_step

FANOUT = 8
# Segments up to this size are of one size class, and their dead rows cost too little to write them anew.
SMALL = 2_048
DEAD = 0.3
# No merged segment has more rows: it bounds what one merge costs, and what is at stake in it.
MAX_ROWS = 1 << 20
_BEAT_SECONDS = 15


def due(segments: Mapping[str, SegmentRows]) -> set[str]:
    """The segments that an ingest merges by itself; most times none. Costs as much as there are segments."""
    chosen = {id for id, facts in segments.items() if facts.rows > SMALL and 0 < facts.live < (1 - DEAD) * facts.rows}
    classes: defaultdict[tuple[str, bool, int], set[str]] = defaultdict(set)
    for id, facts in segments.items():
        # A segment without live rows is history; it is merged with its like.
        size = facts.live or facts.rows
        if size < MAX_ROWS // 2:
            tier = max(0, math.floor(math.log(size / SMALL, FANOUT) + 1)) if size > SMALL else 0
            classes[facts.embedding_hash, facts.live > 0, tier].add(id)
    for (embedding, live, tier), full in classes.items():
        if len(full) >= FANOUT:
            # The smaller ones go along: merging them costs little.
            chosen |= {id for key, ids in classes.items() if key[:2] == (embedding, live) and key[2] <= tier for id in ids}
    return chosen


def compact(
    *,
    store: DocumentStore,
    vectors: VectorStore,
    lock: Lock,
    only: Collection[str] | None = None,
    progress: Progress | None = None,
    step: Step = no_step,
) -> dict[str, Any]:
    """Merge the segments in `only`; None: all that are small, or have rows that nothing needs or that are not live.

    {"generation", "before", "after", "purged", "segments": [{"rows", "live", "search"}]}: the live generation, the number of segments,
    the rows that left the disk, and the new segments. Makes no generation when there is nothing to merge. Steps: those of writing
    segments, of a commit and of collecting. Raises IndexCorrupt if a segment is damaged, and then changes nothing.
    """
    writer = store.writer(lock)
    if only is None:
        collect(writer, vectors, step)
    segments = writer.segments()
    live = store.live_generation()
    info = store.generation(live) if live is not None else None
    chunks = writer.stored(segments if only is None else only)
    chosen = _worthwhile(segments, chunks) if only is None else set(only)
    report: dict[str, Any] = {"generation": live, "before": len(segments), "after": len(segments), "purged": 0, "segments": []}
    if info is None or not chosen:
        return report
    manifest = {**store.merged(), **vectors.read_manifest(info)}
    merged: list[MergedSegment] = []
    groups = list(_groups(segments, chunks, chosen))
    with full_disk(vectors.location):
        for number, (embedding, is_live, places) in enumerate(groups):
            if progress is not None:
                progress("compact", number, len(groups), rows=len(places))
            id = secrets.token_hex(12)
            names = np.array(chunks.languages)[chunks.language[places]]
            with _beating(writer):
                sha256, search = vectors.merge(id, _sources(chunks, places), names.tolist(), manifest, embedding, step)
            merged.append(MergedSegment(id, sha256, embedding, chunks.chunk[places], len(places) if is_live else 0))
            report["segments"].append({"rows": len(places), "live": is_live, "search": search})
        hashes = {segment.id: segment.sha256 for segment in merged}
        made = commit(store, writer, vectors, info.embedding_hash, hashes, [], [], f"compact {len(chosen)} segments", step, merged=merged)
        collect(writer, vectors, step)
    report["purged"] = sum(segments[id].rows for id in chosen) - sum(len(segment.chunks) for segment in merged)
    return report | {"generation": made.id, "after": len(writer.segments())}


def tidy(*, store: DocumentStore, vectors: VectorStore, lock: Lock, step: Step = no_step) -> dict[str, Any] | None:
    """What an ingest does at its end: merge what is due, if anything is."""
    chosen = due(store.writer(lock).segments())
    return compact(store=store, vectors=vectors, lock=lock, only=chosen, step=step) if chosen else None


def _worthwhile(segments: Mapping[str, SegmentRows], chunks: StoredChunks) -> set[str]:
    """The segments that are not as they would be after a compaction of everything."""
    kept = dict(zip(chunks.segments, np.bincount(chunks.segment, minlength=len(chunks.segments)).tolist(), strict=True))
    chosen: set[str] = set()
    small: defaultdict[tuple[str, bool], set[str]] = defaultdict(set)
    for id, facts in segments.items():
        if kept.get(id, 0) < facts.rows or 0 < facts.live < facts.rows:
            chosen.add(id)
        if facts.rows < MAX_ROWS // 2:
            small[facts.embedding_hash, facts.live > 0].add(id)
    for alike in small.values():
        if len(alike) > 1 or alike & chosen:
            chosen |= alike
    return chosen


def _groups(segments: Mapping[str, SegmentRows], chunks: StoredChunks, chosen: set[str]) -> Iterator[tuple[str, bool, NDArray[np.int64]]]:
    """What goes into each new segment: its embedding model, whether its rows are live, and their positions in `chunks`."""
    models = np.array([segments[id].embedding_hash for id in chunks.segments])
    wanted = np.isin(chunks.segment, [number for number, id in enumerate(chunks.segments) if id in chosen])
    for embedding in np.unique(models):
        for is_live in (True, False):
            places = np.flatnonzero(wanted & (models[chunks.segment] == embedding) & (chunks.live == is_live))
            for part in np.array_split(places, math.ceil(len(places) / MAX_ROWS) or 1):
                if len(part):
                    yield str(embedding), is_live, part


def _sources(chunks: StoredChunks, places: NDArray[np.int64]) -> Sequence[tuple[str, NDArray[np.int64]]]:
    """The rows of each old segment that go into a new one, in order."""
    numbers, first = np.unique(chunks.segment[places], return_index=True)
    rows = np.split(chunks.ordinal[places], first[1:])
    return [(chunks.segments[number], part) for number, part in zip(numbers, rows, strict=True)]


@contextmanager
def _beating(writer: Writer) -> Iterator[None]:
    """Renew the lock while one long call runs. Raises what renewing raised."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(_BEAT_SECONDS):
            writer.beat()

    with ThreadPoolExecutor(1, thread_name_prefix="lock") as pool:
        beating = pool.submit(beat)
        try:
            yield
        finally:
            done.set()
        beating.result()
