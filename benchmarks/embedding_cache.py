"""Embeddings kept by content hash, so that a benchmark run again pays only for what is new."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from retrieval.embed import Embedder, Vectors


def default_cache() -> Path:
    """`$APPLIANCE_BENCH_CACHE`, else a folder in the user's cache."""
    return Path(os.environ.get("APPLIANCE_BENCH_CACHE") or Path.home() / ".cache" / "appliance" / "benchmarks")


class CachedEmbedder:
    """An embedder whose vectors are remembered in `file` (SQLite), by model hash, kind and text. For one thread."""

    def __init__(self, embedder: Embedder, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._embedder = embedder
        self._kept = sqlite3.connect(file, timeout=60, check_same_thread=False)
        self._kept.execute("CREATE TABLE IF NOT EXISTS vector (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
        self.encoded = 0

    @property
    def hash(self) -> str:
        return self._embedder.hash

    @property
    def dim(self) -> int:
        return self._embedder.dim

    def count_tokens(self, texts: list[str]) -> list[int]:
        return self._embedder.count_tokens(texts)

    def encode_queries(self, texts: list[str]) -> Vectors:
        return self._encode("query", texts, self._embedder.encode_queries)

    def encode_passages(self, texts: list[str]) -> Vectors:
        return self._encode("passage", texts, self._embedder.encode_passages)

    def _encode(self, kind: str, texts: Sequence[str], encode: Callable[[list[str]], Vectors]) -> Vectors:
        keys = [hashlib.blake2b("\0".join((self.hash, kind, text)).encode("utf-8"), digest_size=16).digest() for text in texts]
        found = {key: row for key in set(keys) if (row := self._get(key)) is not None}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if missing:
            vectors = encode(list(missing.values()))
            self.encoded += len(missing)
            found |= dict(zip(missing, vectors, strict=True))
            with self._kept:
                rows = [(key, vector.astype(np.float32).tobytes()) for key, vector in zip(missing, vectors, strict=True)]
                self._kept.executemany("INSERT OR REPLACE INTO vector VALUES (?, ?)", rows)
        return np.stack([found[key] for key in keys]) if keys else np.empty((0, self.dim), dtype=np.float32)

    def _get(self, key: bytes) -> Vectors | None:
        row = self._kept.execute("SELECT value FROM vector WHERE key = ?", (key,)).fetchone()
        return None if row is None else np.frombuffer(row[0], dtype=np.float32)
