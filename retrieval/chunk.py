"""Documents to chunks: sections, paragraphs, items, rows and sentences, with exact offsets and the path of headings above."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from retrieval import structure
from retrieval.text import iter_sentences

Count = Callable[[list[str]], list[int]]
# No tokenizer in use makes one token of more characters than these on average: a longer piece is too long, uncounted.
_MAX_TOKEN_CHARS = 20


@dataclass(frozen=True, slots=True)
class ChunkSettings:
    """Sizes in tokens of the embedding model.

    Chunks are filled to `target` and never exceed `maximum`; sections below `minimum` join their neighbours. `overlap` is the
    size up to which the last sentence of a chunk is repeated in the next one, where a section is split. The defaults suit models
    with a window of 512 tokens: title, headings and prefix need room beside the chunk.
    """

    target: int = 200
    maximum: int = 320
    minimum: int = 40
    overlap: int = 40

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.target <= self.maximum or not 0 <= self.minimum <= self.target:
            raise ValueError(f"chunk sizes must obey 0 <= overlap < target <= maximum and 0 <= minimum <= target, found {self}")


@dataclass(frozen=True, slots=True)
class Span:
    """A chunk of one document before it has an id: ``text[start:end]``, its headings from the outermost in, its page.

    `tokens` is the sum of the counts of its sentences: what the whole has, give or take a few.
    """

    start: int
    end: int
    heading: tuple[str, ...]
    page: int | None
    tokens: int


@dataclass(frozen=True, slots=True)
class _Unit:
    """The smallest piece a chunk is made of: a sentence (or a part of one longer than a chunk) up to the start of the next."""

    start: int
    end: int
    tokens: int
    opens_block: bool
    may_repeat: bool


@dataclass(frozen=True, slots=True)
class _Section:
    start: int
    end: int
    heading: tuple[str, ...]
    has_body: bool


def chunk(text: str, count: Count, settings: ChunkSettings, pages: Sequence[tuple[int, int, int]] = ()) -> Iterator[Span]:
    """The chunks of `text`, in order, lazily.

    `count` gives the tokens of each of a list of strings, without special tokens; it is given at most 256 strings at a time, none longer
    than any chunk can be. Every non-blank character is in a chunk; no chunk cuts a sentence unless the sentence is longer than a chunk.
    The page is the one the chunk begins on.
    """
    page_at = 0
    for start, end, heading, tokens in _spans(text, count, settings):
        start, end = _trim(text, start, end)
        if start == end:
            continue
        while page_at + 1 < len(pages) and pages[page_at + 1][0] <= start:
            page_at += 1
        while page_at > 0 and pages[page_at][0] > start:
            page_at -= 1
        yield Span(start, end, heading, pages[page_at][2] if pages else None, tokens)


def _spans(text: str, count: Count, settings: ChunkSettings) -> Iterator[tuple[int, int, tuple[str, ...], int]]:
    """Sections as they are, small ones together, large ones split: start, end, heading, tokens."""
    held: _Section | None = None
    held_tokens = 0
    for section in _sections(text):
        tokens = _count_all(text, [(section.start, section.end)], count, settings)[0]
        if held is not None and _may_join(held, held_tokens, section, tokens, settings):
            heading = section.heading if not held.has_body else _common(held.heading, section.heading)
            held, held_tokens = _Section(held.start, section.end, heading, held.has_body or section.has_body), held_tokens + tokens
            continue
        if held is not None:
            yield from _emit(text, held, held_tokens, count, settings)
        held, held_tokens = section, tokens
    if held is not None:
        yield from _emit(text, held, held_tokens, count, settings)


def _may_join(held: _Section, held_tokens: int, section: _Section, tokens: int, settings: ChunkSettings) -> bool:
    if not held.has_body and section.heading[: len(held.heading)] == held.heading:
        # A heading alone belongs to what follows it, whatever the size; a section too large is split below.
        return True
    small = held_tokens < settings.minimum or tokens < settings.minimum
    related = held.heading[:-1] == section.heading[:-1] or section.heading[: len(held.heading)] == held.heading
    return small and related and held_tokens + tokens <= settings.target


def _common(left: tuple[str, ...], right: tuple[str, ...]) -> tuple[str, ...]:
    same = 0
    while same < min(len(left), len(right)) and left[same] == right[same]:
        same += 1
    return left[:same]


def _count_all(text: str, spans: Sequence[tuple[int, int]], count: Count, settings: ChunkSettings) -> list[int]:
    """The tokens of each span, where they are few enough for a chunk."""
    longest = _MAX_TOKEN_CHARS * settings.maximum
    short = [text[start:end] for start, end in spans if end - start <= longest]
    counts = iter(count(short) if short else ())
    return [next(counts) if end - start <= longest else settings.maximum + 1 for start, end in spans]


def _emit(
    text: str, section: _Section, tokens: int, count: Count, settings: ChunkSettings
) -> Iterator[tuple[int, int, tuple[str, ...], int]]:
    if tokens <= settings.maximum:
        yield section.start, section.end, section.heading, tokens
        return
    units: list[_Unit] = []
    size = 0
    for unit in _units(text, section, count, settings):
        full = size + unit.tokens > settings.target
        # Past three quarters of the target, a new paragraph, item or row begins the next chunk.
        good_place = unit.opens_block and size >= 0.75 * settings.target
        keeps_heading = size + unit.tokens <= settings.maximum and _only_heading(text, units)
        # White space has no tokens, but must not make a chunk without an end.
        too_long = bool(units) and unit.end - units[0].start > _MAX_TOKEN_CHARS * settings.maximum
        if units and (too_long or ((full or good_place) and not keeps_heading)):
            yield units[0].start, units[-1].end, section.heading, size
            last = units[-1]
            units = [last] if last.may_repeat and last.tokens <= settings.overlap and last.tokens + unit.tokens <= settings.target else []
            size = sum(kept.tokens for kept in units)
        units.append(unit)
        size += unit.tokens
    if units:
        yield units[0].start, units[-1].end, section.heading, size


def _only_heading(text: str, units: list[_Unit]) -> bool:
    return len(units) == 1 and text[units[0].start : units[0].end].lstrip().startswith("#")


def _units(text: str, section: _Section, count: Count, settings: ChunkSettings) -> Iterator[_Unit]:
    """The section cut at the beginnings of its sentences; counted a few hundred at a time."""
    batch: list[tuple[int, int]] = []
    begin = section.start
    for start, _ in iter_sentences(text, section.start, section.end):
        # A bullet, number or heading mark before the sentence goes with it.
        start = _with_marker(text, begin, start)
        if start > begin:
            batch.append((begin, start))
            begin = start
        if len(batch) == 256:
            yield from _counted(text, batch, count, settings)
            batch = []
    batch.append((begin, section.end))
    yield from _counted(text, batch, count, settings)


def _with_marker(text: str, begin: int, start: int) -> int:
    line = text.rfind("\n", begin, start) + 1
    line = max(line, begin)
    return line if structure.decoration(text[line : start + 1]) >= start - line else start


def _counted(text: str, spans: list[tuple[int, int]], count: Count, settings: ChunkSettings) -> Iterator[_Unit]:
    for (start, end), tokens in zip(spans, _count_all(text, spans, count, settings), strict=True):
        at_line_start = start == 0 or text[start - 1] == "\n"
        newline = text.find("\n", start, end)
        line = text[start : end if newline < 0 else newline]
        opens = at_line_start and (structure.starts_block(line) or text[max(0, start - 2) : start] == "\n\n")
        if tokens <= settings.maximum:
            yield _Unit(start, end, tokens, opens, may_repeat=not structure.is_row(line) and structure.heading(line) is None)
            continue
        for piece_start, piece_end, piece_tokens in _cut(text, start, end, count, settings):
            yield _Unit(piece_start, piece_end, piece_tokens, opens and piece_start == start, may_repeat=False)


def _cut(text: str, start: int, end: int, count: Count, settings: ChunkSettings) -> Iterator[tuple[int, int, int]]:
    """A sentence longer than a chunk, cut at white space or commas where there are any, to at most `target` tokens a piece."""
    room = 4 * settings.target
    while start < end:
        stop = min(end, start + room)
        tokens = count([text[start:stop]])[0]
        while tokens > settings.target and stop - start > 1:
            # Aim a little below the size that the tokens per character so far suggest.
            room = max(1, int(0.9 * (stop - start) * settings.target / tokens))
            stop = start + room
            tokens = count([text[start:stop]])[0]
        if stop < end:
            stop = _soft_stop(text, start, stop)
            tokens = count([text[start:stop]])[0]
        yield start, stop, tokens
        start = stop


def _soft_stop(text: str, start: int, stop: int) -> int:
    for position in range(stop, start + (stop - start) // 2, -1):
        if text[position - 1].isspace() or text[position - 1] in ",;，；、|)）":
            return position
    return stop


def _sections(text: str) -> Iterator[_Section]:
    """The text from each heading to the next, with the path of headings."""
    path: list[tuple[int, str]] = []
    start, body, fenced = 0, False, False
    for line_start, line_end, alone in _lines(text):
        line = text[line_start:line_end]
        if structure.is_fence(line):
            fenced = not fenced
        found = None if fenced else structure.heading(line, alone)
        if found is None:
            body = body or bool(line.strip())
            continue
        if line_start > start:
            yield _Section(start, line_start, tuple(title for _, title in path), body)
        level, title = found
        while path and path[-1][0] >= level:
            path.pop()
        path.append((level, title))
        # A clause with its text on the line of its number has a body already.
        start, body = line_start, len(title) < len(line.strip().lstrip("#").strip())
    if start < len(text):
        yield _Section(start, len(text), tuple(title for _, title in path), body)


def _lines(text: str) -> Iterator[tuple[int, int, bool]]:
    """Start, end, and whether the lines above and below are blank (or missing)."""
    start, blank_above = 0, True
    while start < len(text):
        stop = text.find("\n", start)
        stop = len(text) if stop < 0 else stop
        following = text.find("\n", stop + 1)
        blank_below = stop >= len(text) or not text[stop + 1 : len(text) if following < 0 else following].strip()
        yield start, stop, blank_above and blank_below
        blank_above = not text[start:stop].strip()
        start = stop + 1


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
