"""The opened segments of one generation as one searchable whole, with exact vector search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.embed import Vectors
from retrieval.lexical import Lexical, Mask, Ordinals, View
from retrieval.segments import Segment
from retrieval.types import Scope

# How many chunks the mean of all counts for in the mean of one language.
_LEAN = 10


@dataclass(frozen=True, slots=True)
class _Language:
    """The visible chunks of one language: their number, bitmap, and mean vector [dim]."""

    count: int
    bitmap: NDArray[np.uint8]
    mean: Vectors


@dataclass(frozen=True, slots=True)
class Visible:
    """The chunks one caller may see, as every search needs it: the lexical view, and the vector search's languages."""

    view: View
    languages: tuple[_Language, ...]


class Generation:
    """The opened segments of one generation, over global ordinals (segment offset + ordinal). Immutable, thread-safe."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        import faiss

        self.segments = list(segments)
        self.offsets: dict[str, int] = {}
        self.size = 0
        for segment in self.segments:
            self.offsets[segment.id] = self.size
            self.size += len(segment.vectors)
        self.lexical = Lexical([segment.postings for segment in self.segments])
        # Exact search; the copy is what FAISS scans, the file stays mapped and clean.
        self._vectors: Any = None
        for segment in self.segments:
            if self._vectors is None:
                self._vectors = faiss.IndexFlatIP(segment.vectors.shape[1])
            self._vectors.add(segment.vectors)

    def visible(self, scope: Scope, mask: Mask, languages: NDArray[np.int64]) -> Visible:
        """Prepare the searches over the chunks in `mask` [size]; `languages` [size] numbers the language of each."""
        view = self.lexical.view(mask)
        sums = {int(number): self._sum(mask & (languages == number)) for number in np.unique(languages[mask])}
        overall = np.sum([total for _, total in sums.values()], axis=0) / max(view.count, 1)
        found = [
            # The mean of a few chunks says more about their subject than their language: it leans on the mean of all.
            _Language(count, np.packbits(mask & (languages == number), bitorder="little"), (total + _LEAN * overall) / (count + _LEAN))
            for number, (count, total) in sums.items()
        ]
        return Visible(view, tuple(found))

    def _sum(self, mask: Mask) -> tuple[int, Vectors]:
        weights = mask.astype(np.float32)
        parts = [weights[self.offsets[s.id] : self.offsets[s.id] + len(s.vectors)] @ s.vectors for s in self.segments]
        return int(mask.sum()), np.sum(parts, axis=0, dtype=np.float32)

    def dense(self, query: Vectors, visible: Visible, k: int) -> tuple[Ordinals, NDArray[np.float32], NDArray[np.float32]]:
        """The `k` visible chunks nearest to `query` [dim]: global ordinals, cosines and rank scores, best first.

        Multilingual models place texts of one language near each other, so that every passage in the question's language would
        come before the answer in another. The rank score is therefore the cosine minus the mean cosine of the passage's
        language (centring by language: Libovický, Rosa and Fraser, Findings of EMNLP 2020); among passages of one language
        the order is that of the cosines.
        """
        import faiss

        parts: list[tuple[Ordinals, NDArray[np.float32], NDArray[np.float32]]] = []
        for language in visible.languages:
            selector = faiss.IDSelectorBitmap(len(language.bitmap), faiss.swig_ptr(language.bitmap))
            parameters = faiss.SearchParameters()
            parameters.sel = selector
            scores, ordinals = self._vectors.search(query.reshape(1, -1), min(k, language.count), params=parameters)
            found = ordinals[0] >= 0
            parts.append((ordinals[0][found].astype(np.int64), scores[0][found], scores[0][found] - query @ language.mean))
        if not parts:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), np.empty(0, dtype=np.float32)
        places, cosines, ranked = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        order = np.lexsort((places, -ranked))[:k]
        return places[order], cosines[order], ranked[order]
