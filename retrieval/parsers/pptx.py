"""PPTX: a slide is a page: its title as a heading, text and bullets, tables as `| a | b |` rows, and the speaker's notes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.parsers import Options, Parsed, clean
from retrieval.parsers.blocks import join_blocks, row_line, rule_line
from retrieval.parsers.office import check
from retrieval.parsers.plain import title_of

_TEMPLATE_TITLE = "powerpoint presentation"

Block = tuple[str, str]


def parse(path: Path, name: str, options: Options) -> Iterator[Parsed]:
    import pptx

    check(path, name, "PPTX")
    presentation = pptx.Presentation(str(path))
    parts: list[str] = []
    pages: list[tuple[int, int, int]] = []
    pictures: list[int] = []
    position = 0
    for number, slide in enumerate(presentation.slides, 1):
        text = clean(join_blocks(_slide(slide)))
        if text:
            parts.append(text + "\n")
            pages.append((position, position + len(text.rstrip()), number))
            position += len(parts[-1])
        elif any(not shape.is_placeholder for shape in slide.shapes):
            pictures.append(number)
        options.alive()
    whole = "".join(parts)
    title = clean(presentation.core_properties.title or "").strip()
    yield Parsed(
        title=title if title and title.lower() != _TEMPLATE_TITLE else title_of(whole, name),
        text=whole,
        uri=name,
        pages=tuple(pages),
        warnings=(f"{name}: no text on slide {', '.join(map(str, pictures))}, only pictures or drawings",) if pictures else (),
    )


def _slide(slide: Any) -> list[Block]:
    heading = slide.shapes.title
    blocks: list[Block] = []
    if heading is not None and (text := " ".join(heading.text_frame.text.split())):
        blocks.append(("heading", f"# {text}"))
    for shape in slide.shapes:
        if heading is None or shape.shape_id != heading.shape_id:
            blocks.extend(_shape(shape))
    if slide.has_notes_slide and (frame := slide.notes_slide.notes_text_frame) is not None and frame.text.strip():
        notes = "\n".join(line for paragraph in frame.paragraphs if (line := " ".join(paragraph.text.split())))
        blocks.append(("paragraph", notes))
    return blocks


def _shape(shape: Any) -> Iterator[Block]:
    if hasattr(shape, "shapes"):
        for inner in shape.shapes:
            yield from _shape(inner)
    elif getattr(shape, "has_table", False):
        yield from _table(shape.table)
    elif getattr(shape, "has_text_frame", False):
        paragraphs = [line for paragraph in shape.text_frame.paragraphs if (line := " ".join(paragraph.text.split()))]
        # Several paragraphs of a content placeholder are its bullets.
        is_list = shape.is_placeholder and len(paragraphs) > 1
        yield from (("item", f"- {line}") if is_list else ("paragraph", line) for line in paragraphs)


def _table(table: Any) -> Iterator[Block]:
    """Rows; the text of a cell that spans several rows is repeated in each, so that a row says all of itself."""
    spans: dict[int, tuple[int, str]] = {}  # column -> the row its cell ends before, and its text
    for number, row in enumerate(table.rows):
        cells: list[str] = []
        for column, cell in enumerate(row.cells):
            if cell.is_merge_origin:
                for place in range(column, column + cell.span_width):
                    spans[place] = (number + cell.span_height, cell.text if place == column else "")
            end, text = spans.get(column, (0, ""))
            cells.append(text if end > number else cell.text)
        yield "row", row_line(cells)
        if number == 0:
            yield "row", rule_line(len(cells))
