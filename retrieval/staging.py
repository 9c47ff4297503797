"""Parsed documents to staged versions: chunked, embedded in batches, written as segments. Nothing of it is visible before a commit."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from retrieval import lexical
from retrieval.chunk import ChunkSettings, Span, chunk
from retrieval.embed import Embedder, Vectors, retrieval_text
from retrieval.parsers import Parsed
from retrieval.store import KnownVersion, LiveDocument, NewChunk, NewVersion, Writer
from retrieval.text import detect_lang
from retrieval.types import DocumentKey, IndexCorrupt, RetrievalError
from retrieval.vectors import Step, VectorStore, no_step

# Raise it when parsing, chunking, terms or retrieval text change: documents are then indexed anew at the next ingest.
_PIPELINE = 1

OnDone = Callable[[int], None]
Progress = Callable[..., None]
"""Called as ``progress(what, done, total, **facts)``."""


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """`chunk_tokens` and `chunk_max_tokens` are the target and the limit of a chunk in tokens of the embedding model.

    A segment is written every `segment_chunks` chunks (what an interrupted run loses at most), and the writer's lock renewed every
    `encode_batch` chunks.
    """

    chunk_tokens: int = 200
    chunk_max_tokens: int = 320
    segment_chunks: int = 1024
    encode_batch: int = 64

    @property
    def chunk(self) -> ChunkSettings:
        if not 8 <= self.chunk_tokens <= self.chunk_max_tokens:
            raise RetrievalError(
                f"chunk_tokens must be at least 8 and at most chunk_max_tokens, found {self.chunk_tokens} and {self.chunk_max_tokens}"
            )
        return ChunkSettings(self.chunk_tokens, self.chunk_max_tokens, minimum=self.chunk_tokens // 5, overlap=self.chunk_tokens // 5)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a version is made from its text: "how.what.salt". `how` covers settings, pipeline and embedding model, `what` title, uri,
    language and metadata; the salt tells a version from an equal one whose segment is damaged."""

    how: str

    @staticmethod
    def of(settings: ChunkSettings, embedding_hash: str) -> Recipe:
        return Recipe(_digest([_PIPELINE, settings.target, settings.maximum, settings.minimum, settings.overlap, embedding_hash]))

    def made(self, recipe: str) -> bool:
        return recipe.startswith(self.how + ".")

    def full(self, title: str, uri: str, lang: str, meta: Mapping[str, Any]) -> str:
        return f"{self.how}.{_digest([title, uri, lang, meta])}"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A document that is to become live: its state, and its content."""

    live: LiveDocument
    parsed: Parsed
    lang: str
    spans: tuple[Span, ...] = ()


@dataclass(slots=True)
class Staging:
    """Collects documents and writes a segment whenever enough chunks are together.

    `done` maps the keys of staged documents to what their live rows will be; `hashes` the new segments to their segment.json.
    """

    vectors: VectorStore
    embedder: Embedder
    writer: Writer
    settings: IngestSettings
    step: Step = no_step
    on_done: OnDone = lambda chunks: None
    done: dict[DocumentKey, LiveDocument] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    chunks: int = 0
    _waiting: dict[DocumentKey, Incoming] = field(default_factory=dict)
    _sound: dict[str, bool] = field(default_factory=dict)

    def add(self, live: LiveDocument, parsed: Parsed, lang: str, reuse: bool = True) -> None:
        """Stage a document. What an interrupted run staged before, or an older generation holds, is taken as it is if `reuse`."""
        known = [version for version in self.writer.find_versions(live.key, live.sha256) if same_recipe(version.recipe, live.recipe)]
        usable = next((version for version in known if reuse and self._is_sound(version)), None)
        if usable is not None:
            self.done[live.key] = replace(live, version_id=usable.id, recipe=usable.recipe)
            return
        recipe = f"{live.recipe}.{secrets.token_hex(4)}" if known else live.recipe
        spans = tuple(chunk(parsed.text, self.embedder.count_tokens, self.settings.chunk, parsed.pages))
        self._waiting[live.key] = Incoming(replace(live, recipe=recipe), parsed, lang, spans)
        if max(self.waiting_chunks, self.waiting_documents) >= self.settings.segment_chunks:
            self.flush()

    def drop(self, key: DocumentKey) -> None:
        """Forget a document added before."""
        self._waiting.pop(key, None)
        self.done.pop(key, None)

    @property
    def waiting_chunks(self) -> int:
        return sum(len(item.spans) for item in self._waiting.values())

    @property
    def waiting_documents(self) -> int:
        return len(self._waiting)

    def flush(self) -> None:
        """Embed what is waiting, write it as one segment, and store its rows."""
        batch = list(self._waiting.values())
        if not batch:
            return
        texts = [_retrieval_text(item.parsed, span) for item in batch for span in item.spans]
        segment = secrets.token_hex(12) if texts else None
        if segment is not None:
            vectors = self._encode(texts)
            self.step("embedded")
            self.hashes[segment] = self.vectors.write_segment(segment, vectors, lexical.build(texts), self.embedder.hash, self.step)
        ids = self.writer.stage(segment, self.embedder.hash, len(texts), list(_versions(batch)))
        self.step("staged")
        for item, id in zip(batch, ids, strict=True):
            self.done[item.live.key] = replace(item.live, version_id=id)
        self.chunks += len(texts)
        self._waiting.clear()

    def _encode(self, texts: list[str]) -> Vectors:
        parts: list[Vectors] = []
        # Neighbours in length share a batch, so that little is padded.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), self.settings.encode_batch):
            parts.append(self.embedder.encode_passages([texts[index] for index in order[start : start + self.settings.encode_batch]]))
            self.writer.beat()
            self.on_done(min(start + self.settings.encode_batch, len(order)))
        vectors = np.empty((len(texts), parts[0].shape[1]), dtype=np.float32)
        vectors[order] = np.concatenate(parts)
        return vectors

    def _is_sound(self, version: KnownVersion) -> bool:
        """Whether the segments of a version found in the database are on disk."""
        for id in version.segments:
            if id not in self._sound:
                try:
                    self.hashes[id] = self.vectors.segment_hash(id)
                    self._sound[id] = True
                except IndexCorrupt:
                    self._sound[id] = False
        return all(self._sound[id] for id in version.segments)


def same_recipe(stored: str, wanted: str) -> bool:
    """Whether a stored recipe, with or without salt, is the wanted one."""
    return stored == wanted or stored.startswith(wanted + ".")


def language(parsed: Parsed) -> str:
    return parsed.lang or detect_lang(f"{parsed.title}\n{parsed.text}")


def stored_meta(parsed: Parsed) -> dict[str, Any]:
    """The metadata as stored; pages go with it, so that the index can be rebuilt from the stored text."""
    return {**parsed.meta, **({"pages": [list(page) for page in parsed.pages]} if parsed.pages else {})}


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _retrieval_text(parsed: Parsed, span: Span) -> str:
    return retrieval_text(parsed.title, span.heading, parsed.text[span.start : span.end])


def _versions(batch: Iterable[Incoming]) -> Iterable[NewVersion]:
    ordinal = 0
    for item in batch:
        live, parsed = item.live, item.parsed
        chunks = tuple(
            NewChunk(_chunk_id(live, span), ordinal + index, span.start, span.end, span.heading, span.page)
            for index, span in enumerate(item.spans)
        )
        ordinal += len(chunks)
        meta = stored_meta(parsed)
        yield NewVersion(live.key, live.sha256, live.recipe, parsed.uri, parsed.title, item.lang, parsed.text, meta, chunks)


def _chunk_id(live: LiveDocument, span: Span) -> str:
    return _digest([live.key.domain, live.key.id, live.sha256, span.start, span.end])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode("utf-8")).hexdigest()[:24]
