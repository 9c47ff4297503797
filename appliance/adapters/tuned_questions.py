"""The embedded training questions of an adapter version, kept in its folder for the router."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from retrieval.embed import Embedder

_FILE = "questions.npz"
# Of so many nearest questions the mean is taken; the vectors of so many versions stay in memory.
_NEAREST, _REMEMBERED = 5, 8
# Cosines of the same text differ by no more than rounding does.
_SAME = 1e-6


class Near(NamedTuple):
    """How near a question is to those of training: the cosine to the nearest, the mean of those to the five nearest, the ids of the
    pairs with the nearest question, which are several where they ask the same, and how surely the version gives the answers to the five
    nearest that were measured (None where none was)."""

    best: float
    mean: float
    pairs: tuple[str, ...]
    sure: float | None = None


class Tuned(NamedTuple):
    """Training questions: `vectors` float32 [n, dim], L2-normalised, the ids of their pairs [n], none where they were not kept, and how
    surely the version gives their answers (see `finetune.recall`), float32 [n], NaN where that was not measured."""

    vectors: NDArray[np.float32]
    pairs: tuple[str, ...]
    sure: NDArray[np.float32]


def save(folder: Path, questions: Sequence[tuple[str, str]], embedder: Embedder, sure: Mapping[str, float]) -> None:
    """Embed the questions, each given with the id of its pair, into `folder`; `sure` is by the id of a pair."""
    import numpy as np

    texts = [question for _, question in questions]
    pairs = np.array([pair for pair, _ in questions], str)
    known = np.array([sure.get(pair, np.nan) for pair, _ in questions], np.float32)
    np.savez(folder / _FILE, vectors=embedder.encode_queries(texts), pairs=pairs, sure=known, model=np.array(json.dumps(embedder.hash)))


def load(folder: Path, embedding_hash: str) -> Tuned | None:
    """The questions, or None where there are none of this embedding model."""
    import numpy as np

    file = folder / _FILE
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as stored:
        if json.loads(str(stored["model"])) != embedding_hash:
            return None
        # Versions of earlier releases have no ids, or nothing measured.
        sure = stored["sure"] if "sure" in stored else np.full(len(stored["vectors"]), np.nan, np.float32)
        return Tuned(stored["vectors"], tuple(stored["pairs"].tolist()) if "pairs" in stored else (), sure)


class TunedQuestions:
    """Compares questions with those that versions were trained on; their vectors are read once."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Path, str], Tuned | None] = OrderedDict()

    def near(self, folder: Path, embedder: Embedder, question: str) -> Near | None:
        """How near `question` is to those of the version in `folder`, None where there are none of this embedding model."""
        import numpy as np

        key = (folder, embedder.hash)
        if key not in self._known:
            self._known[key] = load(folder, embedder.hash)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        tuned = self._known.get(key)
        if tuned is None or not len(tuned.vectors):
            return None
        cosines = tuned.vectors @ embedder.encode_queries([question])[0]
        best = float(cosines.max())
        same = np.flatnonzero(cosines >= best - _SAME) if tuned.pairs else ()
        measured = np.flatnonzero(~np.isnan(tuned.sure))
        sure = float(tuned.sure[measured[_nearest(cosines[measured])]].mean()) if len(measured) else None
        return Near(best, float(cosines[_nearest(cosines)].mean()), tuple(tuned.pairs[place] for place in same), sure)


def _nearest(cosines: NDArray[np.float32]) -> NDArray[np.intp]:
    """The places of the largest."""
    import numpy as np

    return np.argpartition(cosines, -_NEAREST)[-_NEAREST:] if len(cosines) > _NEAREST else np.arange(len(cosines))
