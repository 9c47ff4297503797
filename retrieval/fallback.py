"""What is searched: the live generation or, while files of it are damaged, an older one that is sound or what is left of the live one."""

from __future__ import annotations

import logging
import math
import threading
import time
from dataclasses import dataclass

import numpy as np

from retrieval.embed import Embedder
from retrieval.index import Index
from retrieval.store import DocumentStore, GenerationInfo
from retrieval.types import IndexCorrupt, RetrievalError
from retrieval.vectors import VectorStore

logger = logging.getLogger("appliance.index")

# Damaged files are read again this often: somebody may have put them back.
_RETRY_SECONDS = 30.0
# How often the files in use are looked at (not read), because whoever alters or cuts a file that is mapped alters what is searched.
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Serving:
    """What is searched now. `problem` is '' where `index` is the whole `live` generation, else it says what is damaged and what serves."""

    index: Index
    live: int | None
    problem: str = ""


def open_serving(store: DocumentStore, vectors: VectorStore, embedder: Embedder, known: Index | None = None) -> Serving:
    """Open the live generation or, if its files are damaged, the newest of its ancestors that is sound and of the same model, or the live
    generation without its damaged segments: whichever has more passages, the ancestor if both have as many.

    An ancestor is searched without what was changed or deleted since. Both may give fewer passages, never outdated ones. `known` is an
    index that is open already, with which segments are shared. Raises IndexCorrupt, naming the file and the remedy, if nothing is sound,
    and RetrievalError if the live generation was made with another embedding model.
    """

    live = store.live_generation()
    try:
        index = Index.open(store, vectors, embedder, live) if known is None or live is None else known.at(live)
        return Serving(index, live)
    except IndexCorrupt as error:
        damage = error
    info = store.generation(live) if live is not None else None
    if info is None:
        raise damage
    # The ancestor first: of equals it is the one that was a whole once.
    stand_ins = (_ancestor(store, vectors, embedder, known, info, damage), _what_is_left(store, vectors, embedder, info))
    found = [serving for serving in stand_ins if serving is not None]
    if not found:
        raise damage
    return max(found, key=lambda serving: len(serving.index))


def _ancestor(
    store: DocumentStore, vectors: VectorStore, embedder: Embedder, known: Index | None, live: GenerationInfo, damage: IndexCorrupt
) -> Serving | None:
    """The newest sound ancestor of a damaged generation."""
    info: GenerationInfo | None = live
    while info is not None and info.parent is not None:
        info = store.generation(info.parent)
        if info is not None:
            try:
                opened = known.at(info.id, True) if known is not None else Index.open(store, vectors, embedder, info.id, True)
            except RetrievalError:
                continue
            return Serving(opened, live.id, f"generation {live.id} is damaged, {info.id} serves without what has changed since: {damage}")
    return None


def _what_is_left(store: DocumentStore, vectors: VectorStore, embedder: Embedder, info: GenerationInfo) -> Serving | None:
    """A generation without its damaged segments; None if nothing is left, or if its manifest is damaged, which vouches for the others."""
    try:
        manifest = {**store.merged(), **vectors.read_manifest(info)}
    except IndexCorrupt:
        return None
    members = store.members(info.id)
    damage: dict[str, str] = {}
    for id in members.segments:
        try:
            vectors.open(manifest, [id])
        except IndexCorrupt as error:
            damage[id] = str(error)
    left = members.within(members.segments - damage.keys())
    if not len(left.chunk):
        return None
    lost = store.holding(np.unique(members.within(damage).content).tolist())
    index = Index(store, vectors, embedder, info.id, vectors.open(manifest, left.segments), left)
    lacks = f"generation {info.id} is damaged and serves without {lost} of its {info.documents} documents: {'; '.join(damage.values())}"
    # Somebody may have put the files back meanwhile.
    return Serving(index, info.id, lacks if damage else "")


class LiveIndex:
    """Follows the live generation, and has something stand in for it while it is damaged. Thread-safe."""

    def __init__(self, store: DocumentStore, vectors: VectorStore) -> None:
        self._store, self._vectors = store, vectors
        self._lock = threading.Lock()
        self._found: Serving | None = None
        self._problem = ""
        self._tried: tuple[int | None, str] | None = None
        self._again = self._look = 0.0

    def serving(self, embedder: Embedder) -> Serving:
        """What is searched now. A new live generation is noticed at once, altered files within a second, repaired ones in half a minute.

        Raises as `open_serving` does.
        """
        wanted = self._store.live_generation(), embedder.hash
        with self._lock:
            now = time.monotonic()
            if wanted != self._tried or now >= self._again:
                self._open(embedder, wanted)
            elif now >= self._look and self._found is not None:
                self._look = now + _LOOK_SECONDS
                if self._found.index.altered():
                    self._found = None
                    self._open(embedder, wanted)
            if self._found is None:
                raise IndexCorrupt(self._problem)
            return self._found

    def _open(self, embedder: Embedder, wanted: tuple[int | None, str]) -> None:
        same_model = self._found is not None and self._tried is not None and self._tried[1] == wanted[1]
        known = self._found.index if self._found is not None and same_model else None
        before = self._problem
        try:
            self._found = open_serving(self._store, self._vectors, embedder, known)
            self._problem = self._found.problem
        except IndexCorrupt as error:
            self._found, self._problem = None, str(error)
        self._tried = wanted
        self._again = time.monotonic() + _RETRY_SECONDS if self._problem else math.inf
        if self._problem and self._problem != before:
            logger.error("%s", self._problem)
        elif before and not self._problem:
            logger.warning("generation %s is sound and serves again", wanted[0])
