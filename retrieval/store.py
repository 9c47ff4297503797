"""All that retrieval needs from the metadata database, as protocols; the database itself is somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from retrieval.types import Chunk, Document, DocumentInfo, DocumentKey


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


@dataclass(frozen=True, slots=True)
class NewChunk:
    """A chunk to stage: row `ordinal` of its segment."""

    id: str
    ordinal: int
    start: int
    end: int
    heading: tuple[str, ...]
    page: int | None


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A content version to stage with all of its chunks."""

    key: DocumentKey
    sha256: str
    recipe: str
    uri: str
    title: str
    lang: str
    text: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    chunks: tuple[NewChunk, ...] = ()


class KnownVersion(NamedTuple):
    """A version that is stored already, with the segments its chunks are in."""

    id: int
    recipe: str
    segments: frozenset[str]


class Member(NamedTuple):
    """A document version of a generation, its language, and what decides who may see it."""

    version_id: int
    domain: str
    lang: str
    labels: frozenset[str]


class Place(NamedTuple):
    """Where a chunk of a generation is: row `ordinal` of `segment`. `chunk` is its row in the database."""

    segment: str
    ordinal: int
    chunk: int
    version_id: int


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

    def find_versions(self, key: DocumentKey, sha256: str) -> Sequence[KnownVersion]:
        """Versions of this content, newest first, committed or left behind by an interrupted run."""
        ...

    def stage(self, segment: str | None, embedding_hash: str, chunks: int, versions: Sequence[NewVersion]) -> list[int]:
        """Store a segment's row, versions and chunks in one transaction; the version ids in order. None: no version has chunks."""
        ...

    def commit(
        self, put: Collection[LiveDocument], remove: Collection[DocumentKey], embedding_hash: str, write_manifest: WriteManifest, why: str
    ) -> GenerationInfo:
        """Make a new generation live in one transaction: the live documents with `put` replaced and `remove` deleted.

        Deleted documents go to the ledger, and every version of their text is erased. Raises if the lock was lost.
        """
        ...

    def touch(self, documents: Collection[LiveDocument]) -> None:
        """Store size and time of files that turned out unchanged; makes no generation."""
        ...

    def rollback(self, generation: int) -> None:
        """Make an older generation live again, without the documents deleted since."""
        ...

    def collect(self) -> tuple[set[str], set[str]]:
        """Erase versions no generation holds and segments without chunks; the names of the segments and manifests that remain."""
        ...


class DocumentStore(Protocol):
    """The reading side, and the way to a `Writer`. Deleted documents (the ledger) are absent from everything read."""

    def live_generation(self) -> int | None: ...

    def generation(self, generation: int) -> GenerationInfo | None: ...

    def members(self, generation: int) -> tuple[list[Member], list[Place]]:
        """All documents and chunks of a generation, from one snapshot; places sorted by segment and ordinal."""
        ...

    def chunks(self, generation: int, rows: Collection[int]) -> dict[int, tuple[Chunk, DocumentInfo]]:
        """Chunks with their text by database row; rows that are gone or deleted are missing from the answer."""
        ...

    def live_documents(self) -> Iterator[LiveDocument]: ...

    def document(self, key: DocumentKey) -> Document | None:
        """A live document with its text, or None."""
        ...

    def writer(self, lock: Lock) -> Writer:
        """What the holder of the lock may do."""
        ...
