"""The second look: a cross-encoder reads question and passage together and orders the best of the fused passages anew."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from retrieval.embed import retrieval_text
from retrieval.loading import ONE_AT_A_TIME
from retrieval.types import Passage, RetrievalError

# A text beyond this cannot reach the model's window; cutting it first keeps a huge question cheap.
_MAX_CHARS = 20_000


class Reranker(Protocol):
    """Reads a question beside texts."""

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """One number per text, larger is better; comparable within one call only."""
        ...


class CrossEncoderReranker:
    """A sentence-transformers cross-encoder folder (a sequence classifier with one label); thread-safe.

    `find` says where the folder is; it is asked, and the model loaded, on first use.
    """

    def __init__(self, find: Callable[[], Path], batch_size: int = 16) -> None:
        self._find = find
        self._batch_size = batch_size
        self._model: Any = None
        self._lock = threading.Lock()

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        if not texts:
            return []
        pairs = [(query[:_MAX_CHARS], text[:_MAX_CHARS]) for text in texts]
        with self._lock:
            found = self._load().predict(pairs, batch_size=self._batch_size, show_progress_bar=False)
        return [float(score) for score in found]

    def _load(self) -> Any:
        if self._model is None:
            path = self._find()
            if not (path / "config.json").is_file():
                raise RetrievalError(f"{path}: no cross-encoder here (config.json is missing); check [retrieval] reranker")
            with ONE_AT_A_TIME:
                from sentence_transformers import CrossEncoder

                model = CrossEncoder(str(path), local_files_only=True)
            if model.num_labels != 1:
                raise RetrievalError(
                    f"{path}: a reranker gives one score, this model has {model.num_labels} labels; name a cross-encoder for ranking"
                )
            self._model = model
        return self._model


def rerank(query: str, passages: Sequence[Passage], reranker: Reranker) -> tuple[Passage, ...]:
    """The passages in the reranker's order, with its scores; equal ones keep their order."""
    texts = [retrieval_text(passage.document.title, passage.chunk.heading, passage.chunk.text) for passage in passages]
    scored = [replace(passage, rerank_score=score) for passage, score in zip(passages, reranker.scores(query, texts), strict=True)]
    return tuple(sorted(scored, key=lambda passage: -(passage.rerank_score or 0.0)))
