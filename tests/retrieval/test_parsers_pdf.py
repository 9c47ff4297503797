"""PDF: pages, wrapped lines, columns, tables, headings, scans; in English and Chinese."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retrieval.parsers import Options, Parsed, ParseError, parse

ENGLISH = "The supplier delivers the goods within fourteen days of the order. If the delivery is late, the buyer may end this contract. "
CHINESE = "乙方应当在订单确认之日起十四日内交付货物。逾期交付的，甲方有权解除本合同，但应当提前三十日书面通知乙方。"


def one(path: Path, options: Options | None = None) -> Parsed:
    (parsed,) = parse(path, path.name, options)
    assert isinstance(parsed, Parsed)
    return parsed


def _pdf(path: Path, pages: list[list[str]], password: str | None = None) -> Path:
    from reportlab.lib import pdfencrypt
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), encrypt=pdfencrypt.StandardEncryption(password) if password else None)
    canvas.setTitle("untitled")
    for lines in pages:
        for number, line in enumerate(lines):
            canvas.drawString(72, 760 - 16 * number, line)
        canvas.showPage()
    canvas.save()
    return path


def _report(path: Path, story: list[Any], **options: Any) -> Path:
    from reportlab.platypus import SimpleDocTemplate

    SimpleDocTemplate(str(path), **options).build(story)
    return path


def _styles() -> Any:
    """Title, body and the same in Chinese."""
    from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont

    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    styles = getSampleStyleSheet()
    styles.add(ParagraphStyle("zh", parent=styles["BodyText"], fontName="STSong-Light", wordWrap="CJK"))
    styles.add(ParagraphStyle("zhHead", parent=styles["Heading1"], fontName="STSong-Light"))
    return styles


def _table(rows: list[list[Any]], font: str = "Helvetica", grid: bool = True, **options: Any) -> Any:
    from reportlab.lib import colors
    from reportlab.platypus import Table

    style = [("FONTNAME", (0, 0), (-1, -1), font), *([("GRID", (0, 0), (-1, -1), 0.5, colors.black)] if grid else [])]
    return Table(rows, style=[*style, *options.pop("spans", [])], **options)


def test_pages_and_wrapped_lines(tmp_path: Path) -> None:
    first = ["1. Consent", "The prescriber explains the benefits and the risks of transfusion and", "records consent in the notes."]
    parsed = one(_pdf(tmp_path / "a.pdf", [first, [], ["Second page has text."]]))
    assert parsed.title == "1. Consent"
    assert "risks of transfusion and records consent in the notes." in parsed.text
    assert [parsed.text[start:end].split("\n")[-1] for start, end, _ in parsed.pages][1] == "Second page has text."
    assert [page for _, _, page in parsed.pages] == [1, 3]
    assert parsed.warnings == ()


def test_headings_paragraphs_and_tables_in_english(tmp_path: Path) -> None:
    from reportlab.platypus import Paragraph

    styles = _styles()
    long = Paragraph("Ward bed with a long name that wraps to a second line", styles["BodyText"])
    story = [
        Paragraph("Delivery of goods", styles["Heading1"]),
        Paragraph(ENGLISH * 2, styles["BodyText"]),
        Paragraph(ENGLISH, styles["BodyText"]),
        _table(
            [["Item", "Fee (EUR)", "Note"], [long, "50.00", "per day"], ["Single room", "120.50", "incl. meals"]], colWidths=[150, 80, 120]
        ),
        Paragraph(ENGLISH, styles["BodyText"]),
        _table([["Code", "Meaning"], ["A1", "in time"], ["B2", "too late"]], grid=False),
    ]
    parsed = one(_report(tmp_path / "en.pdf", story, title="Supply agreement"))
    assert parsed.title == "Supply agreement"
    assert parsed.text.strip().split("\n\n") == [
        "# Delivery of goods",
        (ENGLISH * 2).strip(),
        ENGLISH.strip(),
        "| Item | Fee (EUR) | Note |\n| Ward bed with a long name that wraps to a second line | 50.00 | per day |\n"
        "| Single room | 120.50 | incl. meals |",
        ENGLISH.strip(),
        "| Code | Meaning |\n| A1 | in time |\n| B2 | too late |",
    ]


def test_clauses_and_tables_in_chinese(tmp_path: Path) -> None:
    from reportlab.platypus import Paragraph

    styles = _styles()
    rows = [["类别", "项目", "价格"], ["床位费", "三人间", "50.00元"], ["", "单人间", "120.50元"]]
    story = [
        Paragraph("第一章 交付", styles["zhHead"]),
        Paragraph("第一条　" + CHINESE * 3, styles["zh"]),
        Paragraph("第二条　" + CHINESE * 2, styles["zh"]),
        _table(rows, "STSong-Light", spans=[("SPAN", (0, 1), (0, 2))]),
        Paragraph("第三条　" + CHINESE, styles["zh"]),
        _table([["项目", "价格", "说明"], ["三人间床位费", "50.00", "每日"]], "STSong-Light", grid=False),
    ]
    text = one(_report(tmp_path / "zh.pdf", story)).text
    assert text.strip().split("\n\n") == [
        "# 第一章 交付",
        "第一条 " + CHINESE * 3,
        "第二条 " + CHINESE * 2,
        "| 类别 | 项目 | 价格 |\n| 床位费 | 三人间 | 50.00元 |\n| 床位费 | 单人间 | 120.50元 |",
        "第三条 " + CHINESE,
        "| 项目 | 价格 | 说明 |\n| 三人间床位费 | 50.00 | 每日 |",
    ]


def test_two_columns_are_read_one_after_the_other(tmp_path: Path) -> None:
    from reportlab.lib.pagesizes import A4
    from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate, Paragraph

    styles = _styles()
    width = (A4[0] - 156) / 2
    document = BaseDocTemplate(str(tmp_path / "two.pdf"), pagesize=A4)
    frames = [Frame(72, 300, width, 450), Frame(84 + width, 300, width, 450)]
    document.addPageTemplates(PageTemplate(frames=frames))
    document.build([Paragraph(f"Part {number}: {ENGLISH * 2}", styles["BodyText"]) for number in range(9)])
    text = one(tmp_path / "two.pdf").text
    assert text.strip().split("\n\n") == [f"Part {number}: {(ENGLISH * 2).strip()}" for number in range(9)]


def test_bold_by_printing_twice_is_read_once(tmp_path: Path) -> None:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "bold.pdf"))
    for shift in (0.0, 0.3):
        canvas.drawString(72 + shift, 700, "Important: hello, will all settle?")
    canvas.save()
    assert one(tmp_path / "bold.pdf").text.strip() == "Important: hello, will all settle?"


def _scan(path: Path, texts: list[str | None], stamp: str = "") -> Path:
    """Pages that are pictures of text; None is a page with a real text layer."""
    from PIL import Image, ImageDraw, ImageFont
    from reportlab.lib.utils import ImageReader
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(path), pagesize=(600, 400))
    for text in texts:
        if text is None:
            canvas.drawString(72, 300, "This page has a text layer, and it is long enough.")
        else:
            picture = Image.new("L", (1800, 1200), 255)
            ImageDraw.Draw(picture).text((100, 100), text, fill=0, font=ImageFont.load_default(60))
            data = io.BytesIO()
            picture.save(data, "PNG")
            canvas.drawImage(ImageReader(io.BytesIO(data.getvalue())), 0, 0, 600, 400)
            canvas.drawString(500, 10, stamp)
        canvas.showPage()
    canvas.save()
    return path


@pytest.mark.parametrize("stamp", ["", "ABC-000123"])
def test_a_scanned_page_is_named(tmp_path: Path, stamp: str) -> None:
    parsed = one(_scan(tmp_path / "mixed.pdf", [None, "a scan", None, "another"], stamp))
    assert [page for _, _, page in parsed.pages] == [1, 3]
    (warning,) = parsed.warnings
    assert warning.startswith("mixed.pdf: pages 2, 4: scanned") and "[ingest] ocr = true" in warning


def test_a_scan_is_an_error_that_names_the_extra(tmp_path: Path) -> None:
    with pytest.raises(ParseError, match=r"scan\.pdf: there is no text on any page \(they are scanned.*appliance\[ocr\]"):
        one(_scan(tmp_path / "scan.pdf", ["one", "two"]))
    with pytest.raises(ParseError, match="no text on any page; install"):
        one(_pdf(tmp_path / "blank.pdf", [[], []]))


def test_a_page_of_outlined_letters_is_named_and_an_empty_one_is_not(tmp_path: Path) -> None:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "a.pdf"), pagesize=(600, 400))
    canvas.drawString(72, 300, "This page has a text layer, and it is long enough.")
    canvas.showPage()
    # A line of o's drawn as curves, as programs write letters that are to look the same everywhere.
    for place in range(40):
        canvas.circle(72 + 10 * place, 300, 4, stroke=1, fill=0)
    canvas.showPage()
    canvas.line(10, 10, 500, 10)
    canvas.circle(300, 20, 5)
    canvas.showPage()
    canvas.save()
    (warning,) = one(tmp_path / "a.pdf").warnings
    assert warning.startswith("a.pdf: page 2: drawn, without letters, and left out; install the OCR extra")


def _unmapped(path: Path, lines: list[tuple[str, int]]) -> Path:
    """Pages of a readable line, and one of so many letters in a font without a map to Unicode, as some programs write them."""
    lost = "<< /Type /Font /Subtype /Type0 /BaseFont /SimSun /Encoding /Identity-H /DescendantFonts [4 0 R] >>"
    system = "<< /Registry (Adobe) /Ordering (Identity) /Supplement 0 >>"
    inner = f"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /SimSun /CIDSystemInfo {system} >>"
    kids = " ".join(f"{5 + 2 * number} 0 R" for number in range(len(lines)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(lines)} /MediaBox [0 0 600 400] >>",
        lost,
        inner,
    ]
    for number, (readable, count) in enumerate(lines):
        codes = "".join(f"{code:04x}" for code in range(1000, 1000 + count))
        content = f"BT /F1 12 Tf 72 300 Td ({readable}) Tj /F2 12 Tf 0 -50 Td <{codes}> Tj ET"
        fonts = "/F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> /F2 3 0 R"
        objects.append(f"<< /Type /Page /Parent 2 0 R /Contents {6 + 2 * number} 0 R /Resources << /Font << {fonts} >> >> >>")
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    data, places = "%PDF-1.7\n", []
    for number, found in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{found}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    path.write_text(data + f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{data.index('xref')}\n%%EOF\n")
    return path


def test_a_page_in_a_font_without_a_map_is_named_and_a_single_sign_is_no_reason(tmp_path: Path) -> None:
    parsed = one(_unmapped(tmp_path / "a.pdf", [("A first line that can be read.", 2), ("Fee list", 40), ("A third line to be read.", 0)]))
    assert "(cid:" not in parsed.text and "Fee list" not in parsed.text
    assert parsed.text.count("\ufffd") == 2 and [page for _, _, page in parsed.pages] == [1, 3]
    (warning,) = parsed.warnings
    assert warning.startswith("a.pdf: page 2: in fonts that do not say which letters they show, and left out; install the OCR extra")
    with pytest.raises(ParseError, match=r"no text on any page \(they are in fonts that do not say"):
        one(_unmapped(tmp_path / "b.pdf", [("", 40)]))


def test_ocr_without_the_program_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytesseract")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ParseError, match=r"tesseract is not installed.*tesseract-ocr-chi-sim"):
        one(_scan(tmp_path / "scan.pdf", ["one"]), Options(ocr=True))


def test_ocr_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytesseract", None)
    with pytest.raises(ParseError, match=r"pip install \"appliance\[ocr\]\""):
        one(_scan(tmp_path / "scan.pdf", ["one"]), Options(ocr=True))


def _boxes(lines: list[list[str]]) -> Iterator[list[object]]:
    """Rows of Tesseract's table: two paragraphs of two full lines each, on a page of 2500 dots, a larger gap between them."""
    for number, words in enumerate(lines):
        top = 200 + 60 * number + 200 * (number // 2)
        width = 300 if number % 2 else 1800
        yield [4, 1, 1, 1, number, 0, 200, top, width, 40, -1, ""]
        for place, word in enumerate(words):
            yield [5, 1, 1, 1, number, place + 1, 200 + place * width // len(words), top, width // len(words) - 10, 40, 90, word]


def test_what_ocr_reads_becomes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program stands in for Tesseract: it checks the picture and the languages, and answers as Tesseract does in Chinese."""
    pytest.importorskip("pytesseract")
    program = tmp_path / "bin" / "tesseract"
    program.parent.mkdir()
    header = ["level", "page_num", "block_num", "par_num", "line_num", "word_num", "left", "top", "width", "height", "conf", "text"]
    table = [header, *_boxes([["床", "位", "费", "50", "元", "，"], ["含", "餐", "。"], ["Fees", "of", "the"], ["ward."]])]
    tsv = "".join("\t".join(map(str, row)) + "\n" for row in table)
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, pathlib\n"
        "if sys.argv[1] == '--version':\n"
        "    sys.exit(print('tesseract 5.3.0'))\n"
        "assert sys.argv[3:5] == ['-l', 'chi_sim'] and pathlib.Path(sys.argv[1]).stat().st_size > 1000, sys.argv\n"
        f"pathlib.Path(sys.argv[2] + '.tsv').write_text({tsv!r}, 'utf-8')\n",
        "utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    parsed = one(_scan(tmp_path / "scan.pdf", ["one", None]), Options(ocr=True, ocr_languages="chi_sim"))
    start, end, page = parsed.pages[0]
    assert page == 1 and parsed.text[start:end].split("\n\n") == ["床位费 50 元，含餐。", "Fees of the ward."]
    assert parsed.warnings == ()


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
def test_tesseract_reads_a_scan(tmp_path: Path) -> None:
    pytest.importorskip("pytesseract")
    parsed = one(_scan(tmp_path / "scan.pdf", ["The ward bed costs 50 euros."]), Options(ocr=True, ocr_languages="eng"))
    assert "ward bed costs 50" in parsed.text


def test_a_password(tmp_path: Path) -> None:
    with pytest.raises(ParseError, match="encrypted"):
        one(_pdf(tmp_path / "locked.pdf", [["secret"]], password="x"))


def test_a_truncated_pdf(tmp_path: Path) -> None:
    path = _pdf(tmp_path / "a.pdf", [["Some text."]])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ParseError, match=r"a\.pdf"):
        one(path)
