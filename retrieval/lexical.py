"""BM25 over immutable segments, with statistics over whatever is visible.

Neither bm25s (no deletes) nor tantivy (its own mutable index, which no generation can pin and share) fits immutable segments
shared by generations; this is a few arrays and one formula.

Formula: the Lucene variant of BM25 (Robertson and Zaragoza 2009; variants in Kamphuis et al., ECIR 2020):
score = sum over terms of ln(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / average length)),
with k1 = 0.9 and b = 0.4, the defaults of Anserini, with which BEIR's BM25 figures were made.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.postings import Postings
from retrieval.text import Dictionary, index_terms

K1 = 0.9
B = 0.4
# A longer question is scored by its rarest terms.
MAX_QUERY_TERMS = 128

Ordinals = NDArray[np.int64]
Mask = NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)

# What the rounding of float32 may add to a score or take from it, as a share of the greatest possible one.
_SLACK = 1e-4


def build(texts: Iterable[str], dictionaries: Iterable[Dictionary | None] | None = None) -> Postings:
    """The postings of texts, each with the dictionary of its domain; ordinals are their positions."""
    stems: dict[str, str] = {}
    hashes: dict[str, int] = {}
    terms: list[int] = []
    ordinals: list[int] = []
    counts: list[int] = []
    lengths: list[int] = []
    for ordinal, (text, dictionary) in enumerate(zip(texts, dictionaries or itertools.repeat(None), strict=False)):
        found = index_terms(text, stems, dictionary)
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
        return [_idf(view.count, self._frequency(self._places(term), view)) for term in terms]

    def search(self, terms: Mapping[str, float], view: View, k: int) -> tuple[Ordinals, NDArray[np.float32], float]:
        """The best `k` visible chunks that have one of the weighted `terms`: global ordinals and scores, best first.

        The third value is the sum of the rarities of the terms with weight 1, the question's own, which bounds their share of a score.
        Rare terms come first; once the chunks that have none of the terms so far cannot be among the best any more, the long lists of
        common terms are only looked up for those that can (MaxScore: Turtle and Flood 1995). The result is that of scoring all.
        """
        found = [(places, self._frequency(places, view), weight) for places, weight in ((self._places(t), w) for t, w in terms.items())]
        if len(found) > MAX_QUERY_TERMS:
            found = sorted(found, key=lambda entry: (entry[1] == 0, entry[1]))[:MAX_QUERY_TERMS]
        total = sum(_idf(view.count, frequency) for _, frequency, weight in found if weight == 1)
        bounds = [(weight * _idf(view.count, frequency), places) for places, frequency, weight in found if frequency]
        bounds.sort(key=lambda entry: -entry[0])
        scores = np.zeros(len(self._lengths), dtype=np.float32)
        left = sum(bound for bound, _ in bounds)
        slack = _SLACK * left
        # At least k chunks have a score of `floor` or more: k of those with the rarest term that so many have.
        floor = 0.0
        sample: Ordinals | None = None
        candidates: Ordinals | None = None
        for bound, places in bounds:
            ordinals, counts = self._postings(places)
            if candidates is None and floor > left + slack:
                candidates = np.flatnonzero(scores > floor - left - slack)
            if candidates is not None:
                at = np.minimum(np.searchsorted(ordinals, candidates), len(ordinals) - 1)
                counts = counts[at[ordinals[at] == candidates]]
                ordinals = candidates[ordinals[at] == candidates]
            elif view.count < len(view.mask):
                seen = view.mask[ordinals]
                ordinals, counts = ordinals[seen], counts[seen]
            tf = counts.astype(np.float32)
            scores[ordinals] += np.float32(bound) * tf / (tf + view.norm[ordinals])
            left -= bound
            if sample is None and len(ordinals) >= k:
                sample = ordinals
            if sample is not None and candidates is None:
                floor = float(np.partition(scores[sample], len(sample) - k)[len(sample) - k])
        reached = np.flatnonzero(scores >= floor if floor else scores)
        best, values = top(scores[reached], k)
        return reached[best], values, total

    def _places(self, term: str) -> list[tuple[int, slice]]:
        """The segments that have a term, and where in their postings."""
        key = np.uint64(term_hash(term))
        first, last = np.searchsorted(self._terms, key, "left"), np.searchsorted(self._terms, key, "right")
        return [(int(self._owner[at]), slice(int(self._low[at]), int(self._high[at]))) for at in range(int(first), int(last))]

    def _frequency(self, places: Sequence[tuple[int, slice]], view: View) -> int:
        """How many visible chunks have the term at these places."""
        if view.count == len(view.mask):
            return sum(place.stop - place.start for _, place in places)
        parts = (view.mask[self._segments[owner].ordinals[place] + self._offsets[owner]] for owner, place in places)
        return sum(int(part.sum()) for part in parts)

    def _postings(self, places: Sequence[tuple[int, slice]]) -> tuple[Ordinals, NDArray[np.uint16]]:
        """The global ordinals, ascending, and the counts at these places."""
        ordinals = [self._segments[owner].ordinals[place] + self._offsets[owner] for owner, place in places]
        return _join(ordinals, np.dtype(np.int64)), _join(
            [self._segments[owner].counts[place] for owner, place in places], np.dtype(np.uint16)
        )


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
