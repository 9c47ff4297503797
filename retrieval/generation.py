"""The opened segments of one generation as one searchable whole: small ones scanned exactly, big ones through their inverted file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.ann import FEW, Ann, Filter
from retrieval.embed import Vectors
from retrieval.lexical import Lexical, Mask, Ordinals, View
from retrieval.segments import Segment
from retrieval.types import Scope

# How many chunks the mean of all counts for in the mean of one language.
LEAN = 10
# Chunks of one language of which its mean is made, evenly spread; its error is then a thousandth of the vectors' own spread.
_SAMPLED = 50_000
# Where fewer rows than this share are visible, they are picked one by one.
_SPARSE = 1 / 8

Cosines = NDArray[np.float32]
Languages = NDArray[np.int16]


class Found(NamedTuple):
    """Rows of a segment with their cosines and languages."""

    rows: Ordinals
    cosines: Cosines
    languages: Languages


class _Part(Protocol):
    """Visible rows of one segment, searched in one way."""

    def nearest(self, query: Vectors, shifts: Cosines, k: int) -> Found:
        """At least the `k` rows nearest to `query` [dim] by cosine minus the shift of the row's language, if there are as many."""
        ...


@dataclass(frozen=True, slots=True)
class _All:
    """Most rows of a segment: one matrix product over the mapped vectors. `languages` [n] is -1 for rows that are not visible."""

    vectors: Vectors
    languages: Languages

    def nearest(self, query: Vectors, shifts: Cosines, k: int) -> Found:
        cosines = self.vectors @ query
        # The last shift is that of -1.
        return _best(np.arange(len(cosines)), cosines, self.languages, np.append(shifts, np.float32(np.inf)), k)


@dataclass(frozen=True, slots=True)
class _Some:
    """A few rows of a segment."""

    vectors: Vectors
    rows: Ordinals
    languages: Languages

    def nearest(self, query: Vectors, shifts: Cosines, k: int) -> Found:
        return _best(self.rows, self.vectors[self.rows] @ query, self.languages, shifts, k)


@dataclass(frozen=True, slots=True)
class _Probed:
    """The rows of the larger languages in a big segment: `filters` by language."""

    vectors: Vectors
    ann: Ann
    filters: Mapping[int, Filter]

    def nearest(self, query: Vectors, shifts: Cosines, k: int) -> Found:
        order = self.ann.order(query)
        found = {language: self.ann.candidates(query, order, visible, k) for language, visible in self.filters.items()}
        rows = np.concatenate(list(found.values()))
        languages = np.repeat(np.array(list(found), dtype=np.int16), [len(part) for part in found.values()])
        return _best(rows, self.vectors[rows] @ query, languages, shifts, k)


@dataclass(frozen=True, slots=True)
class Visible:
    """The chunks one caller may see, as every search needs it: the lexical view; the mean vector of each language [languages, dim];
    and the visible rows, with the global ordinal of the first row of their segment."""

    view: View
    means: Vectors
    parts: tuple[tuple[int, _Part], ...]


class Generation:
    """The opened segments of one generation, over global ordinals (segment offset + ordinal). Immutable, thread-safe."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = list(segments)
        self.offsets: dict[str, int] = {}
        self.size = 0
        for segment in self.segments:
            self.offsets[segment.id] = self.size
            self.size += len(segment.vectors)
        self.lexical = Lexical([segment.postings for segment in self.segments])

    def visible(self, scope: Scope, mask: Mask, languages: NDArray[np.int64]) -> Visible:
        """Prepare the searches over the chunks in `mask` [size]; `languages` [size] numbers the language of each."""
        # Languages are numbered anew: the visible ones from 0, rows that are not visible -1.
        totals = np.bincount(languages[mask])
        numbers = np.flatnonzero(totals)
        codes = np.full(len(totals) + 1, -1, dtype=np.int16)
        codes[numbers] = np.arange(len(numbers))
        coded = np.where(mask, codes[np.where(mask, languages, -1)], np.int16(-1))
        counts = totals[numbers]
        means = [self._mean(np.flatnonzero(coded == number)) for number in range(len(numbers))]
        overall = np.average(means, axis=0, weights=counts) if means else np.empty(0)
        # The mean of a few chunks says more about their subject than their language: it leans on the mean of all.
        leaning = [(mean * count + LEAN * overall) / (count + LEAN) for mean, count in zip(means, counts, strict=True)]
        parts = [(self.offsets[segment.id], part) for segment in self.segments for part in _parts(segment, self._within(segment, coded))]
        return Visible(self.lexical.view(mask), np.array(leaning, dtype=np.float32), tuple(parts))

    def dense(self, query: Vectors, visible: Visible, k: int) -> tuple[Ordinals, Cosines, Cosines]:
        """The `k` visible chunks nearest to `query` [dim]: global ordinals, cosines and rank scores, best first.

        Multilingual models place texts of one language near each other, so that every passage in the question's language would
        come before the answer in another. The rank score is therefore the cosine minus the mean cosine of the passage's
        language (centring by language: Libovický, Rosa and Fraser, Findings of EMNLP 2020); among passages of one language
        the order is that of the cosines. Cosines are exact; in big segments a few of the chunks may be missed (see `retrieval.ann`).
        """
        if not visible.parts:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), np.empty(0, dtype=np.float32)
        shifts = visible.means @ query
        found = [(offset, part.nearest(query, shifts, k)) for offset, part in visible.parts]
        places = np.concatenate([offset + part.rows for offset, part in found])
        cosines = np.concatenate([part.cosines for _, part in found])
        ranked = cosines - shifts[np.concatenate([part.languages for _, part in found])]
        order = np.lexsort((places, -ranked))[:k]
        return places[order], cosines[order], ranked[order]

    def _within(self, segment: Segment, column: Languages) -> Languages:
        offset = self.offsets[segment.id]
        return column[offset : offset + len(segment.vectors)]

    def _mean(self, places: Ordinals) -> NDArray[np.float64]:
        """The mean vector [dim] of some chunks; of very many, that of an even sample."""
        if len(places) > _SAMPLED:
            places = places[np.linspace(0, len(places) - 1, _SAMPLED).astype(np.int64)]
        ends = np.searchsorted(places, [self.offsets[segment.id] + len(segment.vectors) for segment in self.segments])
        total = np.zeros(self.segments[0].vectors.shape[1])
        for segment, part in zip(self.segments, np.split(places, ends[:-1]), strict=True):
            total += segment.vectors[part - self.offsets[segment.id]].sum(axis=0, dtype=np.float64)
        return total / len(places)


def _parts(segment: Segment, languages: Languages) -> Iterator[_Part]:
    """How the visible rows of a segment are searched, decided by how many there are; `languages` [n] is -1 for the others."""
    # A plain view of the mapped file: numpy's memmap class costs time in every operation.
    vectors = np.asarray(segment.vectors)
    if segment.ann is not None:
        masks = {language: languages == language for language in np.unique(languages[languages >= 0]).tolist()}
        filters = {language: segment.ann.filter(mask) for language, mask in masks.items() if mask.sum() > FEW}
        if filters:
            yield _Probed(vectors, segment.ann, filters)
        few = np.flatnonzero((languages >= 0) & ~np.isin(languages, list(filters)))
    elif (languages >= 0).sum() >= _SPARSE * len(languages):
        yield _All(vectors, languages)
        return
    else:
        few = np.flatnonzero(languages >= 0)
    if len(few):
        yield _Some(vectors, few, languages[few])


def _best(rows: Ordinals, cosines: Cosines, languages: Languages, shifts: Cosines, k: int) -> Found:
    """The `k` rows with the largest cosine minus shift; those with an infinite shift are left out."""
    ranked = cosines - shifts[languages]
    best = np.argpartition(-ranked, k)[:k] if k < len(ranked) else np.arange(len(ranked))
    best = best[np.isfinite(ranked[best])]
    return Found(rows[best], cosines[best], languages[best])
