"""DOCX: headings as `# ` lines, lists, and tables as `| a | b |` rows, in the order of the document.

What holds text is looked for in the XML itself (ECMA-376, part 1, chapter 17): insertions that are not accepted yet, content controls, text
boxes, nested tables, and notes, which follow the paragraph that refers to them. Deletions stay out, and tables of contents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.parsers import Options, Parsed, clean
from retrieval.parsers.blocks import cell_text, join_blocks, row_line, rule_line
from retrieval.parsers.office import check
from retrieval.parsers.plain import title_of

_HEADING = re.compile(r"(?:heading|标题)\s*(\d)$", re.IGNORECASE)
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MATH_TEXT = "{http://schemas.openxmlformats.org/officeDocument/2006/math}t"
# Alternative content is there twice: once for programs that know it, once for those that do not.
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_LEFT_OUT = frozenset({_FALLBACK, *(_W + name for name in ("del", "moveFrom", "pPr", "rPr", "sdtPr", "sdtEndPr", "rt"))})
_MARKS = {_W + "tab": "\t", _W + "br": "\n", _W + "cr": "\n", _W + "noBreakHyphen": "-"}
_BOX = _W + "txbxContent"
_NOTES = (_W + "footnoteReference", _W + "endnoteReference")

Block = tuple[str, str]


def parse(path: Path, name: str, options: Options) -> Iterator[Parsed]:
    import docx

    check(path, name, "DOCX")
    document = docx.Document(str(path))
    reader = _Reader({style.style_id: style.name or "" for style in document.styles}, _notes(document))
    text = clean(join_blocks(list(reader.blocks(document.element.body))))
    title = (document.core_properties.title or "").strip()
    yield Parsed(title=clean(title) or title_of(text, name), text=text, uri=name)


@dataclass(slots=True)
class _Reader:
    """`styles` are names of paragraph styles by id, `notes` foot- and endnotes by kind of reference and id."""

    styles: dict[str, str]
    notes: dict[tuple[str, str], Any]
    number: int = 0

    def blocks(self, parent: Any) -> Iterator[Block]:
        """The paragraphs and tables in an element, in order, whatever they are wrapped in."""
        for child in _children(parent):
            if child.tag == _W + "p":
                yield from self._paragraph(child)
            elif child.tag == _W + "tbl":
                yield from self._table(child)
                self.number = 0
            else:
                yield from self.blocks(child)

    def _paragraph(self, paragraph: Any) -> Iterator[Block]:
        text = "".join(_texts(paragraph)).strip()
        if text:
            yield self._styled(paragraph, text)
        for found in _found(paragraph, (_BOX, *_NOTES)):
            # A note that refers to itself has no end.
            inner = found if found.tag == _BOX else self.notes.pop((found.tag, found.get(_W + "id")), None)
            if inner is not None:
                yield from self.blocks(inner)

    def _styled(self, paragraph: Any, text: str) -> Block:
        style = self.styles.get(_value(paragraph, "pPr/pStyle") or "", "")
        numbered = style.startswith("List Number")
        self.number = self.number + 1 if numbered else 0
        if found := _HEADING.match(style):
            return "heading", f"{'#' * min(int(found.group(1)) + 1, 6)} {' '.join(text.split())}"
        if style == "Title":
            return "heading", f"# {' '.join(text.split())}"
        if numbered:
            return "item", f"{self.number}. {text}"
        in_list = style.startswith("List") or _at(paragraph, "pPr/numPr") is not None
        return ("item", f"- {text}") if in_list else ("paragraph", text)

    def _table(self, table: Any) -> Iterator[Block]:
        """Rows; the text of a cell that spans several rows is in each of them. A table of one column is a frame around its text."""
        self.number = 0
        if len(table.findall(f"{_W}tblGrid/{_W}gridCol")) == 1:
            for cell in _found(table, (_W + "tc",)):
                yield from self.blocks(cell)
            return
        above: dict[int, str] = {}
        rows = [row for row in _found(table, (_W + "tr",)) if _at(row, "trPr/del") is None]
        for index, row in enumerate(rows):
            column = int(_value(row, "trPr/gridBefore") or 0)
            cells: list[str] = []
            inner: list[Block] = []
            for cell in _found(row, (_W + "tc",)):
                blocks = list(self.blocks(cell))
                if _at(cell, "tcPr/vMerge") is None or _value(cell, "tcPr/vMerge") == "restart":
                    above[column] = cell_text(block for block in blocks if block[0] != "row")
                cells.append(above.get(column, ""))
                inner += [block for block in blocks if block[0] == "row"]
                column += int(_value(cell, "tcPr/gridSpan") or 1)
            yield "row", row_line(cells)
            if index == 0:
                yield "row", rule_line(len(cells))
            yield from inner


def _texts(parent: Any) -> Iterator[str]:
    """The text of a paragraph, without that of text boxes in it."""
    for child in _children(parent):
        if child.tag in (_W + "t", _MATH_TEXT):
            yield child.text or ""
        elif child.tag in _MARKS:
            yield _MARKS[child.tag]
        elif child.tag != _BOX:
            yield from _texts(child)


def _found(parent: Any, tags: tuple[str, ...]) -> Iterator[Any]:
    """The elements of these kinds inside, in order, without those inside one another."""
    for child in _children(parent):
        if child.tag in tags:
            yield child
        else:
            yield from _found(child, tags)


def _children(parent: Any) -> Iterator[Any]:
    """What is part of the text: no deletions, no properties, no content controls that only say what to enter, or list the headings."""
    for child in parent:
        if child.tag not in _LEFT_OUT and not (child.tag == _W + "sdt" and _is_no_text(child)):
            yield child


def _is_no_text(control: Any) -> bool:
    return _at(control, "sdtPr/showingPlcHdr") is not None or _value(control, "sdtPr/docPartObj/docPartGallery") == "Table of Contents"


def _at(element: Any, path: str) -> Any:
    return element.find("/".join(_W + part for part in path.split("/")))


def _value(element: Any, path: str) -> str | None:
    found = _at(element, path)
    return None if found is None else found.get(_W + "val")


def _notes(document: Any) -> dict[tuple[str, str], Any]:
    from docx.oxml import parse_xml

    notes: dict[tuple[str, str], Any] = {}
    for relation in document.part.rels.values():
        kind = relation.reltype.rpartition("/")[2]
        if kind in ("footnotes", "endnotes") and not relation.is_external:
            root = parse_xml(relation.target_part.blob)
            notes.update(((f"{_W}{kind[:-1]}Reference", note.get(_W + "id")), note) for note in root.findall(_W + kind[:-1]))
    return notes
