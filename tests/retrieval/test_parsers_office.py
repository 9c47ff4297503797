"""PPTX and XLSX: slides as pages, sheets as sections, rows that can stand alone; and Office files that are bombs or locked."""

from __future__ import annotations

import datetime
import zipfile
from pathlib import Path

import pytest

from retrieval.parsers import Parsed, ParseError, parse


def one(path: Path) -> Parsed:
    (parsed,) = parse(path, path.name)
    assert isinstance(parsed, Parsed)
    return parsed


def _slides(path: Path) -> Path:
    import pptx
    from pptx.util import Inches

    deck = pptx.Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[1])
    first.shapes.title.text = "Hand hygiene 手卫生"
    first.placeholders[1].text = "Wash for 20 seconds.\n接触患者前后均须洗手。"
    first.notes_slide.notes_text_frame.text = "Say: the poster is in ward 3.\n备注：演示七步洗手法。"
    deck.slides.add_slide(deck.slide_layouts[6])
    third = deck.slides.add_slide(deck.slide_layouts[5])
    third.shapes.title.text = "Fees"
    table = third.shapes.add_table(3, 3, Inches(1), Inches(2), Inches(6), Inches(2)).table
    for row, texts in enumerate([("类别", "项目", "价格"), ("床位", "三人间", "50|元"), ("", "单人间", "120元")]):
        for column, text in enumerate(texts):
            table.cell(row, column).text = text
    table.cell(1, 0).merge(table.cell(2, 0))
    group = third.shapes.add_group_shape()
    group.shapes.add_textbox(Inches(1), Inches(5), Inches(3), Inches(1)).text_frame.text = "Inside a group"
    deck.slides.add_slide(deck.slide_layouts[6]).shapes.add_connector(1, 0, 0, 100, 100)
    deck.save(str(path))
    return path


def test_pptx(tmp_path: Path) -> None:
    parsed = one(_slides(tmp_path / "deck.pptx"))
    pages = {page: parsed.text[start:end] for start, end, page in parsed.pages}
    assert pages[1].split("\n\n") == [
        "# Hand hygiene 手卫生",
        "- Wash for 20 seconds.\n- 接触患者前后均须洗手。",
        "Say: the poster is in ward 3.\n备注：演示七步洗手法。",
    ]
    rows = "| 类别 | 项目 | 价格 |\n|---|---|---|\n| 床位 | 三人间 | 50¦元 |\n| 床位 | 单人间 | 120元 |"
    assert pages[3].split("\n\n") == ["# Fees", rows, "Inside a group"]
    assert sorted(pages) == [1, 3]
    assert parsed.title == "Hand hygiene 手卫生"
    assert parsed.warnings == ("deck.pptx: no text on slide 4, only pictures or drawings",)


def test_an_empty_pptx(tmp_path: Path) -> None:
    import pptx

    pptx.Presentation().save(str(tmp_path / "a.pptx"))
    parsed = one(tmp_path / "a.pptx")
    assert (parsed.title, parsed.text, parsed.pages) == ("a", "", ())


def test_xlsx_rows_stand_alone(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    fees = book.active
    fees.title = "收费标准 2026"
    fees.append(["门诊收费一览表"])
    fees.append([])
    fees.append(["项目", "价格（元）", "折扣", "起效日", "医保"])
    fees.append(["普通门诊诊查费", 20, 0.05, datetime.date(2026, 3, 1), True])
    fees.append([None, 0.1 + 0.2, 0.125, datetime.datetime(2026, 3, 1, 8, 30), "a\nb"])
    fees["C4"].number_format, fees["C5"].number_format = "0%", "0.0%"
    plain = book.create_sheet("Codes")
    plain.append([1, 2])
    plain.append([3, None, 5])
    book.create_sheet("Empty")
    names = book.create_sheet("List")
    names.append(["Ward A"])
    names.append(["病区B"])
    secret = book.create_sheet("Old")
    secret.append(["x", "y"])
    secret.sheet_state = "hidden"
    book.save(tmp_path / "fees.xlsx")
    parsed = one(tmp_path / "fees.xlsx")
    assert parsed.text.split("\n\n") == [
        "# 收费标准 2026",
        "门诊收费一览表",
        "项目: 普通门诊诊查费; 价格（元）: 20; 折扣: 5%; 起效日: 2026-03-01; 医保: TRUE\n"
        "价格（元）: 0.3; 折扣: 12.5%; 起效日: 2026-03-01 08:30; 医保: a b",
        "# Codes",
        "column 1: 1; column 2: 2\ncolumn 1: 3; column 3: 5",
        "# List",
        "Ward A\n病区B\n",
    ]
    assert parsed.title == "fees"
    assert parsed.warnings == ("fees.xlsx: the hidden sheet 'Old' was left out; show it to have it read",)


def test_an_empty_xlsx_and_one_that_lies_about_its_size(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    book.save(tmp_path / "empty.xlsx")
    assert one(tmp_path / "empty.xlsx").text == ""
    book.active["A1"], book.active["B1"], book.active["A2"], book.active["B2"] = "a", "b", 1, 2
    book.save(tmp_path / "b.xlsx")
    with zipfile.ZipFile(tmp_path / "b.xlsx") as old, zipfile.ZipFile(tmp_path / "lies.xlsx", "w") as new:
        for item in old.infolist():
            new.writestr(item, old.read(item).replace(b'<dimension ref="A1:B2"', b'<dimension ref="A1:XFD1048576"'))
    assert one(tmp_path / "lies.xlsx").text == "# Sheet\n\na: 1; b: 2\n"


def test_formulas_that_were_never_calculated_are_named(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (["项目", "金额"], ["床位费", "=20+30"], ["护理费", 30], ["合计", "=SUM(B2:B3)"], ["备注", '=""']):
        book.active.append(row)
    book.save(tmp_path / "script.xlsx")
    with zipfile.ZipFile(tmp_path / "script.xlsx") as old, zipfile.ZipFile(tmp_path / "fees.xlsx", "w") as new:
        for item in old.infolist():
            # As a spreadsheet program stores them: a value for B4, and an empty string, which is one, for B5.
            sheet = old.read(item).replace(b"<f>SUM(B2:B3)</f><v>", b"<f>SUM(B2:B3)</f><v>80")
            new.writestr(item, sheet.replace(b'<c r="B5"><f>', b'<c r="B5" t="str"><f>'))
    parsed = one(tmp_path / "fees.xlsx")
    assert parsed.text == "# Sheet\n\n项目: 床位费\n项目: 护理费; 金额: 30\n项目: 合计; 金额: 80\n项目: 备注\n"
    (warning,) = parsed.warnings
    assert warning.startswith("fees.xlsx: 1 formulas (the first in B2) have no stored value")
    assert "3 formulas (the first in B2)" in one(tmp_path / "script.xlsx").warnings[0]


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx"])
def test_a_zip_bomb_is_not_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bomb{suffix}"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"\0" * (64 << 20))
    with pytest.raises(ParseError, match=r"times its size"):
        one(path)


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx"])
def test_locked_and_old_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"old{suffix}"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600)
    with pytest.raises(ParseError, match="password"):
        one(path)


def test_a_zip_that_is_no_office_file(tmp_path: Path) -> None:
    for suffix in (".docx", ".pptx", ".xlsx"):
        with zipfile.ZipFile(tmp_path / f"a{suffix}", "w") as archive:
            archive.writestr("readme.txt", "hello")
        with pytest.raises(ParseError, match=rf"a\{suffix}: cannot be read"):
            one(tmp_path / f"a{suffix}")
