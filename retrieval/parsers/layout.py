"""The words of a printed page to text: reading order of columns, tables as `| a | b |` rows, wrapped lines joined, headings by size.

Lengths are points, counted from the top left corner of the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from retrieval import structure
from retrieval.parsers.blocks import row_line


class Word(NamedTuple):
    text: str
    left: float
    right: float
    top: float
    bottom: float
    size: float


@dataclass(slots=True)
class Piece:
    """Words side by side on one line, with no gap wider than a character."""

    words: list[Word]

    @property
    def left(self) -> float:
        return self.words[0].left

    @property
    def right(self) -> float:
        return self.words[-1].right

    @property
    def top(self) -> float:
        return min(word.top for word in self.words)

    @property
    def bottom(self) -> float:
        return max(word.bottom for word in self.words)

    @property
    def size(self) -> float:
        return max(word.size for word in self.words)

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


class Table(NamedTuple):
    """A table drawn with lines: its place, and its rows of cells."""

    left: float
    right: float
    top: float
    bottom: float
    rows: list[list[str]]


@dataclass(slots=True)
class Line:
    """One line of text as it will stand; `kind` is "text" or "row", `apart` whether a blank line goes before it."""

    text: str
    kind: str
    size: float
    apart: bool = False


def page_lines(words: Sequence[Word], tables: Sequence[Table]) -> list[Line]:
    """The lines of a page in reading order. Words inside a table are taken from the table."""
    free = [word for word in words if not any(_inside(word, table) for table in tables)]
    out: list[Line] = []
    waiting = sorted(tables, key=lambda table: table.top)
    for column in _columns(_rows_of_pieces(free)):
        margin = max((piece.right for line in column for piece in line), default=0.0)
        gap = _usual_gap(column)
        here: list[list[Piece]] = []
        for line in column:
            while waiting and waiting[0].top < line[0].top:
                out += [*_joined(here, margin, gap), *_table(waiting.pop(0))]
                here = []
            here.append(line)
        rest = _joined(here, margin, gap)
        if out and rest and _flows(out[-1], rest[0]):
            out[-1].text = glue(out[-1].text, rest.pop(0).text)
        out += rest
    for table in waiting:
        out += _table(table)
    return out


def _flows(above: Line, line: Line) -> bool:
    """Whether a paragraph goes on at the head of the next column."""
    same = above.kind == line.kind == "text" and above.size == line.size and not structure.starts_block(line.text)
    return same and above.text[-1] not in ".。!！?？:：;；" and (line.text[0].islower() or structure.width(line.text[0]) == 2)


def _inside(word: Word, table: Table) -> bool:
    x, y = (word.left + word.right) / 2, (word.top + word.bottom) / 2
    return table.left <= x <= table.right and table.top <= y <= table.bottom


def _table(table: Table) -> list[Line]:
    return [Line(row_line(row), "row", 0.0) for row in table.rows if any(cell.strip() for cell in row)]


def _rows_of_pieces(words: Sequence[Word]) -> list[list[Piece]]:
    """Words on one base line together, cut where the gap is wider than a character."""
    lines: list[list[Word]] = []
    for word in sorted(words, key=lambda word: word.bottom):
        if lines and abs(word.bottom - lines[-1][-1].bottom) <= 0.35 * min(word.size, lines[-1][-1].size):
            lines[-1].append(word)
        else:
            lines.append([word])
    return [_pieces(sorted(line, key=lambda word: word.left)) for line in lines]


def _pieces(line: Sequence[Word]) -> list[Piece]:
    pieces = [Piece([line[0]])]
    for before, word in pairwise(line):
        if word.left - before.right > max(word.size, before.size):
            pieces.append(Piece([word]))
        else:
            pieces[-1].words.append(word)
    return pieces


def _columns(lines: list[list[Piece]]) -> list[list[list[Piece]]]:
    """The lines as they are, or, where prose stands in two columns, the left column before the right one."""
    pieces = [piece for line in lines for piece in line]
    gutter = _gutter(pieces)
    if gutter is None:
        return [lines]
    out: list[list[list[Piece]]] = []
    left: list[list[Piece]] = []
    right: list[list[Piece]] = []
    for line in lines:
        if any(piece.left < gutter < piece.right for piece in line):
            out += [left, right, [line]]
            left, right = [], []
            continue
        for side, found in ((left, [p for p in line if p.right <= gutter]), (right, [p for p in line if p.left >= gutter])):
            if found:
                side.append(found)
    return [column for column in [*out, left, right] if column]


def _gutter(pieces: Sequence[Piece]) -> float | None:
    """The middle of the gap between two columns of prose, None if there are no columns (cells of a table are ragged and narrow)."""
    if not pieces:
        return None
    width = max(piece.right for piece in pieces) - min(piece.left for piece in pieces)
    wide = [piece for piece in pieces if piece.right - piece.left >= 0.25 * width]
    for start in sorted({round(piece.left) for piece in wide}):
        right = [piece for piece in wide if piece.left >= start - 1]
        left = [piece for piece in wide if piece.right < start - 1]
        if min(len(left), len(right)) < 4 or len(left) + len(right) < 0.8 * len(wide):
            continue
        end = max(piece.right for piece in left)
        begin = min(piece.left for piece in right)
        side_by_side = max(p.top for p in left) > min(p.top for p in right) and max(p.top for p in right) > min(p.top for p in left)
        if side_by_side and all(_is_prose(side) for side in (left, right)):
            return (end + begin) / 2
    return None


def _is_prose(column: Sequence[Piece]) -> bool:
    full = max(piece.right for piece in column) - min(piece.left for piece in column)
    return sum(piece.right - piece.left >= 0.75 * full for piece in column) > 0.5 * len(column)


def _usual_gap(lines: Sequence[Sequence[Piece]]) -> float:
    """The white space between a line and the next one of its paragraph: usual, but not the median where paragraphs are short."""
    gaps = sorted(below[0].top - above[0].bottom for above, below in pairwise(lines))
    return gaps[len(gaps) // 4] if gaps else 0.0


def _joined(lines: Sequence[list[Piece]], margin: float, gap: float) -> list[Line]:
    """Joins wrapped prose, and makes aligned pieces table rows, with the wrapped lines of their cells."""
    out: list[Line] = []
    row: list[Piece] = []  # the open table row
    cells: list[str] = []
    above: Piece | None = None  # the last line of prose
    bottom = lines[0][0].top if lines else 0.0
    for line in lines:
        near = line[0].top - bottom <= gap + 0.4 * line[0].size
        bottom = line[0].bottom
        if row and near and (places := _wraps_row(line, row)) is not None:
            for place, piece in zip(places, line, strict=True):
                cells[place] = glue(cells[place], piece.text)
            continue
        if row:
            out.append(Line(row_line(cells), "row", row[0].size))
            row = []
        if len(line) > 1:
            row, cells, above = line, [piece.text for piece in line], None
            continue
        prose = line[0]
        if above is not None and near and _continues(above, prose, margin):
            out[-1].text = glue(out[-1].text, prose.text)
        else:
            out.append(Line(prose.text, "text", prose.size, apart=not near and bool(out)))
        above = prose
    if row:
        out.append(Line(row_line(cells), "row", row[0].size))
    return out


def _wraps_row(line: Sequence[Piece], row: Sequence[Piece]) -> list[int] | None:
    """The cells of the row above that the pieces of a line go on, None if it is a row or a line of its own."""
    if len(line) >= len(row):
        return None
    places = [next((n for n, cell in enumerate(row) if abs(cell.left - piece.left) <= 2), None) for piece in line]
    known = [place for place in places if place is not None]
    if len(known) < len(line):
        return None
    if known[0] > 0:
        return known
    return known if len(line) == 1 and line[0].text[0].islower() and line[0].right < row[1].left else None


def _continues(above: Piece, line: Piece, margin: float) -> bool:
    """Whether a line goes on with the paragraph of the line above it: its first word would not have fitted there."""
    if structure.starts_block(line.text) or abs(line.size - above.size) > 0.1 * above.size or line.left - above.left > 1.5 * line.size:
        return False
    first = line.words[0]
    # Chinese breaks anywhere, English at spaces.
    need = line.size if structure.width(first.text[0]) == 2 else first.right - first.left + 0.2 * line.size
    return above.right + need > margin - 1.5 * line.size


def glue(left: str, right: str) -> str:
    """Two lines of one paragraph as one: "pre-" + "printed" keeps its hyphen, Chinese lines join without a space."""
    joined = not left or not right or left[-1] == "-" or structure.width(left[-1]) == 2 or structure.width(right[0]) == 2
    return left + ("" if joined else " ") + right


def heading_sizes(lines: Sequence[Line]) -> list[float]:
    """The sizes of letters that only headings have, the largest first: at least 15 % above the size most text has."""
    amount: dict[float, int] = {}
    for line in lines:
        if line.kind == "text":
            amount[round(line.size, 1)] = amount.get(round(line.size, 1), 0) + len(line.text)
    if not amount:
        return []
    body = max(amount, key=lambda size: amount[size])
    return sorted((size for size in amount if size >= 1.15 * body), reverse=True)[:4]


def page_text(lines: Sequence[Line], sizes: Sequence[float]) -> str:
    """The lines as text, with `# ` before headings, and blank lines around headings, tables and paragraphs."""
    texts: list[str] = []
    levels: list[int | None] = []
    for line in lines:
        is_large = line.kind == "text" and round(line.size, 1) in sizes and structure.width(line.text) <= 120
        mark = "#" * (sizes.index(round(line.size, 1)) + 1) + " " if is_large and re.search(r"[^\W\d_]", line.text) else ""
        texts.append(mark + line.text)
        found = structure.heading(texts[-1], alone=True) if line.kind == "text" else None
        levels.append(found[0] if found else None)
    out: list[str] = []
    for index, (line, text) in enumerate(zip(lines, texts, strict=True)):
        # Several numbered lines of one level in a row are a list, not headings.
        around = levels[max(0, index - 1) : index] + levels[index + 1 : index + 2]
        title = levels[index] is not None and (text.startswith("#") or levels[index] not in around)
        if out and out[-1] and (title or line.apart or lines[index - 1].kind != line.kind):
            out.append("")
        out.append(text)
        if title:
            out.append("")
    return "\n".join(out).strip()
