"""Removing documents, rebuilding the index from the stored texts, and going back to an older generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from retrieval.commit import collect, commit, full_disk
from retrieval.embed import Embedder
from retrieval.staging import IngestSettings, Progress, Recipe, Staging, add_again, add_stored, show
from retrieval.store import DocumentStore, KnownContent, LiveDocument, Lock
from retrieval.types import DocumentKey, IndexCorrupt, RetrievalError
from retrieval.vectors import Step, VectorStore, no_step


def remove(
    keys: Sequence[DocumentKey],
    *,
    store: DocumentStore,
    vectors: VectorStore,
    lock: Lock,
    embedder: Callable[[], Embedder] | None = None,
    settings: IngestSettings | None = None,
    step: Step = no_step,
) -> dict[str, Any]:
    """Delete live documents for good: from every generation, with their text. {"removed", "generation"}.

    The ledger keeps id and hash, so that no older generation or restored copy brings them back. A text that another document has too
    stays under that one; `embedder` is called only if it was found by the title of the removed one. Raises RetrievalError naming the
    unknown ones, and then removes nothing.
    """
    generation = store.live_generation()
    info = store.generation(generation) if generation is not None else None
    wanted = list(dict.fromkeys(keys))
    live = {document.key for document in store.live(wanted)}
    if missing := [f"{key.domain}/{key.id}" for key in wanted if key not in live]:
        raise RetrievalError(f"no such document: {', '.join(missing[:10])}{' …' if len(missing) > 10 else ''}; nothing was removed")
    if info is None or not wanted:
        return {"removed": 0, "generation": generation}
    writer = store.writer(lock)
    put: list[LiveDocument] = []
    hashes: dict[str, str] = {}
    with full_disk(vectors.location):
        if strays := writer.strays([], wanted):
            if embedder is None:
                raise RetrievalError(
                    f"{strays[0].key.id} has the same text under another title: without an embedding model it cannot be indexed anew"
                )
            staging = Staging(vectors, embedder(), writer, settings or IngestSettings(), step)
            add_again(staging, strays)
            put, hashes = list(staging.done.values()), staging.hashes
        made = commit(store, writer, vectors, info.embedding_hash, hashes, put, wanted, f"remove {len(wanted)} documents", step)
        collect(writer, vectors, step)
    return {"removed": len(wanted), "generation": made.id}


def rebuild(
    *,
    store: DocumentStore,
    vectors: VectorStore,
    embedder: Embedder,
    lock: Lock,
    settings: IngestSettings | None = None,
    progress: Progress | None = None,
    step: Step = no_step,
) -> dict[str, Any]:
    """Chunk and embed all live documents anew from their stored texts, beside the live generation, and make the result live.

    The remedy for damaged index files and for a change of the embedding model. {"generation", "documents", "chunks"}.
    """
    settings = settings or IngestSettings()
    live = list(store.live_documents())
    if not live:
        return {"generation": store.live_generation(), "documents": 0, "chunks": 0}
    recipe = Recipe.of(settings, embedder.hash)
    writer = store.writer(lock)

    def left_behind(content: KnownContent) -> bool:
        """Whether an interrupted rebuild made it: what a generation holds may be what is damaged."""
        return not content.held

    handled = 0

    def shown() -> None:
        if progress is not None:
            share = (handled + staging.cut) / len(live)
            show(progress, "rebuild", staging, share, documents=handled, documents_total=len(live))

    staging = Staging(vectors, embedder, writer, settings, step, on_done=shown, reuse=left_behind)
    with full_disk(vectors.location):
        for document in live:
            add_stored(staging, document, recipe)
            handled += 1
            shown()
        staging.flush()
        shown()
        made = commit(store, writer, vectors, embedder.hash, staging.hashes, list(staging.done.values()), [], "rebuild", step, fresh=True)
        collect(writer, vectors, step)
    return {"generation": made.id, "documents": made.documents, "chunks": made.chunks}


def rollback(generation: int, *, store: DocumentStore, vectors: VectorStore, lock: Lock, step: Step = no_step) -> None:
    """Make an older generation live again, after checking its files. Documents deleted since stay deleted.

    Raises RetrievalError if there is no such generation (any more), IndexCorrupt if its files are damaged.
    """
    from retrieval.index import verify

    if generation not in (kept := store.generations()):
        raise RetrievalError(
            f"there is no generation {generation} to roll back to; kept are {', '.join(map(str, kept)) or 'none'} "
            "([retrieval] keep_generations says how many)"
        )
    if problems := verify(store, vectors, generation):
        raise IndexCorrupt("; ".join(problems))
    step("ready")
    store.writer(lock).rollback(generation)
    step("committed")
