"""One order out of two: what the vectors found and what the words found.

"convex" is weight * dense + (1 - weight) * lexical, each as a share of the best found above the theoretical minimum (Bruch, Gai and
Ingber, ACM TOIS 2023). The minimum of BM25 is 0, and so is that of a cosine less the mean of the passage's language: what any
passage of that language has. "rrf" needs no scores: each retriever gives 1 / (60 + rank), ranks from 1 (reciprocal rank fusion:
Cormack, Clarke and Buettcher, SIGIR 2009).

The defaults were chosen on training and development questions of five public sets in English and Chinese.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.lexical import Ordinals

RRF_K = 60
# Where passages in several languages are searched: a lexical match below this share of the best possible score shares little but
# common words with the question, as every passage does whose language is the question's and not the answer's.
FLOOR = 0.2

Kind = Literal["rrf", "convex"]
Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What the retrievers found for one question, each best first: global ordinals [n] and scores [n].

    `centred` are cosines less the mean of the passage's language, `bound` the largest BM25 score the question could reach, `depth` how
    many each retriever was asked for, and `mixed` says whether passages in several languages were searched.
    """

    dense: Ordinals
    cosines: Scores
    centred: Scores
    lexical: Ordinals
    bm25: Scores
    bound: float
    depth: int
    mixed: bool = False

    @staticmethod
    def none() -> Candidates:
        """Nothing found."""
        places, scores = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        return Candidates(places, scores, scores, places, scores, 0.0, 0)

    def above(self, floor: float | None) -> Candidates:
        """Without the lexical matches that score less than this share of the bound; None: `FLOOR` if the languages are mixed, else 0."""
        if floor is None:
            floor = FLOOR if self.mixed else 0.0
        enough = int((self.bm25 >= floor * self.bound).sum())
        return replace(self, lexical=self.lexical[:enough], bm25=self.bm25[:enough])


@dataclass(frozen=True, slots=True)
class Fusion:
    """How two orders become one; `weight` in [0, 1] is the share of the dense one: 1 is dense alone, 0 lexical alone.

    Lexical matches below the share `floor` in [0, 1] of the best possible score take no part (see `Candidates.above`).
    """

    kind: Kind = "convex"
    weight: float = 0.6
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("rrf", "convex") or not (0 <= self.weight <= 1 and (self.floor is None or 0 <= self.floor <= 1)):
            raise ValueError(f"expected kind rrf or convex, weight and floor in [0, 1], found {self.kind!r}, {self.weight}, {self.floor}")

    def fuse(self, found: Candidates) -> list[tuple[int, float]]:
        """Every candidate with its fused score, best first; equal ones by the better of their ranks."""
        found = found.above(self.floor)
        places = np.union1d(found.dense, found.lexical)
        near, shared = np.searchsorted(places, found.dense), np.searchsorted(places, found.lexical)
        if self.kind == "rrf":
            # Twice the reciprocals, so that equal shares give their plain sum.
            parts = [_spread(len(places), where, 2 / (RRF_K + 1 + np.arange(len(where))), 0.0) for where in (near, shared)]
        else:
            # What a retriever left out scores at most as its last; what shares no word with the question scores 0.
            least = float(found.bm25[-1]) if 0 < found.depth <= len(found.bm25) else 0.0
            parts = [
                _spread(len(places), near, found.centred, float(found.centred[-1]) if len(near) else 0.0),
                _spread(len(places), shared, found.bm25, least),
            ]
            parts = [_theoretical(part) for part in parts]
        fused = self.weight * parts[0] + (1 - self.weight) * parts[1]
        ranks = np.full((2, len(places)), len(places))
        ranks[0, near], ranks[1, shared] = np.arange(len(near)), np.arange(len(shared))
        order = np.lexsort((places, ranks.min(axis=0), -fused))
        return [(int(places[position]), float(fused[position])) for position in order]


def _spread(size: int, where: NDArray[np.int64], scores: NDArray[np.float64] | Scores, otherwise: float) -> NDArray[np.float64]:
    """`scores` at the positions `where` of an array [size], `otherwise` elsewhere."""
    spread = np.full(size, otherwise)
    spread[where] = scores
    return spread


def _theoretical(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores as shares of the best; 0 is the theoretical minimum. All 0 if nothing exceeds it."""
    best = scores.max(initial=0.0)
    return scores / best if best > 0 else np.zeros_like(scores)
