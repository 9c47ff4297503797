"""A workspace's database and index folder, and a small embedder that is real: hashed words, so that search finds what shares them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from appliance.store import schema
from appliance.store.database import Database
from appliance.store.documents import SqlDocumentStore
from appliance.store.pgvectors import PgVectors
from retrieval.folder import FolderVectors
from retrieval.index import Index
from retrieval.ingest import ingest
from retrieval.report import IngestReport
from retrieval.staging import IngestSettings
from retrieval.text import index_terms, words
from retrieval.types import Evidence, Scope
from retrieval.vectors import VectorStore


class HashingEmbedder:
    """A bag of words projected by signs of hashes: deterministic, equal words give equal directions."""

    dim = 64

    def __init__(self, name: str = "hashing-1") -> None:
        self.hash = hashlib.sha256(name.encode()).hexdigest()
        self.passages = 0

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(words(text)) for text in texts]

    def encode_queries(self, texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        return self._encode(texts)

    def encode_passages(self, texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        self.passages += len(texts)
        return self._encode(texts)

    def _encode(self, texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for term in index_terms(text[:20_000]):
                digest = hashlib.blake2b(term.encode(), digest_size=8).digest()
                bits = np.unpackbits(np.frombuffer(digest, dtype=np.uint8))
                vectors[row] += bits.astype(np.float32) * 2 - 1
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(norms, 1e-9)


class Knowledge:
    """What the tests need of a workspace. `url` is that of a PostgreSQL database with the tables in it; without one, SQLite and files."""

    def __init__(self, root: Path, embedder: HashingEmbedder | None = None, url: str | None = None) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.folder = root / "index"
        self.db = Database(url or f"sqlite:///{root / 'appliance.db'}")
        self.vectors: VectorStore = PgVectors(self.db, self.folder) if url else FolderVectors(self.folder)
        schema.metadata.create_all(self.db.engine)
        self.store = SqlDocumentStore(self.db)
        self.embedder = embedder or HashingEmbedder()
        self.domains: set[str] = set()

    def ingest(self, *paths: Path, domain: str | None = "medical", **options: Any) -> IngestReport:
        options.setdefault("settings", IngestSettings(chunk_tokens=40, chunk_max_tokens=80))
        with self.db.lock("index") as lock:
            return ingest(
                paths,
                store=self.store,
                vectors=self.vectors,
                embedder=options.pop("embedder", self.embedder),
                lock=lock,
                domain=domain,
                known_domains=self.domains,
                create_domain=self.domains.add,
                **options,
            )

    def index(self, generation: int | None = None) -> Index:
        return Index.open(self.store, self.vectors, self.embedder, generation)

    def search(self, query: str, scope: Scope | None = None, k: int = 5) -> Evidence:
        return self.index().search(query, scope or Scope(), k)

    def ids(self, query: str, scope: Scope | None = None, k: int = 5) -> list[str]:
        return [passage.document.id for passage in self.search(query, scope, k).passages]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path
