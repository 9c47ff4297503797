"""Text to vectors: the protocol, and the implementation on a sentence-transformers model folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.loading import ONE_AT_A_TIME
from retrieval.types import RetrievalError

Vectors = NDArray[np.float32]

# Text beyond this cannot reach the model's window; cutting it first keeps a huge question cheap.
_MAX_CHARS = 20_000
# Tokens of a batch, padding included. Measured with multilingual-e5-small on a CPU core with 1 MB of L2 cache: batches of 8 passages of
# some 200 tokens encode 1.23 times as many tokens a second as batches of 32, whose activations do not stay in the cache.
_CPU_BATCH_TOKENS = 2_048
_GPU_BATCH_TOKENS = 65_536
# What a chunk is embedded with besides its own text, so that it stays inside the window.
_MAX_CONTEXT_CHARS = 300


class Embedder(Protocol):
    """Text to L2-normalised float32 vectors. `hash` identifies weights, prompts and pooling: equal hash, equal vectors."""

    @property
    def hash(self) -> str: ...

    @property
    def dim(self) -> int: ...

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens of each text, without special tokens and prompts."""
        ...

    def encode_queries(self, texts: list[str]) -> Vectors:
        """Vectors [n, dim] of questions; text beyond the model's window is cut."""
        ...

    def encode_passages(self, texts: list[str]) -> Vectors:
        """Vectors [n, dim] of retrieval texts; text beyond the model's window is cut."""
        ...


class SentenceTransformerEmbedder:
    """A local sentence-transformers folder on the CPU or what accelerator there is; loads on first use; thread-safe.

    The prompts named "query" and "passage" (or "document") of the folder's configuration are put before the texts.
    """

    def __init__(self, path: Path, hash: str) -> None:
        self.path = path
        self.hash = hash
        self._model: Any = None
        # The fast tokenizers refuse to be used by two threads at once.
        self._lock = threading.RLock()

    @property
    def dim(self) -> int:
        return int(self._load().get_embedding_dimension())

    def count_tokens(self, texts: list[str]) -> list[int]:
        if not texts:
            return []
        with self._lock:
            encoded = self._load().tokenizer(texts, add_special_tokens=False, truncation=False, return_attention_mask=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    def encode_queries(self, texts: list[str]) -> Vectors:
        return self._encode(texts, ("query",))

    def encode_passages(self, texts: list[str]) -> Vectors:
        return self._encode(texts, ("passage", "document"))

    def _encode(self, texts: list[str], prompts: tuple[str, ...]) -> Vectors:
        with self._lock:
            model = self._load()
            if not texts:
                return np.empty((0, self.dim), dtype=np.float32)
            prompt = next((name for name in prompts if name in model.prompts), None)
            cut = [text[:_MAX_CHARS] for text in texts]
            window = model.max_seq_length or _CPU_BATCH_TOKENS
            budget = _CPU_BATCH_TOKENS if model.device.type == "cpu" else _GPU_BATCH_TOKENS
            vectors = np.empty((len(texts), self.dim), dtype=np.float32)
            for batch in batches([min(count, window) for count in self.count_tokens(cut)], budget):
                vectors[batch] = model.encode(
                    [cut[index] for index in batch],
                    prompt_name=prompt,
                    batch_size=len(batch),
                    normalize_embeddings=True,
                    show_progress_bar=False,
                    convert_to_numpy=True,
                )
        return vectors

    def _load(self) -> Any:
        with self._lock:
            if self._model is None:
                from retrieval.threads import alone

                if not (self.path / "modules.json").is_file():
                    raise RetrievalError(
                        f"{self.path}: no sentence-transformers model here (modules.json is missing); check the embedding model setting"
                    )
                alone()
                with ONE_AT_A_TIME:
                    from sentence_transformers import SentenceTransformer

                    self._model = SentenceTransformer(str(self.path), local_files_only=True)
            return self._model


def batches(tokens: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions of texts, similar lengths together and the longest first, so that each batch, padded, stays within `budget` tokens."""
    batch: list[int] = []
    longest = 0
    for index in sorted(range(len(tokens)), key=lambda index: -tokens[index]):
        if batch and longest * (len(batch) + 1) > budget:
            yield batch
            batch = []
        # Special tokens and the prompt, roughly.
        longest = longest if batch else tokens[index] + 8
        batch.append(index)
    if batch:
        yield batch


def retrieval_text(title: str, heading: Sequence[str], text: str) -> str:
    """What a chunk is found by: title and headings that are not in it already, then the chunk itself. Never quoted."""
    start = text[: 2 * _MAX_CONTEXT_CHARS]
    context = " / ".join(dict.fromkeys(part for part in (title, *heading) if part and part not in start))
    return f"{context[:_MAX_CONTEXT_CHARS]}\n{text}" if context else text
