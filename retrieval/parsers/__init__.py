"""Files to text: one parser per format, chosen by suffix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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


class Skipped(NamedTuple):
    """A file that was left out on purpose, and why."""

    path: str
    reason: str


class ParseError(RetrievalError):
    """A file or a row cannot be read; the message names it, says what was expected, and what to do."""


def _nothing() -> None:
    """The default of `Options.alive`."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to read. With `ocr`, pages without a text layer are read by Tesseract in `ocr_languages` (its names, joined by "+").

    `alive` is called after each page, slide or sheet: where a time limit is set, it is one of progress, not of size.
    """

    ocr: bool = False
    ocr_languages: str = "chi_sim+eng"
    alive: Callable[[], None] = _nothing

    @property
    def key(self) -> str:
        """What of the options decides how much of a file is read."""
        return f"ocr {self.ocr_languages}" if self.ocr else ""


Parser = Callable[[Path, str, Options], "Iterator[Parsed | ParseError | Skipped]"]

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
    ".pptx": "pptx",
    ".xlsx": "xlsx",
    ".pdf": "pdf",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
"""Known suffixes and the module of this package that reads them."""

ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")
"""Suffixes of archives, which are read only where that is asked for."""


XML_NO_MEMORY = 2
"""The code by which libxml2 says, as an error of syntax, that memory ended."""


def supported(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def is_corpus(path: Path) -> bool:
    """Whether one file holds many documents: a JSONL corpus, a table of questions and answers, an archive."""
    kind = SUFFIXES.get(path.suffix.lower())
    if kind == "table":
        from retrieval.parsers import table

        return table.is_pairs(path)
    return kind == "jsonl" or is_archive(path)


def parse(path: Path, name: str, options: Options | None = None) -> Iterator[Parsed | ParseError | Skipped]:
    """The documents of a file, in order; a bad row is yielded as a ParseError and the rows after it follow.

    `name` is how the file is called in ids and messages. Raises ParseError if the file as a whole cannot be read, MemoryError if
    memory ends. It runs in this process, without limits; `retrieval.isolation` guards against hostile files.
    """
    import importlib

    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ParseError(f"{name}: the format {path.suffix or '(no suffix)'} is not supported; supported are {' '.join(sorted(SUFFIXES))}")
    reader: Parser = importlib.import_module(f"retrieval.parsers.{kind}").parse
    try:
        yield from reader(path, name, options or Options())
    except (ParseError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "XMLSyntaxError" and getattr(error, "code", None) == XML_NO_MEMORY:
            raise MemoryError from error
        # The libraries behind the formats raise anything at all on damaged input; one bad file must cost one error.
        raise ParseError(
            f"{name}: cannot be read as {path.suffix.lower().lstrip('.')} ({type(error).__name__}: {error}); "
            "open it in its own program, save it again, and ingest it again"
        ) from error


def clean(text: str) -> str:
    """LF newlines, and nothing a database refuses to store: NUL and lone surrogates become U+FFFD."""
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
