"""Scanned pages to text with Tesseract, an optional extra."""

from __future__ import annotations

import re
from dataclasses import replace
from statistics import median
from typing import Any

from retrieval.parsers import Options, ParseError, clean, layout
from retrieval.parsers.layout import Line, Word

# Tesseract's advice: 300 dots per inch.
_DPI = 300
# A page is scaled down to this many dots, so that a poster does not take all memory.
_MAX_DOTS = 30_000_000
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\u3000-\u303f\uff00-\uffef"
# The levels of Tesseract's table.
_LINE, _WORD = 4, 5
# Tesseract puts spaces between Chinese characters.
_INNER_SPACE = re.compile(rf"(?<=[{_HAN}]) +(?=[{_HAN}])")


def page_lines(page: Any, name: str, options: Options) -> list[Line]:
    """What stands on the picture of a pdfplumber page. Raises ParseError if Tesseract or one of its languages is not installed."""
    try:
        import pytesseract
    except ImportError as error:
        raise ParseError(f'{name}: OCR is on, but its package is not installed: pip install "appliance[ocr]"') from error
    dots = float(page.width) * float(page.height) / 72**2
    picture = page.to_image(resolution=min(_DPI, int((_MAX_DOTS / max(dots, 1e-6)) ** 0.5))).original
    try:
        found = pytesseract.image_to_data(picture, lang=options.ocr_languages, output_type=pytesseract.Output.DICT)
    except pytesseract.TesseractNotFoundError as error:
        raise ParseError(
            f"{name}: OCR is on, but the program tesseract is not installed; install it with its languages "
            "(Debian: apt install tesseract-ocr tesseract-ocr-chi-sim; macOS: brew install tesseract tesseract-lang)"
        ) from error
    except pytesseract.TesseractError as error:
        raise ParseError(
            f"{name}: page {page.page_number}: tesseract failed ({' '.join(str(error.message).split())[:200]}); "
            f"the languages {options.ocr_languages} must be installed, or others named in [ingest] ocr_languages"
        ) from error
    lines = layout.page_lines(_words(found, float(page.width) / picture.width), [])
    return [replace(line, text=_INNER_SPACE.sub("", line.text)) for line in lines]


def _words(found: dict[str, list[Any]], scale: float) -> list[Word]:
    """Tesseract's words with the height of their line; one size for all, because heights of letters are no sizes of type."""
    boxes: dict[tuple[int, ...], tuple[float, float]] = {}
    words: list[tuple[str, float, float, tuple[int, ...]]] = []
    for level, block, paragraph, line, left, top, width, height, text in zip(
        *(found[key] for key in ("level", "block_num", "par_num", "line_num", "left", "top", "width", "height", "text")), strict=True
    ):
        place = (block, paragraph, line)
        if level == _LINE:
            boxes[place] = (top * scale, (top + height) * scale)
        elif level == _WORD and clean(text).strip():
            words.append((clean(text).strip(), left * scale, (left + width) * scale, place))
    size = median(bottom - top for top, bottom in boxes.values()) if boxes else 1.0
    return [Word(text, left, right, boxes[place][0], boxes[place][1], size) for text, left, right, place in words]
