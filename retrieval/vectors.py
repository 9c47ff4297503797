"""Where the immutable half of the index lives: segments of vectors and postings, and the manifests that name them.

A segment is written once, then only read, then deleted. `retrieval.folder` keeps segments as files and searches them with FAISS;
another implementation may keep them in a database. What is alive in a segment is said by the `DocumentStore`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.embed import Vectors
from retrieval.lexical import Lexical, Mask, Ordinals
from retrieval.store import GenerationInfo
from retrieval.types import Scope

Step = Callable[[str], None]


def no_step(name: str) -> None:
    """The default of the `step` hook, which tests use to interrupt at a named place."""


class SegmentFacts(NamedTuple):
    """The size of a segment's data, and how it is searched: {"method": "exact"}, or an approximate one with its recall."""

    bytes: int
    search: Mapping[str, Any]


class Searchable(Protocol):
    """The opened segments of one generation as one whole over global ordinals (segment offset + ordinal). Immutable, thread-safe."""

    @property
    def offsets(self) -> Mapping[str, int]:
        """The global ordinal of each segment's first row."""
        ...

    @property
    def size(self) -> int:
        """Rows of all segments, tombstones included."""
        ...

    @property
    def lexical(self) -> Lexical: ...

    def visible(self, scope: Scope, mask: Mask, languages: NDArray[np.int64]) -> Any:
        """Prepare searches for one scope: `mask` [size] says which rows it may see, `languages` [size] numbers each row's language.

        What is returned has the attribute `view` (`retrieval.lexical.View`) and is given back to `dense`.
        """
        ...

    def dense(self, query: Vectors, visible: Any, k: int) -> tuple[Ordinals, NDArray[np.float32], NDArray[np.float32]]:
        """The `k` visible rows nearest to `query` [dim]: global ordinals, cosines and rank scores, best first."""
        ...


class VectorStore(Protocol):
    """Writing, opening, checking and deleting segments and manifests. Only the holder of the writer's lock writes."""

    @property
    def location(self) -> str:
        """Where it is, for messages."""
        ...

    def write_segment(
        self, id: str, vectors: Vectors, postings: Any, embedding_hash: str, step: Step = no_step, languages: Sequence[str] = ()
    ) -> str:
        """Store segment `id` durably, all or nothing; the hash by which a manifest vouches for it.

        `languages` [n] names the language of each row, for stores that index each language for itself.
        Steps: "segment-written" (durable under a temporary name), "segment-renamed". Raises OSError when there is no space.
        """
        ...

    def merge(
        self,
        id: str,
        parts: Sequence[tuple[str, Ordinals]],
        languages: Sequence[str],
        manifest: Mapping[str, str],
        embedding_hash: str,
        step: Step = no_step,
    ) -> tuple[str, dict[str, Any]]:
        """Store segment `id` made of rows (ascending) of other segments, in the order of `parts`, as `write_segment` stores one.

        `languages` [n] names the language of each new row, `manifest` the hashes of the old segments. The new segment's hash,
        and how it is searched: {"method": "exact"}, or an approximate one with the recall it was measured to have. Nothing of the rows
        left out is in the new segment. Raises IndexCorrupt if an old segment is damaged.
        """
        ...

    def segment_hash(self, id: str, sha256: str | None = None) -> str:
        """The hash of a stored segment. Raises IndexCorrupt if it is missing, or not the one `sha256` names; reads no vectors."""
        ...

    def write_manifest(
        self, generation: int, embedding_hash: str, chunks: Mapping[str, int], known: Mapping[str, str], step: Step = no_step
    ) -> tuple[str, str]:
        """Store the manifest of a generation durably; its name and hash. `chunks` are live chunks by segment, `known` their hashes.

        Step: "manifest-written".
        """
        ...

    def read_manifest(self, info: GenerationInfo) -> dict[str, str]:
        """The segments of a generation: id to hash. Raises IndexCorrupt if the manifest is missing or not the committed one."""
        ...

    def open(self, manifest: Mapping[str, str], wanted: Iterable[str], opened: Searchable | None = None) -> Searchable:
        """Check and open the `wanted` segments; what `opened` (an earlier result) holds already is taken as it is.

        Raises IndexCorrupt naming the bad part. A segment that is not in the manifest was written later for the same documents.
        """
        ...

    def sizes(self, manifest: Mapping[str, str], wanted: Iterable[str]) -> tuple[dict[str, int], list[str]]:
        """A full check of the `wanted` segments: the rows of each sound one, and one sentence for each that is damaged."""
        ...

    def altered(self, opened: Searchable) -> bool:
        """Whether what was opened looks different now from when it was checked. Cheap: asked every second, reads no content."""
        ...

    def facts(self, ids: Iterable[str]) -> dict[str, SegmentFacts]:
        """What is known of stored segments; damaged ones are left out."""
        ...

    def keep(self, segments: Collection[str], manifests: Collection[str]) -> None:
        """Delete everything else."""
        ...
