"""Labelled questions whose best arm follows from one or two features, so that there is something to learn."""

from __future__ import annotations

import numpy as np

from router.features import NAMES
from router.fit import Labelled
from router.types import Arm


def labelled(count: int, seed: int = 0, noise: float = 0.1) -> list[Labelled]:
    """A third has no answer, which a low `e_term_coverage` tells; of the others `rag` answers those with a high `e_dense_top` well, `quote`
    the others. Every sixth question cannot be put to `finetuned`, which is right by chance only."""
    generator = np.random.default_rng(seed)
    made: list[Labelled] = []
    for number in range(count):
        row = generator.normal(size=len(NAMES))
        unanswerable, dense = row[NAMES.index("e_term_coverage")] < -0.43, row[NAMES.index("e_dense_top")] > 0
        luck = generator.normal(scale=noise, size=3)
        utility: dict[Arm, float | None] = {
            "quote": -0.5 if unanswerable else (-0.5 if dense else 0.6 + luck[0]),
            "rag": -0.5 if unanswerable else (0.6 + luck[1] if dense else -0.5),
            "finetuned": None if number % 6 == 0 else -0.5 if unanswerable or generator.random() < 0.5 else 0.5,
            "refuse": 1.0 if unanswerable else 0.0,
        }
        lang = "zh" if number % 2 else "en"
        made.append(Labelled(f"q{number}", f"document {number // 2}", lang, tuple(row.tolist()), utility))
    return made
