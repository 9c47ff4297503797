"""How parsers of structured formats write what they found: Markdown-like blocks."""

from __future__ import annotations


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


def rule_line(columns: int) -> str:
    return "|" + "---|" * columns
