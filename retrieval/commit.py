"""From staged work to a live generation, and the garbage behind it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from retrieval.embed import Embedder
from retrieval.store import DocumentStore, GenerationInfo, LiveDocument, Writer
from retrieval.types import DocumentKey, RetrievalError
from retrieval.vectors import Step, VectorStore


def commit(
    store: DocumentStore,
    writer: Writer,
    vectors: VectorStore,
    embedding_hash: str,
    hashes: Mapping[str, str],
    put: Sequence[LiveDocument],
    gone: Sequence[DocumentKey],
    why: str,
    step: Step,
    fresh: bool = False,
) -> GenerationInfo:
    parent = store.live_generation()
    parent_info = store.generation(parent) if parent is not None else None
    # The parent's manifest vouches for the segments that stay; a rebuild has none that stay.
    known = {**(vectors.read_manifest(parent_info) if parent_info is not None and not fresh else {}), **hashes}

    def manifest(generation: int, chunks: Mapping[str, int]) -> tuple[str, str]:
        written = vectors.write_manifest(generation, embedding_hash, chunks, known, step)
        step("before-commit")
        return written

    step("ready")
    info = writer.commit(put, gone, embedding_hash, manifest, why)
    step("committed")
    return info


def collect(writer: Writer, vectors: VectorStore) -> None:
    """Delete what no generation needs: staged leftovers, and segments whose last document was deleted."""
    vectors.keep(*writer.collect())


def check_model(store: DocumentStore, embedder: Embedder) -> None:
    live = store.live_generation()
    info = store.generation(live) if live is not None else None
    if info is not None and info.documents and info.embedding_hash != embedder.hash:
        raise RetrievalError(
            f"the index was made with the embedding model {info.embedding_hash[:12]}, configured is {embedder.hash[:12]}: their vectors "
            "cannot be in one index; set the old model again, or run `appliance index rebuild` to embed all documents anew"
        )


@contextmanager
def full_disk(location: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RetrievalError(
            f"the disk is full ({error.filename or location}): nothing was changed, the previous generation is live; "
            "free some space and run the same command again, it goes on where it was"
        ) from error
