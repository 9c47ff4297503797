"""An index of synthetic chunks of any size, made through the product's own writing path but for parsing, chunking and embedding.

Vectors (384 dimensions, normalised) are a direction that all share, 50 fields, 2,000 subjects in them, a topic for every hundred chunks,
and what is a chunk's own, all with a spectrum that decays. The proportions were chosen so that two chunks have the cosines (mean 0.77,
deviation 0.04) and 20,000 chunks the difficulty (a fifth of the rows to scan for a recall of 0.98) of multilingual-e5-small's. Words are
drawn from 100,000 by the law of Zipf and Mandelbrot, p ~ (rank + 50) ^ -1.25, as in a text without its stop words: the first is in half
of the chunks; a chunk has 120. A tenth of the documents is "Chinese": its vectors share a direction of their own.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.store.database import Database
from appliance.store.documents import SqlDocumentStore
from appliance.store.pgvectors import PgVectors
from retrieval.commit import commit
from retrieval.compact import compact
from retrieval.embed import Vectors
from retrieval.folder import FolderVectors
from retrieval.lexical import term_hash
from retrieval.postings import Postings
from retrieval.store import ContentKey, LiveDocument, NewChunk, NewContent, NewVersion
from retrieval.types import DocumentKey
from retrieval.vectors import VectorStore

DIM, WORDS, VOCABULARY, CHUNKS = 384, 120, 100_000, 10
FIELDS, SUBJECTS, TOPIC_CHUNKS = 50, 2_000, 100
HASH = hashlib.sha256(b"synthetic").hexdigest()
DOMAINS = tuple(f"domain-{number}" for number in range(10))
# Chunks of one segment before it is compacted, as an ingest with large batches would leave them.
SEGMENT = 10_000


class Synthetic:
    """The `Embedder` of questions made up front: question to vector."""

    hash, dim = HASH, DIM

    def __init__(self, questions: dict[str, Vectors]) -> None:
        self._questions = questions

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def encode_queries(self, texts: list[str]) -> Vectors:
        return np.stack([self._questions[text] for text in texts])

    def encode_passages(self, texts: list[str]) -> Vectors:
        raise NotImplementedError("synthetic chunks bring their vectors")


@dataclass(frozen=True)
class Base:
    """Where a synthetic index is."""

    db: Database
    store: SqlDocumentStore
    vectors: VectorStore

    @staticmethod
    def at(folder: Path, url: str | None = None) -> Base:
        """In SQLite and files, or in the PostgreSQL database at `url` with copies in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        db = Database(url or f"sqlite:///{folder / 'appliance.db'}")
        db.migrate()
        return Base(db, SqlDocumentStore(db), PgVectors(db, folder / "cache") if url else FolderVectors(folder / "index"))


class Source:
    """Vectors and words, block by block, always the same."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.common, self.chinese = np.full(DIM, DIM**-0.5, dtype=np.float32), _directions(random, 1)[0]
        self.subjects = 0.35 * _directions(random, FIELDS)[random.integers(0, FIELDS, SUBJECTS)] + 0.3 * _directions(random, SUBJECTS)
        weights = (np.arange(VOCABULARY) + 50.0) ** -1.25
        self.cumulative = np.cumsum(weights / weights.sum())
        self.words = np.array([_word(number) for number in range(VOCABULARY)])
        self.hashes = np.array([term_hash(str(word)) for word in self.words], dtype=np.uint64)

    def block(self, number: int) -> tuple[Vectors, NDArray[np.int64], NDArray[np.bool_]]:
        """The vectors [SEGMENT, dim] and words [SEGMENT, WORDS] of a block, and which of its chunks are Chinese."""
        random = np.random.default_rng(1 + number)
        chinese = np.repeat(random.random(SEGMENT // CHUNKS) < 0.1, CHUNKS)
        topics = self.subjects[random.integers(0, SUBJECTS, SEGMENT // TOPIC_CHUNKS)] + 0.3 * _directions(random, SEGMENT // TOPIC_CHUNKS)
        rows = 1.6 * self.common + topics[random.integers(0, len(topics), SEGMENT)] + 0.7 * _directions(random, SEGMENT)
        rows += 0.4 * np.outer(chinese, self.chinese)
        vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return vectors, np.searchsorted(self.cumulative, random.random((SEGMENT, WORDS))), chinese

    def postings(self, words: NDArray[np.int64]) -> Postings:
        """What `retrieval.lexical.build` would make of the words."""
        keys = self.hashes[words].ravel()
        ordinals = np.repeat(np.arange(len(words), dtype=np.int32), WORDS)
        order = np.lexsort((ordinals, keys))
        keys, ordinals = keys[order], ordinals[order]
        first = np.flatnonzero(np.concatenate([[True], (keys[1:] != keys[:-1]) | (ordinals[1:] != ordinals[:-1])]))
        counts = np.diff(np.append(first, len(keys))).astype(np.uint16)
        terms, starts = np.unique(keys[first], return_index=True)
        lengths = np.full(len(words), WORDS, dtype=np.int32)
        return Postings(terms, np.append(starts, len(first)).astype(np.int64), ordinals[first], counts, lengths)


def grow(base: Base, source: Source, have: int, chunks: int) -> dict[str, Any]:
    """Add blocks until there are `chunks`, make them live, and compact the whole; what the compaction reports."""
    live: list[LiveDocument] = []
    hashes: dict[str, str] = {}
    with base.db.lock("index") as lock:
        writer = base.store.writer(lock)
        for number in range(have // SEGMENT, chunks // SEGMENT):
            vectors, words, chinese = source.block(number)
            id = secrets.token_hex(12)
            hashes[id] = base.vectors.write_segment(
                id, vectors, source.postings(words), HASH, languages=np.where(chinese, "zh", "en").tolist()
            )
            contents = list(_contents(source.words[words], number, chinese))
            rows = writer.stage(id, HASH, SEGMENT, contents)
            versions = [_version(content, row, number, place) for place, (content, row) in enumerate(zip(contents, rows, strict=True))]
            ids = writer.describe(versions)
            live += [LiveDocument(v.key, id, v.sha256, v.recipe, frozenset(), "/synthetic") for v, id in zip(versions, ids, strict=True)]
        commit(base.store, writer, base.vectors, HASH, hashes, live, [], "synthetic", lambda step: None)
        return compact(store=base.store, vectors=base.vectors, lock=lock)


def questions(source: Source, chunks: int, count: int) -> dict[str, Vectors]:
    """Questions near random chunks (cosine 0.8, turned towards another chunk): four of the chunk's words, and two of any."""
    random = np.random.default_rng(7)
    asked: dict[str, Vectors] = {}
    for number in random.choice(chunks // SEGMENT, min(count, chunks // SEGMENT), replace=False):
        vectors, words, _ = source.block(int(number))
        for row, other in random.choice(SEGMENT, (-(-count // min(count, chunks // SEGMENT)), 2), replace=False):
            turned = vectors[other] - (vectors[other] @ vectors[row]) * vectors[row]
            vector = 0.8 * vectors[row] + 0.6 * turned / np.linalg.norm(turned)
            any_word = np.searchsorted(source.cumulative, random.random(2))
            terms = source.words[np.concatenate([random.choice(words[row], 4, replace=False), any_word])]
            asked[" ".join(terms.tolist())] = vector.astype(np.float32)
    return dict(list(asked.items())[:count])


def _word(number: int) -> str:
    """A word of four consonants, of which the stemmer leaves every one."""
    return "".join("bcdfghjklmnpqrtvwx"[number // 18**place % 18] for place in range(4))


def _directions(random: np.random.Generator, count: int) -> Vectors:
    """Random vectors of a length of about 1, whose parts decay as (i + 1) ^ -0.4."""
    decay = np.arange(1, DIM + 1, dtype=np.float32) ** np.float32(-0.4)
    return random.standard_normal((count, DIM), dtype=np.float32) * (decay / np.linalg.norm(decay))


def _contents(words: NDArray[np.str_], block: int, chinese: NDArray[np.bool_]) -> Iterator[NewContent]:
    texts = [" ".join(row) for row in words.tolist()]
    for first in range(0, len(texts), CHUNKS):
        text = "\n".join(texts[first : first + CHUNKS])
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        lang = "zh" if chinese[first] else "en"
        made: list[NewChunk] = []
        start = 0
        for place, part in enumerate(texts[first : first + CHUNKS]):
            made.append(NewChunk(f"{sha256[:20]}{place:04d}", first + place, start, start + len(part), (), None, lang))
            start += len(part) + 1
        domain = DOMAINS[(block * SEGMENT + first) // CHUNKS % len(DOMAINS)]
        yield NewContent(ContentKey(domain, sha256, "synthetic", frozenset()), "", lang, text, tuple(made))


def _version(content: NewContent, row: int, block: int, place: int) -> NewVersion:
    key = DocumentKey(content.key.domain, f"{block}-{place}")
    return NewVersion(key, content.key.sha256, "synthetic", row, f"synthetic:{key.id}", "", content.lang)
