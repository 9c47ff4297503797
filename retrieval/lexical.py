"""BM25 over immutable segments, with statistics over whatever is visible.

Neither bm25s (no deletes) nor tantivy (its own mutable index, which no generation can pin and share) fits immutable segments
shared by generations; this is a few arrays and one formula.

Formula: the Lucene variant of BM25 (Robertson and Zaragoza 2009; variants in Kamphuis et al., ECIR 2020):
score = sum over terms of ln(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / average length)),
with k1 = 0.9 and b = 0.4, the defaults of Anserini, with which BEIR's BM25 figures were made.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.text import index_terms

K1 = 0.9
B = 0.4
# A longer question is scored by its rarest terms.
MAX_QUERY_TERMS = 128

Ordinals = NDArray[np.int64]
Mask = NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Postings:
    """The inverted index of one segment.

    `terms` [V] are sorted 64-bit hashes of terms (no words leave the database; by the birthday bound two million terms collide with
    probability 1e-7); the postings of term i are ``starts[i]:starts[i + 1]`` of `ordinals` and `counts`; `lengths` [n] are in terms.
    """

    terms: NDArray[np.uint64]
    starts: NDArray[np.int64]
    ordinals: NDArray[np.int32]
    counts: NDArray[np.uint16]
    lengths: NDArray[np.int32]

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, terms=self.terms, starts=self.starts, ordinals=self.ordinals, counts=self.counts, lengths=self.lengths)

    @staticmethod
    def load(path: Path) -> Postings:
        with np.load(path, allow_pickle=False) as arrays:
            return Postings(**{name: arrays[name] for name in ("terms", "starts", "ordinals", "counts", "lengths")})


def build(texts: Iterable[str]) -> Postings:
    """The postings of texts; ordinals are their positions."""
    stems: dict[str, str] = {}
    hashes: dict[str, int] = {}
    terms: list[int] = []
    ordinals: list[int] = []
    counts: list[int] = []
    lengths: list[int] = []
    for ordinal, text in enumerate(texts):
        found = index_terms(text, stems)
        lengths.append(len(found))
        for term, count in Counter(found).items():
            if term not in hashes:
                hashes[term] = term_hash(term)
            terms.append(hashes[term])
            ordinals.append(ordinal)
            counts.append(min(count, 65_535))
    keys = np.array(terms, dtype=np.uint64)
    order = np.argsort(keys, kind="stable")
    unique, first = np.unique(keys[order], return_index=True)
    return Postings(
        terms=unique,
        starts=np.append(first, len(keys)).astype(np.int64),
        ordinals=np.array(ordinals, dtype=np.int32)[order],
        counts=np.array(counts, dtype=np.uint16)[order],
        lengths=np.array(lengths, dtype=np.int32),
    )


def term_hash(term: str) -> int:
    return int.from_bytes(hashlib.blake2b(term.encode("utf-8"), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class View:
    """What one caller sees of the lexical index: `norm` [N] is the length part of the formula, `count` the visible chunks."""

    mask: Mask
    norm: NDArray[np.float32]
    count: int


class Lexical:
    """The segments of a generation as one inverted index over global ordinals (segment offset + ordinal). Immutable."""

    def __init__(self, segments: Sequence[Postings]) -> None:
        sizes = [len(segment.lengths) for segment in segments]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._segments = list(segments)
        self._lengths = _join([segment.lengths for segment in segments], np.dtype(np.int32))
        terms = _join([segment.terms for segment in segments], np.dtype(np.uint64))
        order = np.argsort(terms, kind="stable")
        self._terms = terms[order]
        self._owner = np.repeat(np.arange(len(segments)), [len(segment.terms) for segment in segments])[order]
        self._low = _join([segment.starts[:-1] for segment in segments], np.dtype(np.int64))[order]
        self._high = _join([segment.starts[1:] for segment in segments], np.dtype(np.int64))[order]

    def view(self, mask: Mask) -> View:
        """Statistics over the chunks in `mask` [N] alone: what a caller may not see cannot show in a score."""
        count = int(mask.sum())
        average = float(self._lengths[mask].mean()) if count else 1.0
        norm = K1 * (1 - B + B * self._lengths / max(average, 1e-9))
        return View(mask, norm.astype(np.float32), count)

    def idf(self, terms: Sequence[str], view: View) -> list[float]:
        """The rarity of each term among the visible chunks, ln(1 + (N - df + 0.5) / (df + 0.5))."""
        return [_idf(view.count, int(view.mask[self._postings(term)[0]].sum())) for term in terms]

    def search(self, query: str, view: View, k: int) -> tuple[Ordinals, NDArray[np.float32], float]:
        """The best `k` visible chunks that share a term with `query`: global ordinals and scores, best first.

        The third value is the sum of the rarities of the query's terms, which bounds every score from above.
        """
        found = [self._postings(term) for term in dict.fromkeys(index_terms(query))]
        if len(found) > MAX_QUERY_TERMS:
            found = sorted(found, key=lambda postings: (len(postings[0]) == 0, len(postings[0])))[:MAX_QUERY_TERMS]
        scores = np.zeros(len(self._lengths), dtype=np.float32)
        total = 0.0
        for ordinals, counts in found:
            df = int(view.mask[ordinals].sum())
            rarity = _idf(view.count, df)
            total += rarity
            if df:
                scores[ordinals] += np.float32(rarity) * counts / (counts + view.norm[ordinals])
        scores[~view.mask] = 0
        return *top(scores, k), total

    def _postings(self, term: str) -> tuple[Ordinals, NDArray[np.float32]]:
        key = np.uint64(term_hash(term))
        first, last = np.searchsorted(self._terms, key, "left"), np.searchsorted(self._terms, key, "right")
        ordinals: list[Ordinals] = []
        counts: list[NDArray[np.uint16]] = []
        for entry in range(int(first), int(last)):
            owner = int(self._owner[entry])
            place = slice(int(self._low[entry]), int(self._high[entry]))
            ordinals.append(self._segments[owner].ordinals[place] + self._offsets[owner])
            counts.append(self._segments[owner].counts[place])
        return _join(ordinals, np.dtype(np.int64)), _join(counts, np.dtype(np.uint16)).astype(np.float32)


def top(scores: NDArray[np.float32], k: int) -> tuple[Ordinals, NDArray[np.float32]]:
    """Positions and values of the `k` largest positive scores, best first, equal ones by position."""
    best = np.argpartition(-scores, k)[:k] if k < len(scores) else np.arange(len(scores))
    best = best[scores[best] > 0]
    best = best[np.lexsort((best, -scores[best]))]
    return best.astype(np.int64), scores[best]


def _idf(total: int, df: int) -> float:
    return float(np.log1p((total - df + 0.5) / (df + 0.5)))


def _join(parts: Sequence[NDArray[T]], dtype: np.dtype[T]) -> NDArray[T]:
    return np.concatenate(parts) if parts else np.empty(0, dtype=dtype)
