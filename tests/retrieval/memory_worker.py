"""Ingests PATHS into a workspace and prints the report as JSON: ``memory_worker.py WORKSPACE PATH…``."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from retrieval_support import HashingEmbedder, Knowledge

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
    print(json.dumps(report.to_json()))


if __name__ == "__main__":
    main(*sys.argv[1:])
