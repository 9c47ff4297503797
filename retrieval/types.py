"""The contracts of retrieval: what goes into the index and what comes out of a search.

Offsets are Unicode code points in `Document.text`, half open: ``text[start:end]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple


class DocumentKey(NamedTuple):
    """What identifies a document: its domain and the id within it."""

    domain: str
    id: str


@dataclass(frozen=True, slots=True)
class DocumentInfo:
    """Everything about a document except its text.

    `sha256` is the hash of the text, `updated_at` the moment this content was first seen here (UTC).
    The caller must hold every one of `labels` to see the document; none means everyone.
    """

    domain: str
    id: str
    uri: str
    title: str
    lang: str
    labels: frozenset[str]
    sha256: str
    updated_at: datetime
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> DocumentKey:
        return DocumentKey(self.domain, self.id)


@dataclass(frozen=True, slots=True)
class Document:
    """A document with its text; Markdown and plain text are the file as it is, with LF newlines."""

    info: DocumentInfo
    text: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of one document. ``text == Document.text[start:end]``, always.

    `heading` is the path of headings above the span; `page` counts from 1 where the format has pages. `lang` is the language of the
    span itself, `flags` the kinds of instruction-like content in it, its headings and its document's title (see `retrieval.injection`).
    """

    id: str
    doc: DocumentKey
    start: int
    end: int
    heading: tuple[str, ...]
    page: int | None
    text: str
    lang: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk found for a question. Ranks count from 0; None means that retriever did not return it.

    `document` is the first of `sources`, the visible documents with exactly this text: the one whose content was seen here first.
    `score` is the fused score (larger is better), `dense_score` the cosine in [-1, 1],
    `lexical_score` the BM25 score (>= 0), `rerank_score` that of the cross-encoder, where there is one: then it decides the order.
    """

    chunk: Chunk
    document: DocumentInfo
    score: float
    dense_rank: int | None
    lexical_rank: int | None
    dense_score: float | None = None
    lexical_score: float | None = None
    sources: tuple[DocumentInfo, ...] = ()
    rerank_score: float | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What retrieval found for one question, and the numbers the router reads.

    `signals` (all floats): ``dense_top``, ``dense_gap`` (first minus second), ``lexical_top``, ``lexical_gap``,
    ``lexical_share`` (the best BM25 score as a share of the largest the question could reach, in [0, 1]), ``dense_entropy`` and
    ``lexical_entropy`` (how alike the ten best scores are, in [0, 1]), ``agreement`` (how alike the ten first of both retrievers are,
    in [0, 1]), ``overlap`` (share of the top k that both retrievers returned, in [0, 1]), ``term_coverage`` (share of the
    question's content words, weighted by rarity, that occur in the best passage, in [0, 1]), ``coverage_all``
    (the same over all returned passages), ``title_coverage`` (the same in the title of the best passage's document), ``title_asked``
    (share of that title's content words that the question has, in [0, 1]: whether the document is about what is asked, or about more),
    ``rarity`` and ``rarest`` (mean and largest rarity of the question's words), ``rarest_found`` (1 if a passage has the rarest),
    ``documents`` (number of different documents), ``top_days`` (age of the best passage's
    document), ``newest_days`` and ``oldest_days`` (of all passages' documents), ``passages``. `degraded`: something stands in for the
    damaged live generation (see `retrieval.fallback`), so that passages may be missing.
    """

    query: str
    passages: tuple[Passage, ...]
    generation: int | None
    signals: Mapping[str, float] = field(default_factory=dict)
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Scope:
    """What a caller may see. `domains` None means every domain; a document is visible if `labels` contains all of its labels."""

    domains: frozenset[str] | None = None
    labels: frozenset[str] = frozenset()


class RetrievalError(Exception):
    """A failure of retrieval whose message says what happened, where, and what to do."""


class IndexCorrupt(RetrievalError):
    """A file of a generation is missing, truncated or altered; the message names the file."""
