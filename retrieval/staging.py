"""Parsed documents to staged versions: chunked, embedded in batches, written as segments. Nothing of it is visible before a commit."""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from retrieval import injection, lexical
from retrieval.chunk import ChunkSettings, Span, chunk
from retrieval.duplicates import signature
from retrieval.embed import Embedder, Vectors, retrieval_text
from retrieval.isolation import Limits
from retrieval.parsers import Options, Parsed
from retrieval.store import ContentKey, KnownContent, LiveDocument, NewChunk, NewContent, NewVersion, Part, Writer
from retrieval.text import Dictionary, detect_lang
from retrieval.types import DocumentKey, RetrievalError
from retrieval.vectors import Step, VectorStore, no_step

# Raise it when parsing, chunking, terms or retrieval text change: documents are then indexed anew at the next ingest.
_PIPELINE = 3
# Characters of documents that wait for a segment: their texts are held until then, however few chunks they give.
_MAX_WAITING_CHARS = 16_000_000
# Characters of a text that are copied at one time.
_BLOCK = 1 << 20

Progress = Callable[..., None]
"""Called as ``progress(what, done, total, **facts)``."""


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """`chunk_tokens` and `chunk_max_tokens` are the target and the limit of a chunk in tokens of the embedding model.

    A segment is written every `segment_chunks` chunks (what an interrupted run loses at most), and the writer's lock renewed every
    `encode_batch` chunks. `limits` and `options` are those of reading a file; with `archives`, zip and tar files are read like folders.
    `dictionaries` are the teams' own words by domain.
    """

    chunk_tokens: int = 200
    chunk_max_tokens: int = 320
    segment_chunks: int = 512
    encode_batch: int = 64
    limits: Limits = field(default_factory=Limits)
    options: Options = field(default_factory=Options)
    archives: bool = False
    dictionaries: Mapping[str, Dictionary] = field(default_factory=dict)

    @property
    def chunk(self) -> ChunkSettings:
        if not 8 <= self.chunk_tokens <= self.chunk_max_tokens:
            raise RetrievalError(
                f"chunk_tokens must be at least 8 and at most chunk_max_tokens, found {self.chunk_tokens} and {self.chunk_max_tokens}"
            )
        return ChunkSettings(self.chunk_tokens, self.chunk_max_tokens, minimum=self.chunk_tokens // 5, overlap=self.chunk_tokens // 5)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a document is made from its text: "how.what". `how` covers settings, pipeline, embedding model and the domain's dictionary,
    `what` title, uri, language and metadata; of a content, which documents share, `what` is where its pages begin."""

    how: tuple[Any, ...]
    dictionaries: Mapping[str, Dictionary]

    @staticmethod
    def of(settings: IngestSettings, embedding_hash: str) -> Recipe:
        chunks = settings.chunk
        how = (_PIPELINE, chunks.target, chunks.maximum, chunks.minimum, chunks.overlap, embedding_hash)
        return Recipe(how, settings.dictionaries)

    def made(self, recipe: str, domain: str) -> bool:
        return recipe.startswith(self._how(domain) + ".")

    def full(self, domain: str, title: str, uri: str, lang: str, meta: Mapping[str, Any]) -> str:
        return f"{self._how(domain)}.{_digest([title, uri, lang, meta])}"

    def _how(self, domain: str) -> str:
        own = self.dictionaries.get(domain)
        return _digest([*self.how, own.hash] if own is not None else self.how)


@dataclass(frozen=True, slots=True)
class Incoming:
    """A text that is to be indexed, or a part of a huge one: those of its chunks that are not staged yet (see `NewContent`)."""

    key: ContentKey
    parsed: Parsed
    lang: str
    spans: tuple[Span, ...]
    id: int | None
    complete: bool


@dataclass(frozen=True, slots=True)
class Described:
    """A document that is to become live: its state, its facts, and the content it has."""

    live: LiveDocument
    parsed: Parsed
    lang: str
    content: ContentKey


@dataclass(slots=True)
class Staging:
    """Collects documents and writes a segment whenever enough chunks are together. Documents with one text are chunked and embedded once.

    A text with more chunks than a segment has is staged in parts, so that what is in memory does not grow with it.
    `done` maps the keys of staged documents to what their live rows will be; `hashes` the new segments to their segment.json.
    `reuse` says which stored contents may be taken as they are. `on_done` is called whenever there is something new to show: `chunks` and
    `tokens` were embedded by this run, of `known_tokens` cut so far, and `cut` is the share in [0, 1] of the present document that is cut.
    """

    vectors: VectorStore
    embedder: Embedder
    writer: Writer
    settings: IngestSettings
    step: Step = no_step
    on_done: Callable[[], None] = lambda: None
    reuse: Callable[[KnownContent], bool] = lambda content: True
    done: dict[DocumentKey, LiveDocument] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    chunks: int = 0
    tokens: int = 0
    known_tokens: int = 0
    cut: float = 0.0
    # The contents of this run: their database rows, None for those still waiting.
    _contents: dict[ContentKey, int | None] = field(default_factory=dict)
    _waiting: dict[ContentKey, Incoming] = field(default_factory=dict)
    _documents: dict[DocumentKey, Described] = field(default_factory=dict)
    _sound: dict[str, bool] = field(default_factory=dict)
    _waiting_chunks: int = 0
    _waiting_chars: int = 0

    def add(self, live: LiveDocument, parsed: Parsed, lang: str) -> None:
        """Stage a document. Its text is taken as it is if this run, an interrupted one or a generation has it already."""
        key = _content_key(live, parsed)
        if key not in self._contents:
            known = self.writer.find_contents(key, parsed.title, live.key)
            usable = next((content for content in known if self.reuse(content) and self._is_sound(content)), None)
            if usable is None:
                self._cut(key, parsed, lang)
            else:
                self._contents[key] = usable.id
        self._documents[live.key] = Described(live, parsed, lang, key)
        self._waiting_chars += len(parsed.text)
        if max(self._waiting_chunks, len(self._documents)) >= self.settings.segment_chunks or self._waiting_chars > _MAX_WAITING_CHARS:
            self.flush()
        self.cut = 0.0

    def _cut(self, key: ContentKey, parsed: Parsed, lang: str) -> None:
        """Cut a text into chunks that wait for a segment; of a huge text, only the last ones wait."""
        size = self.settings.segment_chunks
        spans = self._spans(parsed)
        piece = tuple(itertools.islice(spans, size))
        id: int | None = None
        if len(piece) == size and (part := self._part(key, parsed.title)) is not None:
            # What an interrupted run embedded is passed over: the same text is cut in the same way again.
            again = self._spans(parsed)
            last = next(itertools.islice(again, part.chunks - 1, None), None)
            if last is not None and last.end == part.end:
                spans, piece, id = again, tuple(itertools.islice(again, size)), part.content.id
        while True:
            self._contents[key] = id
            self._waiting[key] = Incoming(key, parsed, lang, piece, id, complete=len(piece) < size)
            self._waiting_chunks += len(piece)
            self.known_tokens += sum(span.tokens for span in piece)
            if len(piece) < size:
                break
            self.cut = piece[-1].end / len(parsed.text)
            self.flush()
            id, piece = self._contents[key], tuple(itertools.islice(spans, size))
        self.cut = 1.0

    def _spans(self, parsed: Parsed) -> Iterator[Span]:
        def count(texts: list[str]) -> list[int]:
            self.writer.beat()
            return self.embedder.count_tokens(texts)

        return chunk(parsed.text, count, self.settings.chunk, parsed.pages)

    def _part(self, key: ContentKey, title: str) -> Part | None:
        """What an interrupted run staged of a content, if it may be taken."""
        found = self.writer.find_part(key, title)
        return found if found is not None and found.chunks and self.reuse(found.content) and self._is_sound(found.content) else None

    def drop(self, key: DocumentKey) -> None:
        """Forget a document added before."""
        self.done.pop(key, None)
        dropped = self._documents.pop(key, None)
        if dropped is None:
            return
        self._waiting_chars -= len(dropped.parsed.text)
        if any(other.content == dropped.content for other in self._documents.values()):
            return
        if (waiting := self._waiting.pop(dropped.content, None)) is not None:
            self._waiting_chunks -= len(waiting.spans)
            self.known_tokens -= sum(span.tokens for span in waiting.spans)
            del self._contents[dropped.content]

    def renew(self) -> None:
        """From here on, take no content that is stored already."""
        self._contents.clear()
        self.reuse = lambda content: False

    def flush(self) -> None:
        """Embed what is waiting, write it as one segment, and store its rows."""
        batch = list(self._waiting.values())
        texts = [_retrieval_text(item.parsed, span) for item in batch for span in item.spans]
        segment = secrets.token_hex(12) if texts else None
        if segment is not None:
            vectors = self._encode(texts, [span.tokens for item in batch for span in item.spans])
            self.step("embedded")
            languages = [item.lang for item in batch for _ in item.spans]
            postings = lexical.build(texts, [self.settings.dictionaries.get(item.key.domain) for item in batch for _ in item.spans])
            written = self.vectors.write_segment(segment, vectors, postings, self.embedder.hash, self.step, languages)
            self.hashes[segment] = written
        if batch:
            ids = self.writer.stage(segment, self.embedder.hash, len(texts), list(_contents(batch)))
            self._contents.update(zip(self._waiting, ids, strict=True))
            self.step("texts-staged")
        described = list(self._documents.values())
        if described:
            ids = self.writer.describe([_version(item, self._contents[item.content]) for item in described])
            self.step("staged")
            self.done.update((item.live.key, replace(item.live, version_id=id)) for item, id in zip(described, ids, strict=True))
        self._waiting.clear()
        self._documents.clear()
        self._waiting_chunks = self._waiting_chars = 0

    def _encode(self, texts: list[str], tokens: list[int]) -> Vectors:
        from retrieval.threads import together

        vectors = np.empty((len(texts), self.embedder.dim), dtype=np.float32)
        # Neighbours in length share a batch, so that little is padded.
        order = sorted(range(len(texts)), key=tokens.__getitem__)
        for start in range(0, len(order), self.settings.encode_batch):
            rows = order[start : start + self.settings.encode_batch]
            with together():
                vectors[rows] = self.embedder.encode_passages([texts[row] for row in rows])
            self.writer.beat()
            self.chunks += len(rows)
            self.tokens += sum(tokens[row] for row in rows)
            self.on_done()
        return vectors

    def _is_sound(self, content: KnownContent) -> bool:
        """Whether the segments of a content found in the database are as they were written."""
        for id in content.segments:
            if id not in self._sound:
                self._sound[id] = not self.vectors.sizes({}, [id])[1]
                if self._sound[id]:
                    self.hashes[id] = self.vectors.segment_hash(id)
        return all(self._sound[id] for id in content.segments)


def add_stored(staging: Staging, live: LiveDocument, recipe: Recipe) -> None:
    """Stage a document from its stored text, as `recipe` says. Raises RetrievalError if the text is gone."""
    stored = staging.writer.version(live)
    if stored is None:
        raise RetrievalError(f"{live.key.domain}/{live.key.id}: its text is gone from the database; restore a backup")
    info = stored.info
    meta = {key: value for key, value in info.meta.items() if key != "pages"}
    pages = tuple((start, end, page) for start, end, page in info.meta.get("pages", ()))
    parsed = Parsed(info.title, stored.text, info.uri, lang=info.lang, pages=pages, meta=meta)
    full = recipe.full(live.key.domain, info.title, info.uri, info.lang, dict(info.meta))
    staging.add(replace(live, recipe=full), parsed, info.lang)


def add_again(staging: Staging, strays: Sequence[LiveDocument]) -> None:
    """Stage documents anew that can no longer share their content, and flush (see `Writer.strays`)."""
    staging.renew()
    recipe = Recipe.of(staging.settings, staging.embedder.hash)
    for live in strays:
        add_stored(staging, live, recipe)
    staging.flush()


def show(progress: Progress, what: str, staging: Staging, share: float, **facts: object) -> None:
    """Report progress in tokens, which is what takes the time: those embedded, of those there will be if what is not read yet is like what
    is; `share` in [0, 1] of it is read."""
    total = round(staging.known_tokens / share) if share > 0 else None
    progress(what, staging.tokens, total, unit="tokens", chunks=staging.chunks, **facts)


def language(parsed: Parsed) -> str:
    # The beginning is enough, and a huge text is not copied.
    return parsed.lang or detect_lang(f"{parsed.title}\n{parsed.text[:_BLOCK]}")


def stored_meta(parsed: Parsed) -> dict[str, Any]:
    """The metadata as stored; pages go with it, so that the index can be rebuilt from the stored text."""
    return {**parsed.meta, **({"pages": [list(page) for page in parsed.pages]} if parsed.pages else {})}


def text_hash(text: str) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(text), _BLOCK):
        digest.update(text[start : start + _BLOCK].encode("utf-8"))
    return digest.hexdigest()


def _retrieval_text(parsed: Parsed, span: Span) -> str:
    return retrieval_text(parsed.title, span.heading, parsed.text[span.start : span.end])


def _content_key(live: LiveDocument, parsed: Parsed) -> ContentKey:
    how = live.recipe.partition(".")[0]
    return ContentKey(live.key.domain, live.sha256, f"{how}.{_digest(parsed.pages)}", live.labels)


def _contents(batch: Iterable[Incoming]) -> Iterable[NewContent]:
    ordinal = 0
    for item in batch:
        parsed = item.parsed
        chunks = tuple(_chunk(item, span, ordinal + index) for index, span in enumerate(item.spans))
        ordinal += len(chunks)
        signed = signature(parsed.text) if item.id is None else None
        yield NewContent(item.key, parsed.title, item.lang, parsed.text, chunks, signed, item.id, item.complete)


def _chunk(item: Incoming, span: Span, ordinal: int) -> NewChunk:
    text = item.parsed.text[span.start : span.end]
    id = _digest([item.key.domain, item.key.sha256, span.start, span.end])
    return NewChunk(id, ordinal, span.start, span.end, span.heading, span.page, _span_lang(text, item.lang), injection.flags(text))


def _version(item: Described, content: int | None) -> NewVersion:
    assert content is not None, "a document is described after its content is stored"
    live, parsed = item.live, item.parsed
    return NewVersion(live.key, live.sha256, live.recipe, content, parsed.uri, parsed.title, item.lang, stored_meta(parsed))


def _span_lang(text: str, lang: str) -> str:
    """The language of a part of a document: Chinese by script, another one only where there are letters to tell it by."""
    found = detect_lang(text)
    if lang == "zh" and found != "zh" and not any(char.isalpha() for char in text):
        return lang
    return found if "zh" in (found, lang) else lang


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode("utf-8")).hexdigest()[:24]
