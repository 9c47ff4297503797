"""How parsers of structured formats write what they found: Markdown-like blocks, and records of tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def join_blocks(blocks: list[tuple[str, str]]) -> str:
    """Blocks (kind, text) as one text: a blank line between them, none between rows or between items of one list."""
    parts: list[str] = []
    above = ""
    for kind, text in blocks:
        if parts:
            parts.append("\n" if kind == above and kind in ("row", "item") else "\n\n")
        parts.append(text)
        above = kind
    return "".join(parts) + "\n" if parts else ""


def row_line(cells: list[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "¦") for cell in cells) + " |"


def cell_text(blocks: Iterable[tuple[str, str]]) -> str:
    """What is in a cell, (kind, text) each, as one text; the marks of headings mean nothing there."""
    return " ".join(text.lstrip("# ") if kind == "heading" else text for kind, text in blocks)


def rule_line(columns: int) -> str:
    return "|" + "---|" * columns


def header_of(cells: list[str]) -> list[str] | None:
    """Column names if the cells can be a header, None if the row is data: each named cell once, none a number.

    An empty cell becomes "column N".
    """
    if any(_is_number(cell) for cell in cells):
        return None
    named = [cell or f"column {number}" for number, cell in enumerate(cells, 1)]
    return named if len(set(named)) == len(named) else None


def record_line(header: Sequence[str], cells: Sequence[str]) -> str:
    """One row as "header: value; header: value", so that it can be found and quoted without its table."""
    named = [*header, *(f"column {number}" for number in range(len(header) + 1, len(cells) + 1))]
    return "; ".join(f"{name}: {cell}" for name, cell in zip(named, cells, strict=False) if cell)


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "").replace("%", "").lstrip("+-").isdigit()
