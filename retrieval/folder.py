"""Segments and manifests as files: `segments/<id>/…` and `manifests/<generation>.json` in the workspace's `index` folder.

Which rows of the segments are alive is in the database (a row without a document of the generation is a tombstone), so that
a manifest never changes when a document is deleted for good.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.embed import Vectors
from retrieval.generation import Generation
from retrieval.lexical import Ordinals
from retrieval.postings import Postings
from retrieval.segments import REMEDY, Segment, describe, merge_segments, open_segment, read, stamp, sync, write_segment
from retrieval.store import GenerationInfo
from retrieval.types import IndexCorrupt
from retrieval.vectors import Searchable, SegmentFacts, Step, no_step

_FORMAT = 1


class FolderVectors:
    """`retrieval.vectors.VectorStore` on a folder, searched with FAISS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segments = folder / "segments"
        self.manifests = folder / "manifests"
        # What this process has checked already; the first opening of a file reads every byte of it.
        self._checked: dict[Path, tuple[int, int, int]] = {}

    @property
    def location(self) -> str:
        return str(self.folder)

    def write_segment(
        self, id: str, vectors: Vectors, postings: Postings, embedding_hash: str, step: Step = no_step, languages: Sequence[str] = ()
    ) -> str:
        write_segment(self.segments, id, vectors, postings, embedding_hash, step)
        return describe(self.segments, id)[1]

    def merge(
        self,
        id: str,
        parts: Sequence[tuple[str, Ordinals]],
        languages: Sequence[str],
        manifest: Mapping[str, str],
        embedding_hash: str,
        step: Step = no_step,
    ) -> tuple[str, dict[str, Any]]:
        sources = [(self._open(name, manifest), rows) for name, rows in parts]
        numbers = np.unique(languages, return_inverse=True)[1].astype(np.int32)
        search = merge_segments(self.segments, id, sources, numbers, embedding_hash, step)
        return describe(self.segments, id)[1], search

    def segment_hash(self, id: str, sha256: str | None = None) -> str:
        return describe(self.segments, id, sha256)[1]

    def write_manifest(
        self, generation: int, embedding_hash: str, chunks: Mapping[str, int], known: Mapping[str, str], step: Step = no_step
    ) -> tuple[str, str]:
        hashes = {id: known.get(id) or self.segment_hash(id) for id in chunks}
        segments = [{"id": id, "sha256": hashes[id], "chunks": count} for id, count in sorted(chunks.items())]
        content = {"format": _FORMAT, "generation": generation, "embedding": embedding_hash, "segments": segments}
        data = json.dumps(content, indent=1).encode("utf-8")
        place = self.manifests / f"{generation}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f"{place.name}.tmp")
        temporary.write_bytes(data)
        sync(temporary)
        temporary.replace(place)
        sync(place.parent)
        step("manifest-written")
        return place.name, hashlib.sha256(data).hexdigest()

    def read_manifest(self, info: GenerationInfo) -> dict[str, str]:
        path = self.manifests / info.manifest
        data = read(path)
        if hashlib.sha256(data).hexdigest() != info.manifest_sha256:
            raise IndexCorrupt(f"{path}: the content has changed since it was written (sha256 differs); {REMEDY}")
        return {entry["id"]: entry["sha256"] for entry in json.loads(data)["segments"]}

    def open(self, manifest: Mapping[str, str], wanted: Iterable[str], opened: Searchable | None = None) -> Generation:
        known = {segment.id: segment for segment in opened.segments} if isinstance(opened, Generation) else {}
        return Generation([known.get(id) or self._open(id, manifest) for id in sorted(wanted)])

    def sizes(self, manifest: Mapping[str, str], wanted: Iterable[str]) -> tuple[dict[str, int], list[str]]:
        found: dict[str, int] = {}
        problems: list[str] = []
        for id in sorted(wanted):
            try:
                found[id] = len(open_segment(self.segments, id, manifest.get(id)).vectors)
            except IndexCorrupt as error:
                problems.append(str(error))
        return found, problems

    def altered(self, opened: Searchable) -> bool:
        ids = {segment.id for segment in opened.segments} if isinstance(opened, Generation) else set()
        return any(stamp(path) != known for path, known in list(self._checked.items()) if path.parent.name in ids)

    def facts(self, ids: Iterable[str]) -> dict[str, SegmentFacts]:
        found: dict[str, SegmentFacts] = {}
        for id in ids:
            with suppress(IndexCorrupt):
                description = describe(self.segments, id)[0]
                found[id] = SegmentFacts(sum(file["bytes"] for file in description["files"].values()), description["search"])
        return found

    def keep(self, segments: Collection[str], manifests: Collection[str]) -> None:
        self._checked = {path: stamp for path, stamp in self._checked.items() if path.parent.name in segments}
        for place, kept in ((self.segments, segments), (self.manifests, manifests)):
            if not place.is_dir():
                continue
            for entry in place.iterdir():
                if entry.name not in kept and entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name not in kept:
                    entry.unlink()

    def _open(self, id: str, manifest: Mapping[str, str]) -> Segment:
        return open_segment(self.segments, id, manifest.get(id), self._checked)
