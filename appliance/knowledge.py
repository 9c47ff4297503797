"""The knowledge base of a workspace: ingest into it, search it, read from it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.models.store import ModelStore
from appliance.store.documents import SqlDocumentStore
from appliance.store.reading import DocumentReader
from appliance.types import Caller
from appliance.workspace import Workspace
from retrieval.folder import FolderVectors
from retrieval.types import DocumentKey, Evidence, Scope

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from retrieval.embed import Embedder
    from retrieval.index import Index
    from retrieval.ingest import IngestReport
    from retrieval.staging import IngestSettings

Progress = Callable[..., None]
_REMEMBERED = 256
# Characters of a document shown before and after a cited span.
_CONTEXT = 600


class QuestionCache:
    """An embedder that remembers the last questions: retrieval and router share one embedding of a question."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def hash(self) -> str:
        return self._embedder.hash

    @property
    def dim(self) -> int:
        return self._embedder.dim

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._embedder.count_tokens(list(texts))

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._embedder.encode_passages(list(texts))

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np

        with self._lock:
            missing = [text for text in dict.fromkeys(texts) if text not in self._known]
            if missing:
                for text, vector in zip(missing, self._embedder.encode_queries(missing), strict=True):
                    self._known[text] = vector
            found = np.stack([self._known[text] for text in texts])
            for text in texts:
                self._known.move_to_end(text)
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return found


class Knowledge:
    """Search over the live generation (a new one is noticed at the next search), and what changes it."""

    def __init__(self, workspace: Workspace, models: ModelStore) -> None:
        self.workspace = workspace
        self.models = models
        self.store = SqlDocumentStore(workspace.db)
        self.documents = DocumentReader(workspace.db)
        self.vectors = FolderVectors(workspace.folder("index"))
        self._embedder: QuestionCache | None = None
        self._index: Index | None = None
        self._lock = threading.Lock()

    @property
    def embedder(self) -> QuestionCache:
        """The configured embedding model, loaded on first use."""
        with self._lock:
            if self._embedder is None:
                from retrieval.embed import SentenceTransformerEmbedder

                reference = self.workspace.model(self.workspace.config.models.embedding)
                self._embedder = QuestionCache(SentenceTransformerEmbedder(self.models.path(reference), self.models.model_hash(reference)))
            return self._embedder

    def index(self) -> Index:
        """The index of the live generation."""
        from retrieval.index import Index

        embedder = self.embedder
        live = self.store.live_generation()
        with self._lock:
            if self._index is None or self._index.generation != live:
                self._index = Index.open(self.store, self.vectors, embedder, live)
            return self._index

    def search(self, query: str, scope: Scope, k: int | None = None) -> Evidence:
        settings = self.workspace.config.retrieval
        return self.index().search(query, scope, k=k or settings.k, candidates=settings.candidates)

    def verify(self) -> list[str]:
        """Every difference between the live generation's files and what was written; see `retrieval.index.verify`."""
        from retrieval.index import verify

        return verify(self.store, self.vectors)

    def passage(self, domain: str, doc_id: str, start: int, end: int, caller: Caller) -> dict[str, Any] | None:
        """A span of a live document with the text around it, None if it is gone or the caller may not see it."""
        key = DocumentKey(domain, doc_id)
        info = self.documents.current(key)
        scope = caller.scope
        if info is None or not info.labels <= scope.labels or (scope.domains is not None and domain not in scope.domains):
            return None
        pieces = [
            self.documents.text_slice(key, info.sha256, first, last)
            for first, last in ((max(0, start - _CONTEXT), start), (start, end), (end, end + _CONTEXT))
        ]
        if None in pieces or end <= start or len(pieces[1] or "") != end - start:
            return None
        before, quote, after = pieces
        return {
            "domain": domain,
            "doc_id": doc_id,
            "title": info.title,
            "uri": info.uri,
            "sha256": info.sha256,
            "start": start,
            "end": end,
            "before": before,
            "quote": quote,
            "after": after,
        }

    def similarity(self, question: str, texts: Sequence[str]) -> list[float]:
        """Cosine of the question to each text."""
        if not texts:
            return []
        vectors = self.embedder.encode_passages(texts)
        return [float(value) for value in vectors @ self.embedder.encode_queries([question])[0]]

    def ingest(
        self,
        paths: Sequence[Path],
        *,
        domain: str | None,
        labels: frozenset[str] = frozenset(),
        prune: bool = False,
        progress: Progress | None = None,
    ) -> IngestReport:
        """Bring documents in; see `retrieval.ingest.ingest`. `domain` is created if it is new."""
        from retrieval.ingest import ingest

        if domain is not None:
            self.workspace.check_name(domain)
        with self.workspace.db.lock("index") as lock:
            return ingest(
                paths,
                store=self.store,
                vectors=self.vectors,
                embedder=self.embedder,
                lock=lock,
                domain=domain,
                known_domains=self.workspace.domains(),
                create_domain=self.workspace.create_domain,
                labels=labels,
                prune=prune,
                settings=self._settings(),
                progress=progress,
            )

    def remove(self, keys: Sequence[DocumentKey]) -> dict[str, Any]:
        """Delete documents for good: from every generation, with their text."""
        from retrieval.maintain import remove

        with self.workspace.db.lock("index") as lock:
            return remove(keys, store=self.store, vectors=self.vectors, lock=lock)

    def rebuild(self, progress: Progress | None = None) -> dict[str, Any]:
        """Chunk and embed every live document anew from its stored text, beside the live generation."""
        from retrieval.maintain import rebuild

        with self.workspace.db.lock("index") as lock:
            return rebuild(
                store=self.store, vectors=self.vectors, embedder=self.embedder, lock=lock, settings=self._settings(), progress=progress
            )

    def rollback(self, generation: int) -> None:
        """Make an older generation live again; what was deleted since stays deleted."""
        from retrieval.maintain import rollback

        with self.workspace.db.lock("index") as lock:
            rollback(generation, store=self.store, vectors=self.vectors, lock=lock)

    def _settings(self) -> IngestSettings:
        from retrieval.staging import IngestSettings

        settings = self.workspace.config.retrieval
        return IngestSettings(chunk_tokens=settings.chunk_tokens, chunk_max_tokens=settings.chunk_max_tokens)
