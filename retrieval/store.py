"""All that retrieval needs from the metadata database, as protocols; the database itself is somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.types import Chunk, Document, DocumentInfo, DocumentKey, Scope


@dataclass(frozen=True, slots=True)
class GenerationInfo:
    """One state of the index. `manifest` is a file name in `index/manifests`, `chunks` and `documents` what it held when made."""

    id: int
    manifest: str
    manifest_sha256: str
    embedding_hash: str
    documents: int
    chunks: int
    parent: int | None


class Warned(NamedTuple):
    """What was said about a file when it was read, and `parsers.Options.key` then: with other options it is read again."""

    warnings: tuple[str, ...]
    options: str


@dataclass(frozen=True, slots=True)
class LiveDocument:
    """A document of the live generation: its content version, where it was last seen, and its file as last seen.

    The file's fields are None for rows of a corpus. `recipe` says how the version was made (see `ingest.Recipe`).
    """

    key: DocumentKey
    version_id: int
    sha256: str
    recipe: str
    labels: frozenset[str]
    root: str
    file_size: int | None = None
    file_mtime_ns: str | None = None
    file_sha256: str | None = None
    file_warned: Warned | None = None


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk to stage: row `ordinal` of its segment."""

    id: str
    ordinal: int
    start: int
    end: int
    heading: tuple[str, ...]
    page: int | None
    lang: str = ""
    flags: tuple[str, ...] = ()


class ContentKey(NamedTuple):
    """What documents must have in common to be indexed once: domain, hash of the text, the way it was made, and label set."""

    domain: str
    sha256: str
    recipe: str
    labels: frozenset[str]


@dataclass(frozen=True, slots=True)
class NewContent:
    """A text to stage with its chunks; `title` is the one its chunks are found by, `signature` its MinHash.

    A huge text is staged in parts, each with a segment of its own: `id` is the row of one whose first part is stored (None: a new one),
    and until the part that is `complete` nothing but `Writer.find_part` knows it.
    """

    key: ContentKey
    title: str
    lang: str
    text: str
    chunks: tuple[NewChunk, ...] = ()
    signature: bytes | None = None
    id: int | None = None
    complete: bool = True


class KnownContent(NamedTuple):
    """A content that is stored already, with the segments its chunks are in; `held` if a generation has it."""

    id: int
    segments: frozenset[str]
    held: bool


class Part(NamedTuple):
    """The beginning of a content, left behind by an interrupted run: how many chunks it has, and where the last of them ends."""

    content: KnownContent
    chunks: int
    end: int


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A document to stage whose content is stored."""

    key: DocumentKey
    sha256: str
    recipe: str
    content: int
    uri: str
    title: str
    lang: str
    meta: Mapping[str, Any] = field(default_factory=dict)


class Kind(NamedTuple):
    """What decides who may see a chunk, and its language: the caller must hold all labels of one of its documents."""

    domain: str
    lang: str
    audiences: frozenset[frozenset[str]]

    def visible(self, scope: Scope) -> bool:
        return (scope.domains is None or self.domain in scope.domains) and any(labels <= scope.labels for labels in self.audiences)


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """The chunks of a generation as columns [n], sorted by segment and ordinal: objects for a million rows would cost minutes.

    Chunk i is row `ordinal[i]` of segment ``segments[segment[i]]`` and of the kind ``kinds[kind[i]]``; `chunk[i]` is its row in the
    database and `content[i]` that of its content.
    """

    segments: tuple[str, ...]
    kinds: tuple[Kind, ...]
    segment: NDArray[np.int32]
    ordinal: NDArray[np.int32]
    chunk: NDArray[np.int64]
    content: NDArray[np.int64]
    kind: NDArray[np.int32]

    @staticmethod
    def none() -> Members:
        """The chunks of an empty index."""
        small, large = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)
        return Members((), (), small, small, large, large, small)

    def within(self, segments: Collection[str]) -> Members:
        """The chunks in some of the segments."""
        numbers = np.array([number for number, name in enumerate(self.segments) if name in segments], dtype=np.int32)
        part = self.only(np.isin(self.segment, numbers))
        renumbered = np.searchsorted(numbers, part.segment).astype(np.int32)
        return replace(part, segments=tuple(self.segments[number] for number in numbers), segment=renumbered)

    def only(self, mask: NDArray[np.bool_]) -> Members:
        """The chunks in `mask` [n]."""
        return Members(
            self.segments, self.kinds, self.segment[mask], self.ordinal[mask], self.chunk[mask], self.content[mask], self.kind[mask]
        )


class SegmentRows(NamedTuple):
    """How many rows a segment was written with, and how many of them belong to live documents."""

    embedding_hash: str
    rows: int
    live: int


@dataclass(frozen=True, slots=True, eq=False)
class StoredChunks:
    """The chunks in some segments, whichever generation has them, as columns [n], sorted by segment and ordinal.

    `live` says whether the live generation has the chunk; its language is ``languages[language[i]]``. Other columns as in `Members`.
    """

    segments: tuple[str, ...]
    languages: tuple[str, ...]
    segment: NDArray[np.int32]
    ordinal: NDArray[np.int64]
    chunk: NDArray[np.int64]
    live: NDArray[np.bool_]
    language: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class MergedSegment:
    """A segment that a compaction made: row i holds the chunk with row ``chunks[i]`` in the database, for every generation."""

    id: str
    sha256: str
    embedding_hash: str
    chunks: NDArray[np.int64]
    live: int


Sources = tuple[DocumentInfo, ...]


# (generation id, live chunks by segment) -> (manifest file name, its sha256); called inside the committing transaction.
WriteManifest = Callable[[int, Mapping[str, int]], tuple[str, str]]


class Lock(Protocol):
    """The writer's lock on the index, held by the caller."""

    def beat(self) -> None:
        """Renew the lock; called at least every 30 seconds. Raises if the lock was lost."""
        ...

    def check(self, connection: Any) -> None:
        """Raises if the lock was lost, as seen inside the transaction of `connection`."""
        ...


class Writer(Protocol):
    """What may be done while holding the writer's lock. Nothing staged is visible before `commit`."""

    def beat(self) -> None:
        """Renew the lock; called at least every 30 seconds. Raises if it was lost."""
        ...

    def find_contents(self, key: ContentKey, title: str, document: DocumentKey) -> Sequence[KnownContent]:
        """Complete contents that `document`, titled `title`, may take, newest first: committed, or left behind by an interrupted run.

        Those are found by this title, or by that of another live document with them and the same labels.
        """
        ...

    def find_part(self, key: ContentKey, title: str) -> Part | None:
        """What an interrupted run staged of a content found by this title; the newest. None: nothing."""
        ...

    def stage(self, segment: str | None, embedding_hash: str, chunks: int, contents: Sequence[NewContent]) -> list[int]:
        """Store a segment's row, contents and chunks in one transaction; the content ids in order. None: no content has chunks."""
        ...

    def describe(self, versions: Sequence[NewVersion]) -> list[int]:
        """Store document versions, those known already excepted, in one transaction; their ids in order."""
        ...

    def version(self, document: LiveDocument) -> Document | None:
        """The facts and text of a document's version, live or staged; None if it is gone."""
        ...

    def strays(self, put: Collection[LiveDocument], remove: Collection[DocumentKey]) -> Sequence[LiveDocument]:
        """The documents that would, after a commit of `put` and `remove`, share a content found by a title that no document of their
        labels has any more; they are to be indexed anew before."""
        ...

    def segments(self) -> dict[str, SegmentRows]:
        """Every stored segment. Costs as much as there are segments."""
        ...

    def stored(self, segments: Collection[str]) -> StoredChunks:
        """The chunks in these segments, of all generations and of none (staged)."""
        ...

    def commit(
        self,
        put: Collection[LiveDocument],
        remove: Collection[DocumentKey],
        embedding_hash: str,
        write_manifest: WriteManifest,
        why: str,
        merged: Sequence[MergedSegment] = (),
    ) -> GenerationInfo:
        """Make a new generation live in one transaction: the live documents with `put` replaced and `remove` deleted.

        Deleted documents go to the ledger, every version of them is erased, and every text that no other document has. Costs as much
        as what changed. The chunks of `merged` segments are there afterwards. Raises if the lock was lost.
        """
        ...

    def touch(self, documents: Collection[LiveDocument]) -> None:
        """Store size and time of files that turned out unchanged; makes no generation."""
        ...

    def rollback(self, generation: int) -> None:
        """Make an older generation live again, without the documents deleted since."""
        ...

    def collect(self) -> tuple[set[str], set[str]]:
        """Drop the generations that need not be kept, and erase what no other holds and segments without chunks; the names of the segments
        and manifests that remain."""
        ...


class DocumentStore(Protocol):
    """The reading side, and the way to a `Writer`. Deleted documents (the ledger) are absent from everything read."""

    def live_generation(self) -> int | None: ...

    def generation(self, generation: int) -> GenerationInfo | None: ...

    def generations(self) -> Sequence[int]:
        """The generations that are kept, oldest first: the live one, and those that can be rolled back to."""
        ...

    def members(self, generation: int, current: bool = False) -> Members:
        """All chunks of a generation, from one snapshot; with `current` only of documents that are live with the same text now."""
        ...

    def chunks(
        self, generation: int, rows: Collection[int], scope: Scope | None = None, current: bool = False
    ) -> dict[int, tuple[Chunk, Sources]]:
        """Chunks with their text by database row, and the documents of the generation that have it, the first seen first.

        With a `scope` only the documents it may see, with `current` only those that are live with the same text now. Rows that are gone,
        deleted or without a document are missing from the answer.
        """
        ...

    def merged(self) -> dict[str, str]:
        """The hashes of the segments that compactions made, by id: manifests older than them do not name them."""
        ...

    def live_documents(self) -> Iterator[LiveDocument]: ...

    def live(self, keys: Collection[DocumentKey]) -> Sequence[LiveDocument]:
        """Those of `keys` that are live."""
        ...

    def live_under(self, root: str) -> Sequence[LiveDocument]:
        """The live documents last seen under a root."""
        ...

    def holding(self, contents: Collection[int]) -> int:
        """How many live documents have one of these contents."""
        ...

    def removals(self, key: DocumentKey) -> Mapping[str, datetime]:
        """What the deletion ledger says of a document: the hashes of its texts, and when each was last removed (UTC)."""
        ...

    def copies(self, keys: Collection[DocumentKey]) -> Sequence[Sequence[DocumentKey]]:
        """The live documents that share their content with one of `keys`, that one among them: groups of at least two, first seen first."""
        ...

    def alike(self, keys: Collection[DocumentKey]) -> Sequence[tuple[DocumentKey, DocumentKey, bytes, bytes]]:
        """Live documents among `keys` that may be nearly the same as one of their domain stored earlier: (earlier, this, their signatures).

        What meets under one key of `retrieval.duplicates.bands` is compared with the earliest only: the cost grows with `keys` alone.
        """
        ...

    def document(self, key: DocumentKey) -> Document | None:
        """A live document with its text, or None."""
        ...

    def writer(self, lock: Lock) -> Writer:
        """What the holder of the lock may do."""
        ...
