"""The knowledge base of a workspace: ingest into it, search it, read from it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import ApplianceError
from appliance.knowledge.embedding import Embedders, QuestionCache, SentenceCache
from appliance.knowledge.forgetting import forget
from appliance.knowledge.index_status import note_ingest
from appliance.knowledge.ranking import Rankings
from appliance.models.store import ModelStore
from appliance.store.documents import SqlDocumentStore
from appliance.store.reading import DocumentReader
from appliance.types import Caller
from appliance.workspace import Workspace
from retrieval.fallback import LiveIndex, Serving
from retrieval.folder import FolderVectors
from retrieval.types import DocumentKey, Evidence, IndexCorrupt, RetrievalError, Scope

if TYPE_CHECKING:
    from retrieval.embed import Embedder
    from retrieval.index import Index
    from retrieval.report import IngestReport
    from retrieval.staging import IngestSettings
    from retrieval.store import Lock
    from retrieval.vectors import VectorStore

logger = logging.getLogger("appliance.index")

Progress = Callable[..., None]
# Characters of a document shown before and after a cited span.
_CONTEXT = 600


def vector_store(workspace: Workspace) -> VectorStore:
    """Where the vectors are: beside the metadata in PostgreSQL, else in the workspace's folder `index`."""
    folder = workspace.folder("index")
    if not workspace.db.is_postgres:
        return FolderVectors(folder)
    from appliance.store.pgvectors import PgVectors

    return PgVectors(workspace.db, folder / "cache")


class Knowledge:
    """Search over the live generation (a new one is noticed at the next search), and what changes it."""

    def __init__(self, workspace: Workspace, models: ModelStore, embedder: Embedder | None = None) -> None:
        """`embedder` replaces the configured embedding model."""
        self.workspace = workspace
        self.models = models
        self.store = SqlDocumentStore(workspace.db, workspace.config.retrieval.keep_generations)
        self.documents = DocumentReader(workspace.db)
        self.vectors = vector_store(workspace)
        self.rankings = Rankings(workspace, models)
        open_model = self._open_model if embedder is None else lambda reference: embedder
        self.embedders = Embedders(workspace.db, workspace.config.models.embedding, open_model)
        self._live = LiveIndex(self.store, self.vectors)
        self._sentences = SentenceCache()

    @property
    def embedder(self) -> QuestionCache:
        """The embedding model of the live generation, which questions are embedded with; the configured one while there is none."""
        return self.embedders.of(self.store.live_generation())

    def _open_model(self, reference: str) -> Embedder:
        from retrieval.embed import SentenceTransformerEmbedder

        model = self.workspace.model(reference)
        return SentenceTransformerEmbedder(self.models.path(model), self.models.model_hash(model))

    def index(self) -> Index:
        """The index that is searched now; see `serving`."""
        return self.serving().index

    def serving(self) -> Serving:
        """The live generation, or an older one while files of it are damaged; see `retrieval.fallback.LiveIndex`."""
        while True:
            embedder = self.embedder
            try:
                return self._live.serving(embedder)
            except IndexCorrupt:
                raise
            except RetrievalError:
                # A rebuild with another model may have gone live between the two lines above.
                if embedder is self.embedder:
                    raise

    def search(self, query: str, scope: Scope, k: int | None = None) -> Evidence:
        settings = self.workspace.config.retrieval
        serving = self.serving()
        ranking = self.rankings.of(scope, self.embedder.hash)
        evidence = serving.index.search(query, scope, k=k or settings.k, candidates=settings.candidates, ranking=ranking)
        return replace(evidence, degraded=True) if serving.problem else evidence

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
        generation = self.store.live_generation()
        embedder = self.embedders.of(generation)
        vectors = self._sentences.vectors(embedder, generation, texts)
        return [float(value) for value in vectors @ embedder.encode_queries([question])[0]]

    def forget_vectors(self) -> None:
        """Forget the vectors of questions and sentences that are kept for the next ones."""
        self.embedders.forget_questions()
        self._sentences.clear()

    def ingest(
        self,
        paths: Sequence[Path],
        *,
        domain: str | None,
        labels: frozenset[str] = frozenset(),
        prune: bool = False,
        revive: bool = True,
        archives: bool = False,
        progress: Progress | None = None,
    ) -> IngestReport:
        """Bring documents in; see `retrieval.ingest.ingest`. `domain` is created if it is new; `archives` follows them whatever is set."""
        from retrieval.ingest import ingest

        if domain is not None:
            self.workspace.check_name(domain)
        with self.workspace.db.lock("index") as lock:
            report = ingest(
                paths,
                store=self.store,
                vectors=self.vectors,
                embedder=self.embedders.record(),
                lock=lock,
                domain=domain,
                known_domains=self.workspace.domains(),
                create_domain=self.workspace.create_domain,
                labels=labels,
                prune=prune,
                revive=revive,
                settings=self._settings(archives),
                progress=progress,
            )
            if (tidied := self._tidy(lock, report.warnings)) is not None:
                report.generation, report.merged = tidied["generation"], tidied["segments"]
            self._forget()
        try:
            # Files that were sent in lie in a folder that is made for them and removed: nobody looks for it again.
            sent_in = self.workspace.root / "uploads"
            note_ingest(self.workspace.db, [path for path in paths if not path.is_relative_to(sent_in)], domain, report)
        except OSError as error:
            report.warnings.append(f"that this ingest took place could not be noted: {error}")
        return report

    def remove(self, keys: Sequence[DocumentKey]) -> dict[str, Any]:
        """Delete documents for good: from every generation, with their text."""
        from retrieval.maintain import remove

        with self.workspace.db.lock("index") as lock:
            done = remove(
                keys, store=self.store, vectors=self.vectors, lock=lock, embedder=lambda: self.embedder, settings=self._settings()
            )
            self._forget()
        return done

    def _forget(self) -> None:
        """Take deleted text out of what was made of it; a full disk delays that until the next removal or ingest."""
        try:
            if forget(self.workspace.db, self.workspace.root):
                self.workspace.db.scrub()
        except OSError as error:
            logger.warning("approved answers and evaluation runs may still have deleted text: %s; ingest again once there is space", error)

    def rebuild(self, progress: Progress | None = None) -> dict[str, Any]:
        """Chunk and embed every live document anew from its stored text, beside the live generation."""
        from retrieval.maintain import rebuild

        with self.workspace.db.lock("index") as lock:
            done = rebuild(
                store=self.store,
                vectors=self.vectors,
                embedder=self.embedders.record(),
                lock=lock,
                settings=self._settings(),
                progress=progress,
            )
            warnings: list[str] = []
            tidied = self._tidy(lock, warnings) or {"generation": done["generation"], "segments": []}
            return done | {"generation": tidied["generation"], "merged": tidied["segments"], "warnings": warnings}

    def compact(self, progress: Progress | None = None) -> dict[str, Any]:
        """Merge small segments and those with dead rows, and purge what was deleted; see `retrieval.compact.compact`."""
        from retrieval.compact import compact

        with self.workspace.db.lock("index") as lock:
            return compact(store=self.store, vectors=self.vectors, lock=lock, progress=progress)

    def _tidy(self, lock: Lock, warnings: list[str]) -> dict[str, Any] | None:
        """Merge segments if that is due (see `retrieval.compact.tidy`). What was ingested before stays, whatever happens here."""
        from retrieval.compact import tidy

        try:
            return tidy(store=self.store, vectors=self.vectors, lock=lock)
        except RetrievalError as error:
            warnings.append(f"the index was not compacted: {error}")
            return None

    def rollback(self, generation: int) -> None:
        """Make an older generation live again; what was deleted since stays deleted."""
        from retrieval.maintain import rollback

        with self.workspace.db.lock("index") as lock:
            rollback(generation, store=self.store, vectors=self.vectors, lock=lock)

    def _settings(self, archives: bool = False) -> IngestSettings:
        from retrieval.isolation import Limits
        from retrieval.parsers import Options
        from retrieval.staging import IngestSettings

        settings, reading = self.workspace.config.retrieval, self.workspace.config.ingest
        return IngestSettings(
            chunk_tokens=settings.chunk_tokens,
            chunk_max_tokens=settings.chunk_max_tokens,
            limits=Limits(seconds=reading.parse_seconds, memory_bytes=reading.parse_memory_mb << 20),
            options=Options(ocr=reading.ocr, ocr_languages=reading.ocr_languages),
            archives=archives or reading.archives,
            dictionaries={name: own for name in self.workspace.domains() if (own := self.rankings.dictionary(name)) is not None},
        )


def state(knowledge: Knowledge) -> dict[str, Any]:
    """Whether index and database can be read: {"index": {"ok", "generation" or "detail", …}, "database": {"ok", …}}."""
    from sqlalchemy.exc import SQLAlchemyError

    def probe(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        try:
            return {"ok": True, **look()}
        except (ApplianceError, RetrievalError, SQLAlchemyError, OSError) as error:
            return {"ok": False, "detail": str(error)}

    def index() -> dict[str, Any]:
        serving = knowledge.serving()
        return {"generation": serving.index.generation, **({"problem": serving.problem} if serving.problem else {})}

    return {"index": probe(index), "database": probe(lambda: {"domains": len(knowledge.workspace.domains())})}
