"""Files to text: one parser per format, chosen by suffix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrieval.types import RetrievalError


@dataclass(frozen=True, slots=True)
class Parsed:
    """One document of a file.

    `id` and `domain` are set only where the file itself names them (rows of a JSONL corpus); `lang` None means: detect it.
    `pages` are (start, end, page) spans of `text`, pages counting from 1. `warnings` are plain sentences for the report.
    """

    title: str
    text: str
    uri: str
    id: str | None = None
    lang: str | None = None
    domain: str | None = None
    pages: tuple[tuple[int, int, int], ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class ParseError(RetrievalError):
    """A file or a row cannot be read; the message names it, says what was expected, and what to do."""


Parser = Callable[[Path, str], "Iterator[Parsed | ParseError]"]

SUFFIXES: Mapping[str, str] = {
    ".md": "plain",
    ".markdown": "plain",
    ".txt": "plain",
    ".text": "plain",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".csv": "table",
    ".tsv": "table",
    ".docx": "docx",
    ".pdf": "pdf",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
"""Known suffixes and the module of this package that reads them."""


def supported(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def is_corpus(path: Path) -> bool:
    """Whether one file of this kind holds many documents."""
    return SUFFIXES.get(path.suffix.lower()) == "jsonl"


def parse(path: Path, name: str) -> Iterator[Parsed | ParseError]:
    """The documents of a file, in order; a bad row is yielded as a ParseError and the rows after it follow.

    `name` is how the file is called in ids and messages. Raises ParseError if the file as a whole cannot be read.
    """
    import importlib

    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ParseError(f"{name}: the format {path.suffix or '(no suffix)'} is not supported; supported are {' '.join(sorted(SUFFIXES))}")
    reader: Parser = importlib.import_module(f"retrieval.parsers.{kind}").parse
    try:
        yield from reader(path, name)
    except ParseError:
        raise
    except Exception as error:
        # The libraries behind the formats raise anything at all on damaged input; one bad file must cost one error.
        raise ParseError(
            f"{name}: cannot be read as {path.suffix.lower().lstrip('.')} ({type(error).__name__}: {error}); "
            "open it in its own program, save it again, and ingest it again"
        ) from error


def clean(text: str) -> str:
    """LF newlines, and nothing a database refuses to store: NUL and lone surrogates become U+FFFD."""
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
