"""The embedded training questions of an adapter version, kept in its folder for the router."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from retrieval.embed import Embedder

_FILE = "questions.npz"
# Of so many nearest questions the mean is taken; the vectors of so many versions stay in memory.
_NEAREST, _REMEMBERED = 5, 8


class Near(NamedTuple):
    """How near a question is to those of training: the cosine to the nearest, and the mean of those to the five nearest."""

    best: float
    mean: float


def save(folder: Path, questions: Sequence[str], embedder: Embedder) -> None:
    """Embed the questions into `folder`; float32 [n, dim], L2-normalised."""
    import numpy as np

    np.savez(folder / _FILE, vectors=embedder.encode_queries(list(questions)), model=np.array(json.dumps(embedder.hash)))


def load(folder: Path, embedding_hash: str) -> NDArray[np.float32] | None:
    """The vectors, or None where there are none of this embedding model."""
    import numpy as np

    file = folder / _FILE
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as stored:
        if json.loads(str(stored["model"])) != embedding_hash:
            return None
        vectors: NDArray[np.float32] = stored["vectors"]
    return vectors


class TunedQuestions:
    """Compares questions with those that versions were trained on; their vectors are read once."""

    def __init__(self) -> None:
        self._vectors: OrderedDict[tuple[Path, str], NDArray[np.float32] | None] = OrderedDict()

    def near(self, folder: Path, embedder: Embedder, question: str) -> Near | None:
        """How near `question` is to those of the version in `folder`, None where there are none of this embedding model."""
        import numpy as np

        key = (folder, embedder.hash)
        if key not in self._vectors:
            self._vectors[key] = load(folder, embedder.hash)
            while len(self._vectors) > _REMEMBERED:
                self._vectors.popitem(last=False)
        vectors = self._vectors.get(key)
        if vectors is None or not len(vectors):
            return None
        cosines = np.sort(vectors @ embedder.encode_queries([question])[0])[-_NEAREST:]
        return Near(float(cosines[-1]), float(cosines.mean()))
