"""HTML: the main content as headings (`# `), paragraphs, list items and table rows.

trafilatura finds where the main content begins and ends; everything between is kept, so that no table or heading is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.parsers import Parsed, ParseError, clean
from retrieval.parsers.blocks import join_blocks, row_line, rule_line
from retrieval.parsers.plain import decode, title_of

_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DROPPED = _names("script style noscript template svg canvas iframe object embed form button select textarea nav aside footer")
_BLOCKS = _names(
    "p div section article main header body ul ol dl dt dd li table blockquote pre figure figcaption address details summary hr "
    "h1 h2 h3 h4 h5 h6 center fieldset caption"
)
# Below this share of the page's text, trafilatura is taken to have missed the content.
_LITTLE = 0.3

Block = tuple[str, str]


def parse(path: Path, name: str) -> Iterator[Parsed]:
    import lxml.html  # type: ignore[import-untyped]

    source = _decode(path.read_bytes(), name)
    if not source.strip():
        yield Parsed(title=title_of("", name), text="", uri=name)
        return
    try:
        tree = lxml.html.document_fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", source))
    except lxml.etree.ParserError as error:
        raise ParseError(f"{name}: no HTML inside ({error}); save the page again") from error
    mains = tree.xpath("//main | //*[@role='main']") or tree.xpath("//article")
    body = tree.find("body")
    blocks = _render(mains[0]) if len(mains) == 1 else _main_blocks(_render(tree if body is None else body), source)
    text = clean(join_blocks(blocks))
    headline = " ".join((tree.findtext(".//title") or "").split())
    if not headline and (first := tree.find(".//h1")) is not None:
        headline = " ".join(first.text_content().split())
    yield Parsed(title=clean(headline) or title_of(text, name), text=text, uri=name)


def _decode(data: bytes, name: str) -> str:
    found = _CHARSET.search(data[:4096])
    if found and not data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        declared = found.group(1).decode("ascii").lower()
        try:
            # Pages that declare gb2312 or gbk use characters of the larger set.
            return data.decode("gb18030" if declared in ("gb2312", "gbk") else declared)
        except (LookupError, UnicodeDecodeError):
            return decode(data, name)
    return decode(data, name)


def _main_blocks(blocks: list[Block], source: str) -> list[Block]:
    import trafilatura

    extracted = trafilatura.extract(source, output_format="txt", favor_recall=True, include_tables=True, include_comments=False) or ""
    main = _squeeze(extracted)
    if len(main) < _LITTLE * sum(len(_squeeze(text)) for _, text in blocks):
        return blocks
    inside = [index for index, (_, text) in enumerate(blocks) if (squeezed := _squeeze(text)) and squeezed in main]
    if not inside:
        return blocks
    first = inside[0]
    while first > 0 and blocks[first - 1][0] == "heading":
        first -= 1
    last = inside[-1] + 1
    while last < len(blocks) and blocks[last][0] == "row":
        last += 1
    return blocks[first:last]


def _squeeze(text: str) -> str:
    return re.sub(r"[\s|#*\-]+|^\d+\.", "", text)


def _render(root: Any) -> list[Block]:
    blocks: list[Block] = []
    inline: list[str] = []

    def flush(kind: str = "paragraph", prefix: str = "") -> None:
        lines = [" ".join(line.split()) for line in "".join(inline).split("\n")]
        text = "\n".join(line for line in lines if line)
        inline.clear()
        if text:
            blocks.append((kind, prefix + (text.replace("\n", " ") if kind == "heading" else text)))

    def walk(element: Any, kind: str, prefix: str) -> None:
        tag = element.tag if isinstance(element.tag, str) else ""
        if not tag or tag in _DROPPED:
            return
        if tag == "br":
            inline.append("\n")
            return
        is_block = tag in _BLOCKS
        if is_block:
            flush(kind, prefix)
        if tag == "table":
            blocks.extend(_table(element))
            return
        if tag == "pre":
            content = element.text_content().strip("\n")
            if content.strip():
                blocks.append(("paragraph", content))
            return
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            inline.append(" ".join(element.text_content().split()))
            flush("heading", "#" * int(tag[1]) + " ")
            return
        if tag == "li":
            kind, prefix = "item", _marker(element)
        inline.append(_spaces(element.text))
        for child in element:
            walk(child, kind, prefix)
            inline.append(_spaces(child.tail))
        if is_block:
            flush(kind, prefix)

    walk(root, "paragraph", "")
    flush()
    return blocks


def _marker(item: Any) -> str:
    parent = item.getparent()
    if parent is None or parent.tag != "ol":
        return "- "
    start = parent.get("start", "1")
    return f"{(int(start) if start.isdecimal() else 1) + sum(1 for _ in item.itersiblings('li', preceding=True))}. "


def _spaces(text: str | None) -> str:
    # Newlines in the source are white space; only <br> breaks a line.
    return re.sub(r"\s+", " ", text) if text else ""


def _table(table: Any) -> Iterator[Block]:
    if (caption := table.find("caption")) is not None and caption.text_content().strip():
        yield "paragraph", " ".join(caption.text_content().split())
    for index, row in enumerate(table.iter("tr")):
        cells = [cell.text_content() for cell in row if cell.tag in ("td", "th")]
        if not any(cell.strip() for cell in cells):
            continue
        yield "row", row_line(cells)
        if index == 0:
            yield "row", rule_line(len(cells))
