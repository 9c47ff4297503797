"""From staged work to a live generation, and the garbage behind it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from retrieval.embed import Embedder
from retrieval.store import DocumentStore, GenerationInfo, LiveDocument, MergedSegment, Writer
from retrieval.types import DocumentKey, RetrievalError
from retrieval.vectors import Step, VectorStore

logger = logging.getLogger("appliance.index")

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
    merged: Sequence[MergedSegment] = (),
) -> GenerationInfo:
    parent = store.live_generation()
    parent_info = store.generation(parent) if parent is not None else None
    # The parent's manifest, and for what was merged since the database, vouch for the segments that stay; a rebuild has none that stay.
    staying = {**store.merged(), **vectors.read_manifest(parent_info)} if parent_info is not None and not fresh else {}
    known = {**staying, **hashes}

    def manifest(generation: int, chunks: Mapping[str, int]) -> tuple[str, str]:
        written = vectors.write_manifest(generation, embedding_hash, chunks, known, step)
        step("before-commit")
        return written

    step("ready")
    info = writer.commit(put, gone, embedding_hash, manifest, why, merged)
    step("committed")
    return info


def collect(writer: Writer, vectors: VectorStore, step: Step) -> None:
    """Delete what no generation needs: staged leftovers, and segments whose last document was deleted.

    On a full disk that is left to the next run: what came before is committed and stays.
    """
    try:
        kept = writer.collect()
        step("collecting")
        vectors.keep(*kept)
        step("collected")
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        logger.warning("the disk is full (%s): all is done but deleting what is no longer needed, which the next run does", error.filename)


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
        if error.errno not in _NO_SPACE:
            raise
        raise RetrievalError(
            f"the disk is full ({error.filename or location}): nothing was changed, the previous generation is live; "
            "free some space and run the same command again, it goes on where it was"
        ) from error
