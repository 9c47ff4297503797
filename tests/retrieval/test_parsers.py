"""Every format, its encodings, and its broken files."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest
from retrieval_support import write

from retrieval.parsers import Parsed, ParseError, Skipped, is_corpus, parse, supported

SAMPLE = Path(__file__).parent.parent.parent / "appliance" / "sample"


def one(path: Path) -> Parsed:
    (parsed,) = parse(path, path.name)
    assert isinstance(parsed, Parsed)
    return parsed


def test_markdown_is_the_file_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_bytes("# 标题 Title\r\n\r\nBody  text.\r\nNext\rline\n".encode())
    parsed = one(tmp_path / "a.md")
    assert parsed.text == "# 标题 Title\n\nBody  text.\nNext\nline\n"
    assert (parsed.title, parsed.uri, parsed.id, parsed.domain) == ("标题 Title", "a.md", None, None)


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-8"),
        lambda text: codecs.BOM_UTF8 + text.encode("utf-8"),
        lambda text: text.encode("utf-16"),
        lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"),
        lambda text: text.encode("utf-32"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        lambda text: text.encode("gb18030"),
        lambda text: text.encode("gbk"),
    ],
)
def test_encodings(tmp_path: Path, encode: object) -> None:
    text = "差旅费报销制度（2026年版）\n\n普通员工乘坐高铁二等座，单程超过5小时的可以乘坐飞机。\n"
    (tmp_path / "a.txt").write_bytes(encode(text))  # type: ignore[operator]
    assert one(tmp_path / "a.txt").text == text


def test_big5(tmp_path: Path) -> None:
    text = "員工出差報銷規定\n\n普通員工乘坐高鐵二等座，單程超過五小時的可以乘坐飛機。住宿費每晚不得超過新臺幣三千元。\n" * 3
    (tmp_path / "a.txt").write_bytes(text.encode("big5"))
    assert one(tmp_path / "a.txt").text == text


def test_western_encodings(tmp_path: Path) -> None:
    text = "Résumé: the café’s opening hours – naïve façade, señor, über, Ångström and déjà vu.\n" * 3
    (tmp_path / "a.txt").write_bytes(text.encode("cp1252"))
    assert one(tmp_path / "a.txt").text == text


@pytest.mark.parametrize("data", [b"\x00\x01\x02\x03binary", bytes(range(256)) * 10, b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"])
def test_binary_data_is_no_text(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ParseError, match=r"a\.txt"):
        one(tmp_path / "a.txt")


def test_titles(tmp_path: Path) -> None:
    assert one(write(tmp_path / "plain-note.txt", "This is a sentence.\nMore.\n")).title == "plain-note"
    assert one(write(tmp_path / "b.txt", "\nVISITING RULES\n\nText.\n")).title == "VISITING RULES"
    assert one(write(tmp_path / "c.md", "intro line\n\n# Real title\n")).title == "Real title"
    assert one(write(tmp_path / "empty.md", "")).title == "empty"


def test_csv_rows_are_quotable_lines(tmp_path: Path) -> None:
    parsed = one(write(tmp_path / "fees.csv", '\ufeffcode,name,note\nA1,"Smith, J","two\nlines"\n\nA2,,说明；含税\n'))
    assert parsed.text == "code: A1; name: Smith, J; note: two lines\ncode: A2; note: 说明；含税\n"
    assert parsed.title == "fees"


def test_csv_dialects_and_headers(tmp_path: Path) -> None:
    assert one(write(tmp_path / "a.csv", "a;b\n1;2\n")).text == "a: 1; b: 2\n"
    assert one(write(tmp_path / "a.tsv", "a\tb\n1\t2, 3\n")).text == "a: 1; b: 2, 3\n"
    assert one(write(tmp_path / "b.csv", "1,2\n3,4\n")).text == "column 1: 1; column 2: 2\ncolumn 1: 3; column 2: 4\n"
    assert one(write(tmp_path / "c.csv", "a,b\n1,2,3\n")).text == "a: 1; b: 2; column 3: 3\n"
    assert one(write(tmp_path / "d.csv", "")).text == ""


def test_csv_with_an_endless_quote(tmp_path: Path) -> None:
    with pytest.raises(ParseError, match="line"):
        one(write(tmp_path / "a.csv", 'a,b\n"' + "x" * 200_000 + "\n"))


PAGE = """<html><head><title>医院须知 Guide</title><meta charset="utf-8"><script>var hidden = 1;</script></head><body>
<nav><a href="/">Home</a><a href="/x">Navigation</a></nav>
<main><h1>Guide</h1><p>First <b>bold</b> paragraph.<br>After a break.</p>
<h2>Rules</h2><ol start="3"><li>Rule three</li><li>Rule four<ul><li>inner</li></ul></li></ol>
<table><caption>Fees</caption><tr><th>Item</th><th>价格</th></tr><tr><td>Visit</td><td>20 元</td></tr></table>
<pre>code  here</pre></main><footer>Footer text</footer></body></html>"""


def test_html(tmp_path: Path) -> None:
    parsed = one(write(tmp_path / "a.html", PAGE))
    assert parsed.title == "医院须知 Guide"
    assert parsed.text.split("\n\n") == [
        "# Guide",
        "First bold paragraph.\nAfter a break.",
        "## Rules",
        "3. Rule three\n4. Rule four\n- inner",
        "Fees",
        "| Item | 价格 |\n|---|---|\n| Visit | 20 元 |",
        "code  here\n",
    ]


def test_html_without_main_keeps_headings_and_tables_of_the_content(tmp_path: Path) -> None:
    body = "".join(f"<p>Paragraph {n} of the article talks at some length about the visiting rules of the ward.</p>" for n in range(8))
    table = "<table><tr><td>Ward 1</td><td>14:00</td></tr><tr><td>Ward 2</td><td>15:00</td></tr></table>"
    menu = "<div class='menu'><ul><li><a href='/a'>Home</a></li><li><a href='/b'>Shop</a></li></ul></div>"
    page = f"<html><head><title>T</title></head><body>{menu}<h1>Visiting rules</h1>{body}<h2>Times</h2>{table}</body></html>"
    text = one(write(tmp_path / "a.html", page)).text
    assert "# Visiting rules" in text and "## Times" in text and "| Ward 2 | 15:00 |" in text and "Paragraph 7" in text


def test_a_chinese_page_in_gb2312_keeps_its_content_only(tmp_path: Path) -> None:
    menu = "".join(f"<li><a href='/{n}'>栏目{n}</a></li>" for n in range(12))
    news = "".join(f"<p>第{n}段：医院自二〇二六年三月起调整门诊时间，周末开放普通门诊，请患者提前一天预约挂号。</p>" for n in range(6))
    table = "<table><tr><th>科室</th><th>时间</th></tr><tr><td>内科</td><td>8:00—12:00</td></tr></table>"
    page = (
        '<html><head><meta http-equiv="Content-Type" content="text/html; charset=gb2312"><title>关于调整门诊时间的通知</title></head><body>'
        f"<div id='nav'><ul>{menu}</ul></div><div class='article'><h1>关于调整门诊时间的通知</h1>{news}{table}</div>"
        "<div class='footer'>版权所有 镕城医院 备案号12345</div></body></html>"
    )
    # 镕 is not in GB 2312 but in its successors, which such pages use all the same.
    (tmp_path / "notice.html").write_bytes(page.encode("gb18030"))
    parsed = one(tmp_path / "notice.html")
    assert parsed.title == "关于调整门诊时间的通知"
    assert parsed.text.startswith("# 关于调整门诊时间的通知\n\n第0段") and "| 内科 | 8:00—12:00 |" in parsed.text
    assert "栏目3" not in parsed.text and "备案号" not in parsed.text


def test_html_nothing_is_lost_in_silence(tmp_path: Path) -> None:
    # Longer than the 10 million characters that libxml2 takes by default.
    assert len(one(write(tmp_path / "long.html", "<p>" + "词 " * (6 << 20))).text) == (12 << 20)
    assert one(write(tmp_path / "deep.html", "<font>" * 1500 + "x<!-- c -->y<?pi?>z")).text == "xyz\n"
    with pytest.raises(ParseError, match=r"deeper\.html: line 1: the page cannot be read to its end"):
        one(write(tmp_path / "deeper.html", "<div>" * 5000 + "text"))


def test_html_encodings_and_scraps(tmp_path: Path) -> None:
    (tmp_path / "gb.html").write_bytes("<meta charset=gb2312><title>收费标准</title><p>床位费每日50元。</p>".encode("gb18030"))
    assert one(tmp_path / "gb.html").title == "收费标准"
    (tmp_path / "bare.html").write_bytes("<p>没有声明编码的网页，仍然可以读取。</p>".encode())
    assert "没有声明" in one(tmp_path / "bare.html").text
    assert one(write(tmp_path / "empty.html", "")).text == ""
    assert one(write(tmp_path / "short.html", "Just words")).text == "Just words\n"


def test_docx(tmp_path: Path) -> None:
    import docx

    document = docx.Document()
    document.add_heading("Policy 政策", 0)
    document.add_heading("Scope", 1)
    document.add_paragraph("Applies to all.")
    document.add_paragraph("one", style="List Bullet")
    document.add_paragraph("two", style="List Bullet")
    document.add_paragraph("first", style="List Number")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip([cell for row in table.rows for cell in row.cells], ["Item", "Fee", "床位", "50|60"], strict=True):
        cell.text = text
    document.save(str(tmp_path / "a.docx"))
    parsed = one(tmp_path / "a.docx")
    blocks = ["# Policy 政策", "## Scope", "Applies to all.", "- one\n- two\n1. first", "| Item | Fee |\n|---|---|\n| 床位 | 50¦60 |\n"]
    assert parsed.text.split("\n\n") == blocks
    assert parsed.title == "Policy 政策"


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx", ".pdf"])
@pytest.mark.parametrize("data", [b"", b"nonsense", b"PK\x03\x04broken", b"%PDF-1.7\nbroken"])
def test_broken_binary_formats(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with pytest.raises(ParseError, match=rf"a\{suffix}: .*(;|:) .+"):
        one(path)


def test_jsonl_fields(tmp_path: Path) -> None:
    rows = [
        '{"_id": 7, "title": " A\\n title ", "text": "a\\u0000b\\ud800", "lang": "zh-CN", "extra": [1]}',
        '{"id": "8", "text": "", "source": "s", "domain": "legal"}',
    ]
    first, second = parse(write(tmp_path / "c.jsonl", "\n".join(rows)), "c.jsonl")
    assert isinstance(first, Parsed) and isinstance(second, Parsed)
    assert (first.id, first.title, first.text, first.uri) == ("7", "A title", "a\ufffdb\ufffd", "c.jsonl#7")
    assert (first.lang, first.meta) == ("zh", {"extra": [1]})
    assert (second.id, second.uri, second.domain, second.text) == ("8", "s", "legal", "")


@pytest.mark.parametrize(("question", "answer"), [("question", "answer"), ("问题", "答案"), ("Question", "回答")])
def test_jsonl_pairs_are_documents(tmp_path: Path, question: str, answer: str) -> None:
    rows = [
        {"id": 1, question: "What is the fee?", answer: "It is 20 euros.", "lang": "en", "domain": "finance", "doc_ids": ["a"]},
        {question: "床位费是多少？", answer: "每床每日50元。"},
        {question: "床位费是多少？", answer: "每床每日50元。"},
        {question: "?", answer: " "},
        {question: "没有答案"},
    ]
    path = write(tmp_path / "qa.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    first, second, again, empty, lacking = parse(path, "qa.jsonl")
    assert isinstance(first, Parsed) and isinstance(second, Parsed)
    assert (first.id, first.title, first.text) == ("1", "What is the fee?", "What is the fee?\n\nIt is 20 euros.\n")
    assert (first.domain, first.lang, first.meta) == ("finance", "en", {"doc_ids": ["a"]})
    assert (second.title, second.text) == ("床位费是多少？", "床位费是多少？\n\n每床每日50元。\n")
    assert second.id is not None and second.id.startswith("qa-") and second.uri == f"qa.jsonl#{second.id}"
    assert "on line 2 already" in str(again) and "empty" in str(empty) and "a question and an answer" in str(lacking)
    # The id depends on nothing but the pair.
    (alone,) = parse(write(tmp_path / "other.jsonl", json.dumps(rows[1])), "other.jsonl")
    assert isinstance(alone, Parsed) and alone.id == second.id


def test_a_row_with_a_text_is_no_pair(tmp_path: Path) -> None:
    row = {"id": "1", "text": "The text.", "question": "q?", "answer": "a"}
    assert one(write(tmp_path / "c.jsonl", json.dumps(row))).text == "The text."


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_tables_of_pairs_are_documents(tmp_path: Path, suffix: str) -> None:
    mark = "," if suffix == ".csv" else "\t"
    lines = [
        ("id", "问题", "答案"),
        ("7", "门诊诊查费是多少？", '"每次20元。\n急诊另计。"'),
        ("", "What now?", "Wait."),
        ("9", "无答案", ""),
    ]
    path = write(tmp_path / f"qa{suffix}", "".join(mark.join(line) + "\n" for line in lines))
    assert is_corpus(path)
    first, second, third = parse(path, path.name)
    assert isinstance(first, Parsed) and isinstance(second, Parsed)
    assert (first.id, first.text) == ("7", "门诊诊查费是多少？\n\n每次20元。\n急诊另计。\n")
    assert second.id is not None and second.id.startswith("qa-")
    assert isinstance(third, ParseError) and "line 5" in str(third)
    assert not is_corpus(write(tmp_path / "fees.csv", "item,fee\nbed,50\n"))
    assert not is_corpus(write(tmp_path / "empty.csv", ""))


def test_a_file_that_is_no_corpus(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", "nonsense\n" * 1000)
    with pytest.raises(ParseError, match="none of the first"):
        list(parse(path, "c.jsonl"))


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(ParseError, match=r"\.xyz"):
        one(write(tmp_path / "a.xyz", "x"))
    assert not supported(tmp_path / "a.xyz") and supported(tmp_path / "A.MD")


@pytest.mark.parametrize("path", sorted(path for path in SAMPLE.rglob("documents/**/*") if path.is_file()), ids=lambda path: path.name)
def test_sample_documents(path: Path) -> None:
    parsed = one(path)
    assert parsed.title and len(parsed.text) > 300 and not parsed.warnings
    if path.suffix in (".md", ".txt"):
        assert parsed.text == path.read_text("utf-8")


def test_pairs_held_out_for_evaluation_are_not_indexed(tmp_path: Path) -> None:
    rows = [
        {"id": str(number), "question": f"第{number}问？", "answer": "答", "split": split}
        for number, split in enumerate(("train", "dev", "test"))
    ]
    file = tmp_path / "qa.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    found = list(parse(file, "qa.jsonl"))
    assert [item.id for item in found if isinstance(item, Parsed)] == ["0"]
    assert [item for item in found if isinstance(item, Skipped)] == [found[-1]] and "2 pairs" in found[-1].reason
