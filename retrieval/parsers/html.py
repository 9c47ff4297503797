"""HTML: the main content as headings (`# `), paragraphs, list items and table rows.

trafilatura finds where the main content begins and ends; everything between is kept, so that no table or heading is lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.parsers import XML_NO_MEMORY, Options, Parsed, ParseError, clean
from retrieval.parsers.blocks import cell_text, join_blocks, row_line, rule_line
from retrieval.parsers.plain import decode, title_of

_HEADING = re.compile(r"h[1-6]")
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DROPPED = _names("script style noscript template svg canvas iframe object embed button select textarea datalist nav aside footer")
_BLOCKS = _names(
    "p div section article main header body ul ol dl dt dd li table blockquote pre figure figcaption address details summary hr "
    "h1 h2 h3 h4 h5 h6 center fieldset legend form caption tr td th"
)
# Below this share of the page's text, trafilatura is taken to have missed the content.
_LITTLE = 0.3
# Characters: a cell of several paragraphs with more than this is a place on the page, not a fact of a table.
_LONG_CELL = 600

Block = tuple[str, str]


def parse(path: Path, name: str, options: Options) -> Iterator[Parsed]:
    import lxml.html  # type: ignore[import-untyped]

    source = _decode(path.read_bytes(), name)
    if not source.strip():
        yield Parsed(title=title_of("", name), text="", uri=name)
        return
    try:
        # Without `huge_tree` a paragraph of more than 10 million characters is dropped without a word.
        parser = lxml.html.HTMLParser(huge_tree=True)
        tree = lxml.html.document_fromstring(re.sub(r"^\s*<\?xml[^>]*\?>", "", source), parser=parser)
    except lxml.etree.ParserError as error:
        raise ParseError(f"{name}: no HTML inside ({error}); save the page again") from error
    # What cannot be held is left out of the tree without an exception.
    for fatal in parser.error_log.filter_from_fatals():
        if fatal.type == XML_NO_MEMORY:
            raise MemoryError
        raise ParseError(f"{name}: line {fatal.line}: the page cannot be read to its end ({fatal.message}); save it again from a browser")
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

    # It drops whole forms, and some programs put the whole page into one.
    source = re.sub(r"<(/?)form\b", r"<\1div", source, flags=re.IGNORECASE)
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
    import lxml.etree  # type: ignore[import-untyped]

    blocks: list[Block] = []
    inline: list[str] = []

    def flush(kind: str = "paragraph", prefix: str = "") -> None:
        lines = [" ".join(line.split()) for line in "".join(inline).split("\n")]
        text = "\n".join(line for line in lines if line)
        inline.clear()
        if text:
            blocks.append((kind, prefix + (text.replace("\n", " ") if kind == "heading" else text)))

    # Not by recursion: pages that forget to close their tags are nested thousands deep.
    kinds: list[Block] = [("paragraph", "")]
    walker = lxml.etree.iterwalk(root, events=("start", "end", "comment", "pi"))
    for event, element in walker:
        tag = element.tag if isinstance(element.tag, str) else ""
        if event == "start":
            if tag in _BLOCKS:
                flush(*kinds[-1])
            kinds.append(("item", _marker(element)) if tag == "li" else kinds[-1])
            if (own := _own(element, tag)) is None:
                inline.append(_spaces(element.text))
                continue
            walker.skip_subtree()
            blocks.extend(own)
        else:
            if event == "end":
                if tag in _BLOCKS:
                    flush(*kinds[-1])
                kinds.pop()
            if tag == "br":
                inline.append("\n")
            if element is not root:
                inline.append(_spaces(element.tail))
    flush()
    return blocks


def _own(element: Any, tag: str) -> list[Block] | None:
    """The blocks of an element that is read as a whole, None if what is inside it is read one by one."""
    if tag in _DROPPED:
        return []
    if tag == "tr":
        return _row(element)
    if tag == "pre":
        content = element.text_content().strip("\n")
        return [("paragraph", content)] if content.strip() else []
    if _HEADING.fullmatch(tag):
        title = " ".join(element.text_content().split())
        return [("heading", "#" * int(tag[1]) + " " + title)] if title else []
    return None


def _marker(item: Any) -> str:
    parent = item.getparent()
    if parent is None or parent.tag != "ol":
        return "- "
    start = parent.get("start", "1")
    return f"{(int(start) if start.isdecimal() else 1) + sum(1 for _ in item.itersiblings('li', preceding=True))}. "


def _spaces(text: str | None) -> str:
    # Newlines in the source are white space; only <br> breaks a line.
    return re.sub(r"\s+", " ", text) if text else ""


def _row(row: Any) -> list[Block] | None:
    """A row of a table as one line, or as the blocks of its cells where it only says what stands where on the page; None: one by one."""
    if row.find(".//table") is not None:
        return None
    elements = [cell for cell in row if cell.tag in ("td", "th")]
    cells = [_render(cell) for cell in elements]
    is_place = len(cells) == 1 and elements[0].get("colspan", "1") == "1"
    if is_place or any(len(blocks) > 1 and sum(len(text) for _, text in blocks) > _LONG_CELL for blocks in cells):
        return [block for blocks in cells for block in blocks]
    if not any(cells):
        return []
    line = row_line([cell_text(blocks) for blocks in cells])
    table = next(row.iterancestors("table"), None)
    is_first = table is None or next(table.iter("tr")) is row
    return [("row", line), ("row", rule_line(len(cells)))] if is_first else [("row", line)]
