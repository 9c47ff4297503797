"""Searching one pinned generation: dense and lexical, fused by rank, within what the caller may see."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval import text as texts
from retrieval.embed import Embedder
from retrieval.lexical import MAX_QUERY_TERMS, Mask, Ordinals
from retrieval.store import DocumentStore, Member, Place
from retrieval.types import Evidence, IndexCorrupt, Passage, RetrievalError, Scope
from retrieval.vectors import Searchable, VectorStore

# Reciprocal rank fusion, score = sum of 1 / (60 + rank) with ranks from 1: Cormack, Clarke and Buettcher, SIGIR 2009.
RRF_K = 60
# A longer question is cut here; the embedding model's window and the lexical index's bound on terms end much earlier.
MAX_QUERY_CHARS = 20_000
SIGNALS = (
    *("dense_top", "dense_gap", "lexical_top", "lexical_gap", "overlap", "term_coverage", "coverage_all"),
    *("documents", "newest_days", "oldest_days", "passages"),
)
_KEPT_SCOPES = 16
# A lexical match below this share of the best possible score shares little but common words with the question, as every
# passage does whose language is not the answer's; it does not take part in the fusion. Chosen on training questions in English and Chinese.
MIN_LEXICAL_SHARE = 0.2


class Index:
    """One generation, opened and checked. Immutable and thread-safe; `refresh` gives the one that is live now."""

    def __init__(
        self,
        store: DocumentStore,
        vectors: VectorStore,
        embedder: Embedder,
        generation: int | None,
        opened: Searchable,
        members: Sequence[Member],
        places: Sequence[Place],
    ) -> None:
        self._store, self._vectors, self._embedder = store, vectors, embedder
        self.generation = generation
        self._opened = opened
        self._members = members
        # By global ordinal: the database row of the chunk, and the position of its document in `members`; -1 for tombstones.
        self._rows = np.full(opened.size, -1, dtype=np.int64)
        self._owners = np.full(opened.size, -1, dtype=np.int64)
        position = {member.version_id: index for index, member in enumerate(members)}
        for segment, ordinal, chunk, version in places:
            place = opened.offsets[segment] + ordinal
            self._rows[place], self._owners[place] = chunk, position[version]
        names = {name: number for number, name in enumerate(sorted({member.lang for member in members}))}
        self._languages = np.array([names[member.lang] for member in members] + [-1], dtype=np.int64)[self._owners]
        self._scopes: dict[Scope, Any] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, store: DocumentStore, vectors: VectorStore, embedder: Embedder, generation: int | None = None) -> Index:
        """Open a generation (None: the live one; if there is none yet, an empty index).

        Raises IndexCorrupt if a file of it is missing, truncated or altered, and RetrievalError if there is no such generation or it
        was made with another embedding model.
        """
        return _open(cls, store, vectors, embedder, generation, None)

    def refresh(self) -> Index:
        """This index if it is still the live one, else the live one, sharing what is open already."""
        live = self._store.live_generation()
        if live == self.generation:
            return self
        return _open(type(self), self._store, self._vectors, self._embedder, live, self._opened)

    def __len__(self) -> int:
        """The number of chunks."""
        return int((self._rows >= 0).sum())

    def search(self, query: str, scope: Scope, k: int = 5, candidates: int = 50) -> Evidence:
        """The `k` best passages for `query` among those `scope` may see; each retriever contributes its best `candidates`."""
        if k < 1 or candidates < 1:
            raise ValueError(f"k and candidates must be at least 1, found k={k}, candidates={candidates}")
        query = query[:MAX_QUERY_CHARS]
        visible = self._visible(scope)
        if self.generation is None or not query.strip() or visible.view.count == 0:
            return Evidence(query, (), self.generation, dict.fromkeys(SIGNALS, 0.0))
        depth = max(candidates, k)
        vector = self._embedder.encode_queries([query])[0]
        nearest, cosines, ranked = self._opened.dense(vector, visible, depth)
        matching, scores, possible = self._opened.lexical.search(query, visible.view, depth)
        enough = scores >= MIN_LEXICAL_SHARE * possible
        dense, lexical = _ranking(nearest, cosines), _ranking(matching[enough], scores[enough])
        fused = {
            place: sum(1 / (RRF_K + 1 + ranking[place][0]) for ranking in (dense, lexical) if place in ranking) for place in dense | lexical
        }
        order = sorted(fused, key=lambda place: (-fused[place], place))
        passages = self._passages(order, fused, dense, lexical, k)
        weights = [(word, self._rarity(word, visible)) for word in texts.content_words(query)[:MAX_QUERY_TERMS]]
        signals = _signals(passages, weights) | {
            "dense_top": _first(cosines),
            "dense_gap": _first(ranked) - _first(ranked[1:]),
            "lexical_top": _first(scores),
            "lexical_gap": _first(scores) - _first(scores[1:]),
        }
        return Evidence(query, passages, self.generation, signals)

    def _rarity(self, word: str, visible: Any) -> float:
        # A Chinese word is indexed as its characters and bigrams; the rarest of them tells how rare it is.
        return max(self._opened.lexical.idf([word] if word.isascii() else texts.index_terms(word) or [word], visible.view))

    def _passages(
        self,
        order: Sequence[int],
        fused: dict[int, float],
        dense: dict[int, tuple[int, float]],
        lexical: dict[int, tuple[int, float]],
        k: int,
    ) -> tuple[Passage, ...]:
        passages: list[Passage] = []
        # A document deleted after this index was opened has no text any more; the next in order takes its place.
        for start in range(0, len(order), k):
            if len(passages) >= k or self.generation is None:
                break
            batch = order[start : start + k]
            chunks = self._store.chunks(self.generation, [int(self._rows[place]) for place in batch])
            for place in batch:
                if (found := chunks.get(int(self._rows[place]))) is None:
                    continue
                dense_rank, dense_score = dense.get(place, (None, None))
                lexical_rank, lexical_score = lexical.get(place, (None, None))
                passages.append(Passage(*found, fused[place], dense_rank, lexical_rank, dense_score, lexical_score))
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

    def _mask(self, scope: Scope) -> Mask:
        domains, labels = scope.domains, scope.labels
        allowed = np.array(
            [(domains is None or member.domain in domains) and member.labels <= labels for member in self._members] + [False]
        )
        # Tombstones have owner -1, which is the False at the end.
        mask: Mask = allowed[self._owners]
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
    _, places = store.members(wanted)
    needed: dict[str, int] = {}
    for place in places:
        needed[place.segment] = max(needed.get(place.segment, 0), place.ordinal + 1)
    sizes, damaged = vectors.sizes(manifest, needed)
    beyond = [f"segment {id}: the database names row {needed[id] - 1}, it has {size}" for id, size in sizes.items() if size < needed[id]]
    return problems + damaged + beyond


def _open(
    cls: type[Index], store: DocumentStore, vectors: VectorStore, embedder: Embedder, generation: int | None, opened: Searchable | None
) -> Index:
    wanted = store.live_generation() if generation is None else generation
    if wanted is None:
        return cls(store, vectors, embedder, None, vectors.open({}, ()), [], [])
    info = store.generation(wanted)
    if info is None:
        raise RetrievalError(f"there is no generation {wanted}; the live one is {store.live_generation()}")
    if info.embedding_hash != embedder.hash:
        raise RetrievalError(
            f"generation {wanted} was made with the embedding model {info.embedding_hash[:12]}, configured is {embedder.hash[:12]}: "
            "their vectors cannot be compared; set the old model again, or run `appliance index rebuild` to embed all documents anew"
        )
    members, places = store.members(wanted)
    segments = {place.segment for place in places}
    found = vectors.open(vectors.read_manifest(info), segments, opened)
    return cls(store, vectors, embedder, wanted, found, members, places)


def _ranking(places: Ordinals, scores: NDArray[np.float32]) -> dict[int, tuple[int, float]]:
    return {int(place): (rank, float(score)) for rank, (place, score) in enumerate(zip(places, scores, strict=True))}


def _signals(passages: Sequence[Passage], weights: list[tuple[str, float]]) -> dict[str, float]:
    """The signals about the passages found."""
    now = datetime.now(UTC)
    ages = [(now - passage.document.updated_at).total_seconds() / 86_400 for passage in passages]
    covered = [_covered(weights, passage) for passage in passages]
    total = sum(weight for _, weight in weights)
    both = sum(passage.dense_rank is not None and passage.lexical_rank is not None for passage in passages)

    def share(words: set[str]) -> float:
        return sum(weight for word, weight in weights if word in words) / total if total else 0.0

    return {
        "overlap": both / len(passages) if passages else 0.0,
        "term_coverage": share(covered[0]) if covered else 0.0,
        "coverage_all": share(set().union(*covered)),
        "documents": float(len({passage.document.key for passage in passages})),
        "newest_days": min(ages, default=0.0),
        "oldest_days": max(ages, default=0.0),
        "passages": float(len(passages)),
    }


def _first(scores: NDArray[np.float32]) -> float:
    return float(scores[0]) if len(scores) else 0.0


def _covered(weights: list[tuple[str, float]], passage: Passage) -> set[str]:
    """The words that occur in the passage or its headings; Chinese ones are looked up as text, as segmentation may differ."""
    whole = "\n".join((passage.document.title, *passage.chunk.heading, passage.chunk.text))
    terms = set(texts.index_terms(whole))
    return {word for word, _ in weights if word in terms or (not word.isascii() and word in whole)}
