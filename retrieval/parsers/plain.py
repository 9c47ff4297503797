"""Markdown and plain text: the file as it is, in whatever encoding it has."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from retrieval import structure
from retrieval.parsers import Options, Parsed, ParseError, clean

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 1 << 16
_BLOCK = 1 << 20
_LIMIT = 512 << 20
_USUAL = re.compile("[\\t\\n\\r -~\u00a0-\u024f\u2010-\u2044\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]")
_TITLE_WIDTH = 100


def parse(path: Path, name: str, options: Options) -> Iterator[Parsed]:
    if (size := path.stat().st_size) > _LIMIT:
        raise ParseError(f"{name}: {size >> 20} MB, at most {_LIMIT >> 20} MB are read as one document; split it")
    text = clean(decode(path.read_bytes(), name))
    yield Parsed(title=title_of(text, name), text=text, uri=name)


def is_utf8(path: Path) -> bool:
    """Whether the whole file is UTF-8, with a byte order mark or without."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(_BLOCK), b""):
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def decode(data: bytes, name: str) -> str:
    """Text from bytes, as `decode_known` has it, else by the best guess of charset-normalizer. Raises ParseError for binary data."""
    if (text := decode_known(data, name)) is not None:
        return text
    from charset_normalizer import from_bytes

    best = from_bytes(data[: 1 << 20]).best()
    if best is None:
        raise ParseError(f"{name}: the text encoding is not known; save the file as UTF-8")
    # Which single-byte encoding it is cannot be told from a few accents; for English text it is nearly always this one.
    return _strict(data, best.encoding if best.multi_byte_usage else "cp1252", name)


def decode_known(data: bytes, name: str) -> str | None:
    """Text from bytes: by byte order mark, else UTF-8, UTF-16 (by its zero bytes), GB18030; None: none of these.

    Raises ParseError for binary data.
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return _strict(data, encoding, name)
    sample = data[:_SAMPLE]
    if b"\x00" in sample:
        if (text := _utf16(data)) is not None:
            return text
        raise ParseError(f"{name}: this is binary data, not text; give the file the suffix of its real format, or leave it out")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass  # Not UTF-8: try the others.
    if _looks_gb(sample):
        try:
            return data.decode("gb18030")
        except UnicodeDecodeError:
            pass  # Not GB18030 either.
    return None


def title_of(text: str, name: str) -> str:
    """The first heading, else a short first line, else the file's name."""
    for index, line in enumerate(text[:_SAMPLE].split("\n")):
        stripped = line.strip()
        if not stripped:
            continue
        if stripped.startswith("#") and (found := structure.heading(line)):
            return found[1]
        if index == 0 or not text[: text.find(line)].strip():
            first = stripped
            if (
                structure.width(first) <= _TITLE_WIDTH
                and not first.endswith(tuple("。！？；…!?;.:：，,、|"))
                and "# " not in text[:_SAMPLE]
            ):
                return first
    return PurePosixPath(name).stem


def _strict(data: bytes, encoding: str, name: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ParseError(f"{name}: byte {error.start} is not valid {encoding}; save the file as UTF-8") from error


def _utf16(data: bytes) -> str | None:
    """UTF-16 without a byte order mark, in the byte order that gives more usual characters; None if neither gives text."""
    sample = data[:_SAMPLE]
    zeros = sample.count(0)
    ascii_bytes = sum(32 <= byte < 127 for byte in sample)
    # A few zeros among ASCII are binary data; two ASCII bytes together would pass for a Chinese character.
    if len(data) % 2 or (zeros < 0.25 * len(sample) and ascii_bytes > 0.7 * (len(sample) - zeros)):
        return None
    usual = {encoding: _usual(sample[: len(sample) & ~1].decode(encoding, "replace")) for encoding in ("utf-16-le", "utf-16-be")}
    best = max(usual, key=lambda encoding: usual[encoding])
    try:
        return data.decode(best) if usual[best] >= 0.9 else None
    except UnicodeDecodeError:
        return None


def _usual(text: str) -> float:
    """The share of characters that English and Chinese text consists of."""
    return len(_USUAL.findall(text)) / max(len(text), 1)


def _looks_gb(sample: bytes) -> bool:
    """Whether most bytes above 127 come in pairs of such bytes, as in Chinese GB text and not in Western text."""
    pairs = single = index = 0
    while index < len(sample) - 1:
        if sample[index] < 0x81:
            index += 1
        elif sample[index] >= 0xA1 and sample[index + 1] >= 0xA1:
            pairs, index = pairs + 1, index + 2
        else:
            single, index = single + 1, index + 2
    return pairs > 4 * single
