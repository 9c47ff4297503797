"""Removing documents, rebuilding the index from the stored texts, and going back to an older generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from retrieval.commit import collect, commit, full_disk
from retrieval.embed import Embedder
from retrieval.parsers import Parsed
from retrieval.staging import IngestSettings, Progress, Recipe, Staging
from retrieval.store import DocumentStore, Lock
from retrieval.types import DocumentKey, IndexCorrupt, RetrievalError
from retrieval.vectors import Step, VectorStore, no_step


def remove(
    keys: Sequence[DocumentKey],
    *,
    store: DocumentStore,
    vectors: VectorStore,
    lock: Lock,
    embedder: Embedder | None = None,
    step: Step = no_step,
) -> dict[str, Any]:
    """Delete live documents for good: from every generation, with their text. {"removed", "generation"}.

    The ledger keeps id and hash, so that no older generation or restored copy brings them back. Raises RetrievalError naming the
    unknown ones, and then removes nothing.
    """
    generation = store.live_generation()
    info = store.generation(generation) if generation is not None else None
    live = {document.key for document in store.live_documents()}
    wanted = list(dict.fromkeys(keys))
    if missing := [f"{key.domain}/{key.id}" for key in wanted if key not in live]:
        raise RetrievalError(f"no such document: {', '.join(missing[:10])}{' …' if len(missing) > 10 else ''}; nothing was removed")
    if info is None or not wanted:
        return {"removed": 0, "generation": generation}
    writer = store.writer(lock)
    with full_disk(vectors.location):
        made = commit(store, writer, vectors, info.embedding_hash, {}, [], wanted, f"remove {len(wanted)} documents", step)
        collect(writer, vectors)
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
    recipe = Recipe.of(settings.chunk, embedder.hash)
    writer = store.writer(lock)
    staging = Staging(vectors, embedder, writer, settings, step)
    with full_disk(vectors.location):
        for done, document in enumerate(live):
            stored = store.document(document.key)
            if stored is None:
                raise RetrievalError(f"{document.key.domain}/{document.key.id}: its text is gone from the database; restore a backup")
            info = stored.info
            meta = {key: value for key, value in info.meta.items() if key != "pages"}
            pages = tuple((start, end, page) for start, end, page in info.meta.get("pages", ()))
            parsed = Parsed(info.title, stored.text, info.uri, lang=info.lang, pages=pages, meta=meta)
            full = recipe.full(info.title, info.uri, info.lang, dict(info.meta))
            staging.add(replace(document, recipe=full), parsed, info.lang, reuse=False)
            if progress is not None:
                progress("rebuild", done + 1, len(live))
        staging.flush()
        made = commit(store, writer, vectors, embedder.hash, staging.hashes, list(staging.done.values()), [], "rebuild", step, fresh=True)
        collect(writer, vectors)
    return {"generation": made.id, "documents": made.documents, "chunks": made.chunks}


def rollback(generation: int, *, store: DocumentStore, vectors: VectorStore, lock: Lock) -> None:
    """Make an older generation live again, after checking its files. Documents deleted since stay deleted.

    Raises RetrievalError if there is no such generation, IndexCorrupt if its files are damaged.
    """
    from retrieval.index import verify

    if problems := verify(store, vectors, generation):
        raise IndexCorrupt("; ".join(problems))
    store.writer(lock).rollback(generation)
