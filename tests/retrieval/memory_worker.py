"""Ingests PATHS into a workspace, merges its segments, and prints the report as JSON: ``memory_worker.py WORKSPACE PATH…``."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from retrieval_support import HashingEmbedder, Knowledge

from retrieval.compact import tidy
from retrieval.staging import IngestSettings


class TextEmbedder(HashingEmbedder):
    """Vectors as wide as those of a real model, one hash a text: what is measured is everything but the model."""

    dim = 384

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(text.encode()) // 4 for text in texts]

    def _encode(self, texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        seeds = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) for text in texts]
        vectors = np.stack([np.random.default_rng(seed).standard_normal(self.dim, dtype=np.float32) for seed in seeds])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main(workspace: str, *paths: str) -> None:
    knowledge = Knowledge(Path(workspace), TextEmbedder("text-1"))
    report = knowledge.ingest(*map(Path, paths), settings=IngestSettings())
    # As the product does at the end of an ingest: many segments become one, with an approximate index where it is big.
    with knowledge.db.lock("index") as lock:
        tidied = tidy(store=knowledge.store, vectors=knowledge.vectors, lock=lock)
    print(json.dumps({**report.to_json(), "tidied": tidied}))


if __name__ == "__main__":
    main(*sys.argv[1:])
