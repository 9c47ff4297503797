"""What a line of text is: a heading, a list item, a table row, or running text. Shared by sentences, chunks and parsers."""

from __future__ import annotations

import re
import unicodedata

_ORDINAL = "[0-9０-９〇零一二三四五六七八九十百千两]+"
_MARKDOWN = re.compile(r" {0,3}(#{1,6})[ \t]+(.*)$")
_ZH_DIVISION = re.compile(rf"[ \t\u3000]*第{_ORDINAL}([编篇章节])(?![0-9])")
_ZH_CLOSING = re.compile(r"[ \t\u3000]*附[ \t\u3000]*则[ \t\u3000]*$")
_ZH_CLAUSE = re.compile(rf"[ \t\u3000]*第{_ORDINAL}条(?:之[一二三四五六七八九十]+)?(?=[\s\u3000：:，]|$|[^的规第和或、至款项])")
_EN_DIVISION = re.compile(r"[ \t]*(?:PART|Part|CHAPTER|Chapter|TITLE|Title)[ \t]+(?:[IVXLC]+|\d+)\b(?![ \t]*[a-z,;])")
_EN_CLAUSE = re.compile(
    r"[ \t]*(?:(?:ARTICLE|Article|SECTION|Section|CLAUSE|Clause)[ \t]+(?:[IVXLC]+|\d+(?:\.\d+)*)\b|§+[ \t]*\d+)(?![ \t]*(?:[a-z,;)]|\())"
)
_NUMBERED = re.compile(r"[ \t]*(\d+(?:\.\d+)*)[.、．)]?[ \t]+\S")
_ZH_NUMBERED = re.compile(r"[ \t\u3000]*(?:[一二三四五六七八九十]{1,3}、|[（(][一二三四五六七八九十]{1,3}[)）])")
_ITEM = re.compile(
    r"[ \t\u3000]*(?:[-*+•·▪◦‣●○■□–—][ \t]+|\d+(?:\.\d+)*[.)、．](?!\d)|\d+(?:\.\d+)+[ \t]|[a-zA-Z][.)][ \t]"
    r"|[（(][0-9a-zA-Z一二三四五六七八九十]{1,4}[)）]|[一二三四五六七八九十]{1,3}、)"
)
_BULLET = re.compile(r"[ \t\u3000]*(?:[-*+•·▪◦‣●○■□][ \t]+|#{1,6}[ \t]+|>[ \t]?)+")
# Of a stripped line. White space is matched in one place only: two together try every way to share a long run of it.
_TABLE_RULE = re.compile(r"\|?[ \t]*:?-{2,}:?(?:[ \t]*\|[ \t]*:?-{2,}:?)*(?:[ \t]*\|)?$|(?:[-=_*][ \t]*){3,}$")
_RECORD = re.compile(r"[^:;：；\n]{1,80}: [^\n]*?; [^:;\n]{1,80}: ")
_KEY = re.compile(r"[ \t\u3000]*\*{0,2}[^\s:：。.!?！？][^:：。!?！？\n]{0,40}(?::\*{0,2}[ \t]|：)")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_TERMINAL = tuple("。！？；…!?;.：:，,、")

_DIVISION_LEVEL = {"编": 10, "篇": 10, "章": 11, "节": 12}
_CLAUSE_LEVEL = 13
_NUMBER_LEVEL = 14


def width(line: str) -> int:
    """Display columns: wide (East Asian) characters count two."""
    return len(line) if line.isascii() else sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in line)


def heading(line: str, alone: bool = False) -> tuple[int, str] | None:
    """Level and title if `line` is a heading, else None.

    Levels are only compared: Markdown 1-6; divisions (编, 章, 附则, 节, Part) 10-12; clauses (第…条, Article, Section, §) 13, deeper where
    their number has parts (Section 2.1); numbered lines 14 and deeper, and only where `alone` says that blank lines (or the edges)
    surround the line.
    A clause whose text follows on the same line gives its label alone as the title.
    """
    if found := _MARKDOWN.match(line):
        title = found.group(2).strip().rstrip("#").rstrip()
        return (len(found.group(1)), title) if title else None
    short = line.strip()
    if not short:
        return None
    is_title = len(short) <= 80 and width(short) <= 80 and not short.endswith(_TERMINAL)
    if found := _ZH_DIVISION.match(line):
        return (_DIVISION_LEVEL[found.group(1)], short) if is_title else None
    if _ZH_CLOSING.match(line):
        return _DIVISION_LEVEL["章"], short
    if found := _ZH_CLAUSE.match(line):
        return _CLAUSE_LEVEL, short if is_title else found.group().strip()
    if _EN_DIVISION.match(line):
        return (11, short) if is_title else None
    if found := _EN_CLAUSE.match(line):
        # Section 2.1 is part of Article II.
        return _CLAUSE_LEVEL + found.group().count("."), short if is_title else found.group().strip()
    if is_title and alone:
        if found := _NUMBERED.match(line):
            return _NUMBER_LEVEL + 1 + found.group(1).count("."), short
        if _ZH_NUMBERED.match(line):
            return _NUMBER_LEVEL + (short[0] in "（("), short
    return None


def is_fence(line: str) -> bool:
    """Whether the line opens or closes a Markdown code block."""
    return _FENCE.match(line) is not None


def is_row(line: str) -> bool:
    """Whether the line is a table row (`| a | b |`) or a record (`key: value; key: value`): one fact, never split."""
    return line.lstrip().startswith("|") or _RECORD.match(line) is not None


def is_rule(line: str) -> bool:
    """Whether the line only draws: `|---|---|`, `----`, `====`."""
    return _TABLE_RULE.match(line.strip()) is not None


def is_item(line: str) -> bool:
    """Whether the line begins a list item or numbered clause."""
    return _ITEM.match(line) is not None


def starts_block(line: str) -> bool:
    """Whether the line cannot be the continuation of the line above it."""
    return not line.strip() or is_row(line) or is_item(line) or is_rule(line) or heading(line) is not None or _KEY.match(line) is not None


def decoration(line: str) -> int:
    """Length of the list bullet, quote mark or heading marks that begin the line."""
    found = _BULLET.match(line)
    return found.end() if found else 0
