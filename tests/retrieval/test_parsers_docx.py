"""DOCX: whatever holds text is read, in its place and once; what was deleted is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrieval.parsers import Parsed, parse

NAMES = (
    'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" '
    'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" '
    'xmlns:wps="http://schemas.microsoft.com/office/word/2010/wordprocessingShape" '
    'xmlns:v="urn:schemas-microsoft-com:vml" '
    'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math"'
)


def p(inner: str) -> str:
    return f"<w:p>{inner}</w:p>"


def r(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


def table(*rows: list[str], grid: int = 2) -> str:
    cells = "".join(f"<w:tr>{''.join(f'<w:tc>{cell}</w:tc>' for cell in row)}</w:tr>" for row in rows)
    return f"<w:tbl><w:tblPr/><w:tblGrid>{'<w:gridCol/>' * grid}</w:tblGrid>{cells}</w:tbl>"


def sdt(content: str, properties: str = "") -> str:
    return f"<w:sdt><w:sdtPr>{properties}</w:sdtPr><w:sdtContent>{content}</w:sdtContent></w:sdt>"


def read(folder: Path, *blocks: str, notes: dict[str, str] | None = None) -> str:
    """The text of a document with these elements as its body, and parts of notes by kind."""
    import docx
    from docx.opc.constants import RELATIONSHIP_TYPE
    from docx.opc.packuri import PackURI
    from docx.opc.part import Part
    from docx.oxml import parse_xml

    document: Any = docx.Document()
    for block in blocks:
        document.element.body.insert(len(document.element.body) - 1, parse_xml(block.replace(">", f" {NAMES}>", 1)))
    for kind, inner in (notes or {}).items():
        content_type = f"application/vnd.openxmlformats-officedocument.wordprocessingml.{kind}+xml"
        blob = f"<w:{kind} {NAMES}>{inner}</w:{kind}>".encode()
        part = Part(PackURI(f"/word/{kind}.xml"), content_type, blob, document.part.package)
        document.part.relate_to(part, getattr(RELATIONSHIP_TYPE, kind.upper()))
    path = folder / "a.docx"
    document.save(str(path))
    (parsed,) = parse(path, path.name)
    assert isinstance(parsed, Parsed)
    return parsed.text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (p(r("违约金为") + f"<w:ins>{r('百分之五')}</w:ins><w:del><w:r><w:delText>百分之三</w:delText></w:r></w:del>"), "违约金为百分之五"),
        (p(f"<w:moveFrom>{r('old place')}</w:moveFrom><w:moveTo>{r('new place')}</w:moveTo>"), "new place"),
        (p(sdt(r("甲方：某医院"))), "甲方：某医院"),
        (sdt(p(r("A whole paragraph")) + sdt(p(r("内层")))), "A whole paragraph\n\n内层"),
        (p(r("Name: ") + sdt(r("Click here to enter text."), "<w:showingPlcHdr/>")), "Name:"),
        (sdt(p(r("1 Scope 3")), '<w:docPartObj><w:docPartGallery w:val="Table of Contents"/></w:docPartObj>'), ""),
        (p(f"<w:hyperlink>{r('link')}</w:hyperlink><w:fldSimple>{r(' 7')}</w:fldSimple><w:r><w:instrText>X</w:instrText></w:r>"), "link 7"),
        (p("<w:pPr><w:tabs><w:tab/></w:tabs></w:pPr><w:r><w:t>a</w:t><w:br/><w:t>b</w:t><w:tab/><w:t>c</w:t></w:r>"), "a\nb\tc"),
        (p(f"<w:r><w:ruby><w:rt>{r('yī')}</w:rt><w:rubyBase>{r('医')}</w:rubyBase></w:ruby></w:r>{r('院')}"), "医院"),
        (p(r("E = ") + "<m:oMath><m:r><m:t>mc²</m:t></m:r></m:oMath>"), "E = mc²"),
    ],
    ids=["insertion", "moved", "control", "block control", "placeholder", "contents", "fields", "tabs", "ruby", "formula"],
)  # fmt: skip
def test_what_holds_text_in_a_paragraph(tmp_path: Path, body: str, text: str) -> None:
    assert read(tmp_path, p(r("Before")), body, p(r("之后"))).split("\n\n", 1)[1].removesuffix("之后\n").rstrip("\n") == text


def test_text_boxes_are_read_once_where_they_stand(tmp_path: Path) -> None:
    box = f"<w:txbxContent>{p(r('框内文字'))}{p(r('second line'))}</w:txbxContent>"
    both = (
        f"<mc:AlternateContent><mc:Choice Requires='wps'><w:drawing><wps:txbx>{box}</wps:txbx></w:drawing></mc:Choice>"
        f"<mc:Fallback><w:pict><v:textbox>{box}</v:textbox></w:pict></mc:Fallback></mc:AlternateContent>"
    )
    old = f"<w:pict><v:textbox><w:txbxContent>{p(r('an old box'))}</w:txbxContent></v:textbox></w:pict>"
    text = read(tmp_path, p(r("Before ") + f"<w:r>{both}</w:r>" + r("and after.")), p(f"<w:r>{old}</w:r>"))
    assert text == "Before and after.\n\n框内文字\n\nsecond line\n\nan old box\n"


def test_notes_follow_the_paragraph_that_refers_to_them(tmp_path: Path) -> None:
    def mark(kind: str, id: int) -> str:
        return f'<w:r><w:{kind}Reference w:id="{id}"/></w:r>'

    feet = "".join(
        f'<w:footnote w:id="{id}">{p(r(text) + mark("footnote", id))}</w:footnote>'
        for id, text in ((1, "见第五条。"), (2, "never referred to"))
    )
    ends = f'<w:endnote w:id="1">{p(r("See annex."))}</w:endnote>'
    body = [p(r("逾期按日支付违约金") + mark("footnote", 1) + r("。")), table([p(r("a") + mark("endnote", 1)), p(r("b"))]), p(r("End"))]
    text = read(tmp_path, *body, notes={"footnotes": feet, "endnotes": ends})
    assert text == "逾期按日支付违约金。\n\n见第五条。\n\n| a See annex. | b |\n|---|---|\n\nEnd\n"


def test_nested_merged_and_deleted_parts_of_tables(tmp_path: Path) -> None:
    inner = table([p(r("药品")), p(r("剂量"))], [p(r("庆大霉素")), p(r("5 mg/kg"))])
    merged = '<w:tcPr><w:vMerge w:val="restart"/></w:tcPr>' + p(r("内科"))
    goes_on = "<w:tcPr><w:vMerge/></w:tcPr>" + p("")
    wide = '<w:tcPr><w:gridSpan w:val="2"/></w:tcPr>' + p(r("both"))
    whole = table([p(r("科室")), p(r("用药"))], [merged, p(r("见下")) + inner], [goes_on, sdt(p(r("x")))], [wide])
    gone = f"<w:tr><w:trPr><w:del/></w:trPr><w:tc>{p(r('deleted row'))}</w:tc></w:tr>"
    added = f"<w:tr><w:trPr><w:ins/></w:trPr><w:tc>{p(r('新'))}</w:tc><w:tc>{p(r('行'))}</w:tc></w:tr>"
    text = read(tmp_path, whole[: -len("</w:tbl>")] + gone + sdt(added) + "</w:tbl>")
    assert text.split("\n") == [
        "| 科室 | 用药 |",
        "|---|---|",
        "| 内科 | 见下 |",
        "| 药品 | 剂量 |",
        "|---|---|",
        "| 庆大霉素 | 5 mg/kg |",
        "| 内科 | x |",
        "| both |",
        "| 新 | 行 |",
        "",
    ]


def test_a_frame_of_one_column_is_no_table(tmp_path: Path) -> None:
    heading = '<w:pPr><w:pStyle w:val="Heading1"/></w:pPr>' + r("通知")
    assert read(tmp_path, table([p(heading) + p(r("One.")) + p(r("Two."))], grid=1)) == "## 通知\n\nOne.\n\nTwo.\n"
