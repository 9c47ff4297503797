"""DOCX: headings as `# ` lines, lists, and tables as `| a | b |` rows, in the order of the document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.parsers import Options, Parsed, clean
from retrieval.parsers.blocks import join_blocks, row_line, rule_line
from retrieval.parsers.office import check
from retrieval.parsers.plain import title_of

_HEADING = re.compile(r"(?:heading|标题)\s*(\d)$", re.IGNORECASE)


def parse(path: Path, name: str, options: Options) -> Iterator[Parsed]:
    import docx

    check(path, name, "DOCX")
    document = docx.Document(str(path))
    blocks: list[tuple[str, str]] = []
    number = 0
    for item in document.iter_inner_content():
        if hasattr(item, "rows"):
            blocks.extend(("row", line) for line in _table(item))
            number = 0
            continue
        text = item.text.strip()
        style = item.style.name if item.style is not None else ""
        if not text:
            continue
        numbered = style.startswith("List Number")
        number = number + 1 if numbered else 0
        if found := _HEADING.match(style):
            blocks.append(("heading", f"{'#' * min(int(found.group(1)) + 1, 6)} {' '.join(text.split())}"))
        elif style == "Title":
            blocks.append(("heading", f"# {' '.join(text.split())}"))
        elif numbered:
            blocks.append(("item", f"{number}. {text}"))
        elif style.startswith("List") or _in_list(item):
            blocks.append(("item", f"- {text}"))
        else:
            blocks.append(("paragraph", text))
    text = clean(join_blocks(blocks))
    title = (document.core_properties.title or "").strip()
    yield Parsed(title=clean(title) or title_of(text, name), text=text, uri=name)


def _table(table: Any) -> Iterator[str]:
    for index, row in enumerate(table.rows):
        # A merged cell is listed once for each column it spans.
        cells = [cell.text for position, cell in enumerate(row.cells) if position == 0 or cell._tc is not row.cells[position - 1]._tc]
        yield row_line(cells)
        if index == 0:
            yield rule_line(len(cells))


def _in_list(paragraph: Any) -> bool:
    properties = paragraph._p.pPr
    return properties is not None and properties.numPr is not None
