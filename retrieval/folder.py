"""Segments and manifests as files: `segments/<id>/…` and `manifests/<generation>.json` in the workspace's `index` folder.

Which rows of the segments are alive is in the database (a row without a document of the generation is a tombstone), so that
a manifest never changes when a document is deleted for good.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from retrieval.embed import Vectors
from retrieval.generation import Generation
from retrieval.lexical import Postings
from retrieval.segments import REMEDY, describe, open_segment, sync, write_segment
from retrieval.store import GenerationInfo
from retrieval.types import IndexCorrupt
from retrieval.vectors import Searchable, Step, no_step

_FORMAT = 1


class FolderVectors:
    """`retrieval.vectors.VectorStore` on a folder, searched with FAISS."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.segments = folder / "segments"
        self.manifests = folder / "manifests"

    @property
    def location(self) -> str:
        return str(self.folder)

    def write_segment(self, id: str, vectors: Vectors, postings: Postings, embedding_hash: str, step: Step = no_step) -> str:
        write_segment(self.segments, id, vectors, postings, embedding_hash, step)
        return describe(self.segments, id)[1]

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
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise IndexCorrupt(f"{path}: missing; {REMEDY}") from error
        if hashlib.sha256(data).hexdigest() != info.manifest_sha256:
            raise IndexCorrupt(f"{path}: the content has changed since it was written (sha256 differs); {REMEDY}")
        return {entry["id"]: entry["sha256"] for entry in json.loads(data)["segments"]}

    def open(self, manifest: Mapping[str, str], wanted: Iterable[str], opened: Searchable | None = None) -> Generation:
        known = {segment.id: segment for segment in opened.segments} if isinstance(opened, Generation) else {}
        return Generation([known.get(id) or open_segment(self.segments, id, manifest.get(id)) for id in sorted(wanted)])

    def sizes(self, manifest: Mapping[str, str], wanted: Iterable[str]) -> tuple[dict[str, int], list[str]]:
        found: dict[str, int] = {}
        problems: list[str] = []
        for id in sorted(wanted):
            try:
                found[id] = len(open_segment(self.segments, id, manifest.get(id)).vectors)
            except IndexCorrupt as error:
                problems.append(str(error))
        return found, problems

    def keep(self, segments: Collection[str], manifests: Collection[str]) -> None:
        for place, kept in ((self.segments, segments), (self.manifests, manifests)):
            if not place.is_dir():
                continue
            for entry in place.iterdir():
                if entry.name not in kept and entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name not in kept:
                    entry.unlink()
