"""The embedded training questions of an adapter version, kept in its folder for the router."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from retrieval.embed import Embedder

_FILE = "questions.npz"


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


def nearest_question(folder: Path, embedder: Embedder, question: str) -> float | None:
    """Cosine of the question to the nearest one of training, None where there are none of this embedding model."""
    vectors = load(folder, embedder.hash)
    if vectors is None or not len(vectors):
        return None
    return float((vectors @ embedder.encode_queries([question])[0]).max())
