"""Searching one pinned generation: dense and lexical, fused, perhaps reranked, within what the caller may see."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval import text as texts
from retrieval.embed import Embedder
from retrieval.fusion import Candidates, Fusion
from retrieval.lexical import MAX_QUERY_TERMS, Mask, Ordinals
from retrieval.rerank import Reranker, rerank
from retrieval.signals import NAMES as SIGNALS
from retrieval.signals import signals, words_of
from retrieval.store import DocumentStore, Members
from retrieval.types import DocumentKey, Evidence, IndexCorrupt, Passage, RetrievalError, Scope
from retrieval.vectors import Searchable, VectorStore
from retrieval.vocabulary import Asked, Vocabulary, ask

# A longer question is cut here; the embedding model's window and the lexical index's bound on terms end much earlier.
MAX_QUERY_CHARS = 20_000
_KEPT_SCOPES = 16
_KEPT_STEMS = 100_000


@dataclass(frozen=True, slots=True)
class Ranking:
    """How the passages of a search are ordered. `vocabularies` are those of the domains searched.

    With a `reranker`, the best `rerank` fused passages are ordered anew.
    """

    fusion: Fusion = field(default_factory=Fusion)
    vocabularies: tuple[Vocabulary, ...] = ()
    reranker: Reranker | None = None
    rerank: int = 20


class Index:
    """One generation, opened and checked. Immutable and thread-safe; `refresh` gives the one that is live now."""

    def __init__(
        self,
        store: DocumentStore,
        vectors: VectorStore,
        embedder: Embedder,
        generation: int | None,
        opened: Searchable,
        members: Members,
        current: bool = False,
    ) -> None:
        self._store, self._vectors, self._embedder = store, vectors, embedder
        self.generation = generation
        self._current = current
        self._opened = opened
        self._kinds = members.kinds
        # By global ordinal: the database row of the chunk, and its kind; -1 for tombstones.
        self._rows = np.full(opened.size, -1, dtype=np.int64)
        self._kind = np.full(opened.size, -1, dtype=np.int32)
        starts = np.array([opened.offsets[name] for name in members.segments], dtype=np.int64)
        places = starts[members.segment] + members.ordinal
        self._rows[places], self._kind[places] = members.chunk, members.kind
        names = {name: number for number, name in enumerate(sorted({kind.lang for kind in members.kinds}))}
        self._languages = np.array([names[kind.lang] for kind in members.kinds] + [-1], dtype=np.int64)[self._kind]
        self._scopes: dict[Scope, Any] = {}
        # Stemming the passages anew for every question would take longer than the search itself.
        self._stems: dict[str, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls, store: DocumentStore, vectors: VectorStore, embedder: Embedder, generation: int | None = None, current: bool = False
    ) -> Index:
        """Open a generation (None: the live one; if there is none yet, an empty index).

        `current` leaves out the documents that are not live with the same text any more: for an older generation that stands in.
        Raises IndexCorrupt if a file of it is missing, truncated or altered, and RetrievalError if there is no such generation or it
        was made with another embedding model.
        """
        return _open(cls, store, vectors, embedder, generation, None, current)

    def at(self, generation: int | None, current: bool = False) -> Index:
        """Another generation, sharing what is open already; see `open`."""
        return _open(type(self), self._store, self._vectors, self._embedder, generation, self._opened, current)

    def refresh(self) -> Index:
        """This index if it is still the live one, else the live one, sharing what is open already."""
        live = self._store.live_generation()
        if live == self.generation:
            return self
        return self.at(live)

    def altered(self) -> bool:
        """Whether its files look different now from when they were checked; see `VectorStore.altered`."""
        return self._vectors.altered(self._opened)

    def __len__(self) -> int:
        """The number of chunks."""
        return int((self._rows >= 0).sum())

    def search(self, query: str, scope: Scope, k: int = 5, candidates: int = 100, ranking: Ranking | None = None) -> Evidence:
        """The `k` best passages for `query` among those `scope` may see; each retriever contributes its best `candidates`."""
        if k < 1 or candidates < 1:
            raise ValueError(f"k and candidates must be at least 1, found k={k}, candidates={candidates}")
        ranking = ranking or Ranking()
        query = query[:MAX_QUERY_CHARS]
        asked = ask(query, ranking.vocabularies)
        everything = self._find(query, asked, scope, max(candidates, k))
        if everything is None:
            return Evidence(query, (), self.generation, dict.fromkeys(SIGNALS, 0.0))
        found = everything.above(ranking.fusion.floor)
        order = ranking.fusion.fuse(found)
        if ranking.reranker is None:
            passages = self._passages(scope, order, found, k)
        else:
            passages = rerank(query, self._passages(scope, order, found, max(ranking.rerank, k)), ranking.reranker)[:k]
        dictionaries = [vocabulary.dictionary for vocabulary in ranking.vocabularies]
        visible = self._visible(scope)
        weights = [(word, self._rarity(word, visible)) for word in words_of(query, dictionaries)[:MAX_QUERY_TERMS]]
        if len(self._stems) > _KEPT_STEMS:
            self._stems = {}
        numbers = signals(query, everything, passages, weights, asked.rules, dictionaries, self._stems)
        return Evidence(query, passages, self.generation, numbers)

    def candidates(
        self, query: str, scope: Scope, candidates: int = 100, vocabularies: Sequence[Vocabulary] = ()
    ) -> tuple[Candidates, dict[int, tuple[DocumentKey, ...]]]:
        """What the retrievers find, unfused, and the documents each has been found in: what fusions are compared on."""
        query = query[:MAX_QUERY_CHARS]
        found = self._find(query, ask(query, vocabularies), scope, candidates)
        if found is None or self.generation is None:
            return Candidates.none(), {}
        places = np.union1d(found.dense, found.lexical).tolist()
        chunks = self._store.chunks(self.generation, [int(self._rows[place]) for place in places], scope, self._current)
        rows = {place: chunks.get(int(self._rows[place])) for place in places}
        return found, {place: tuple(source.key for source in row[1]) for place, row in rows.items() if row is not None}

    def _find(self, query: str, asked: Asked, scope: Scope, depth: int) -> Candidates | None:
        """The candidates of both retrievers, None where there is nothing to ask or to see."""
        visible = self._visible(scope)
        if self.generation is None or not query.strip() or visible.view.count == 0:
            return None
        vector = self._embedder.encode_queries([query])[0]
        dense, cosines, centred = self._opened.dense(vector, visible, depth)
        lexical, bm25, bound = self._opened.lexical.search(asked.terms, visible.view, depth)
        return Candidates(dense, cosines, centred, lexical, bm25, bound, depth, self._is_mixed(scope))

    def _rarity(self, word: str, visible: Any) -> float:
        # A Chinese word is indexed as its characters and bigrams; the rarest of them tells how rare it is.
        return max(self._opened.lexical.idf([word] if word.isascii() else texts.index_terms(word) or [word], visible.view))

    def _passages(self, scope: Scope, order: Sequence[tuple[int, float]], found: Candidates, k: int) -> tuple[Passage, ...]:
        dense, lexical = _ranking(found.dense, found.cosines), _ranking(found.lexical, found.bm25)
        passages: list[Passage] = []
        # A document deleted or given other labels after this index was opened is left out; the next in order takes its place.
        for start in range(0, len(order), k):
            if len(passages) >= k or self.generation is None:
                break
            batch = order[start : start + k]
            chunks = self._store.chunks(self.generation, [int(self._rows[place]) for place, _ in batch], scope, self._current)
            for place, score in batch:
                if (row := chunks.get(int(self._rows[place]))) is None:
                    continue
                chunk, sources = row
                dense_rank, dense_score = dense.get(place, (None, None))
                lexical_rank, lexical_score = lexical.get(place, (None, None))
                passages.append(Passage(chunk, sources[0], score, dense_rank, lexical_rank, dense_score, lexical_score, sources))
        return tuple(passages[:k])

    def _visible(self, scope: Scope) -> Any:
        with self._lock:
            known = self._scopes.get(scope)
        if known is not None:
            return known
        made = self._opened.visible(scope, self._mask(scope), self._languages)
        with self._lock:
            while len(self._scopes) >= _KEPT_SCOPES:
                self._scopes.pop(next(iter(self._scopes)))
            self._scopes[scope] = made
        return made

    def _is_mixed(self, scope: Scope) -> bool:
        """Whether the scope may see passages in several languages."""
        return len({kind.lang for kind in self._kinds if kind.visible(scope)}) > 1

    def _mask(self, scope: Scope) -> Mask:
        allowed = np.array([kind.visible(scope) for kind in self._kinds] + [False])
        # Tombstones have kind -1, which is the False at the end.
        mask: Mask = allowed[self._kind]
        return mask


def verify(store: DocumentStore, vectors: VectorStore, generation: int | None = None) -> list[str]:
    """What is wrong with a generation (None: the live one), one sentence for each bad file; empty if all is well."""
    wanted = store.live_generation() if generation is None else generation
    if wanted is None:
        return []
    problems: list[str] = []
    info = store.generation(wanted)
    if info is None:
        return [f"there is no generation {wanted}"]
    try:
        manifest = vectors.read_manifest(info)
    except IndexCorrupt as error:
        problems.append(str(error))
        manifest = {}
    members = store.members(wanted)
    last = np.zeros(len(members.segments), dtype=np.int64)
    np.maximum.at(last, members.segment, members.ordinal + 1)
    needed = {name: int(rows) for name, rows in zip(members.segments, last, strict=True) if rows}
    sizes, damaged = vectors.sizes({**store.merged(), **manifest}, needed)
    beyond = [f"segment {id}: the database names row {needed[id] - 1}, it has {size}" for id, size in sizes.items() if size < needed[id]]
    return problems + damaged + beyond


def _open(
    cls: type[Index],
    store: DocumentStore,
    vectors: VectorStore,
    embedder: Embedder,
    generation: int | None,
    opened: Searchable | None,
    current: bool = False,
) -> Index:
    wanted = store.live_generation() if generation is None else generation
    if wanted is None:
        return cls(store, vectors, embedder, None, vectors.open({}, ()), Members.none())
    info = store.generation(wanted)
    if info is None:
        raise RetrievalError(f"there is no generation {wanted}; the live one is {store.live_generation()}")
    if info.embedding_hash != embedder.hash:
        raise RetrievalError(
            f"generation {wanted} was made with the embedding model {info.embedding_hash[:12]}, configured is {embedder.hash[:12]}: "
            "their vectors cannot be compared; set the old model again, or run `appliance index rebuild` to embed all documents anew"
        )
    members = store.members(wanted, current)
    while True:
        try:
            # What a compaction made later, the database vouches for.
            found = vectors.open({**store.merged(), **vectors.read_manifest(info)}, members.segments, opened)
            return cls(store, vectors, embedder, wanted, found, members, current)
        except IndexCorrupt:
            # A segment that went after `members` was read, with its last document or into a larger one, is no damage.
            before, members = members, store.members(wanted, current)
            if members.segments == before.segments:
                raise


def _ranking(places: Ordinals, scores: NDArray[np.float32]) -> dict[int, tuple[int, float]]:
    return {int(place): (rank, float(score)) for rank, (place, score) in enumerate(zip(places, scores, strict=True))}
