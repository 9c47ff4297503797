"""Pages whose text stands in forms and in tables that are no tables: all of it is read, and once."""

from __future__ import annotations

from pathlib import Path

import pytest
from retrieval_support import write

from retrieval.parsers import Parsed, parse

NEWS = "".join(f"<p>第{n}段：医院自二〇二六年三月起调整门诊时间，周末开放普通门诊，请患者提前一天预约挂号。</p>" for n in range(6))


def text_of(folder: Path, page: str) -> str:
    (parsed,) = parse(write(folder / "page.html", page), "page.html")
    assert isinstance(parsed, Parsed)
    return parsed.text


def test_a_page_inside_a_form_is_read_without_its_controls(tmp_path: Path) -> None:
    page = f"""<html><body><form method="post" action="./notice.aspx" id="aspnetForm">
    <input type="hidden" name="__VIEWSTATE" value="/wEPDwUKMTY1" />
    <ul><li><a href="/">网站首页</a></li><li><a href="/b">政务公开</a></li></ul>
    <div class="content"><h1>关于调整门诊时间的通知</h1>{NEWS}<h2>时间</h2>
    <table><tr><th>科室</th><th>时间</th></tr><tr><td>内科</td><td>8:00</td></tr></table></div>
    <select><option>选择站点</option></select><textarea>留言</textarea><button>提交</button></form></body></html>"""
    text = text_of(tmp_path, page)
    assert text.startswith("# 关于调整门诊时间的通知\n\n第0段") and text.endswith(
        "## 时间\n\n| 科室 | 时间 |\n|---|---|\n| 内科 | 8:00 |\n"
    )
    assert not any(control in text for control in ("选择站点", "留言", "提交", "wEPD"))
    short = text_of(tmp_path, "<body><form><p>Ward 3 is closed.</p><button>Send</button></form></body>")
    assert short == "Ward 3 is closed.\n"


@pytest.mark.parametrize(
    "article", [NEWS, "Visitors come between 14:00 and 19:00.<br>Two visitors per patient.<br>" * 10], ids=["zh", "en"]
)
def test_nested_layout_tables_give_every_text_once(tmp_path: Path, article: str) -> None:
    fees = "<table><tr><th>项目</th><th>金额</th></tr><tr><td><p>床位费</p></td><td><p>50元</p></td></tr></table>"
    inner = f"<table><tr><td><h1>收费公告</h1></td></tr><tr><td>{article}</td></tr><tr><td>{fees}</td></tr></table>"
    foot = "<tr><td colspan='2'><table><tr><td>底部</td></tr></table></td></tr>"
    page = f"<main><table><tr><td>左栏</td><td>{inner}</td></tr>{foot}</table></main>"
    text = text_of(tmp_path, page)
    assert [text.count(word) for word in ("左栏", "# 收费公告", "床位费", "底部")] == [1, 1, 1, 1]
    assert "| 项目 | 金额 |\n|---|---|\n| 床位费 | 50元 |\n" in text
    assert text.count("预约挂号") + text.count("\nTwo visitors per patient.") in (6, 10)
    # The article stands on lines of its own, not in one row.
    assert not any(len(line) > 300 for line in text.split("\n"))


def test_long_cells_side_by_side_are_places(tmp_path: Path) -> None:
    page = f"<main><table><tr><td><ul><li>菜单一</li><li>菜单二</li></ul></td><td><h2>通知</h2>{NEWS * 3}</td></tr></table></main>"
    text = text_of(tmp_path, page)
    assert text.startswith("- 菜单一\n- 菜单二\n\n## 通知\n\n第0段：") and "|" not in text


def test_cells_of_a_table_keep_their_words_apart(tmp_path: Path) -> None:
    page = """<main><table><thead><tr><th><h3>Item</h3></th><th>说明</th></tr></thead><tbody>
    <tr><td>a<br>b</td><td><p>第一款</p><p>第二款</p></td></tr><tr><td colspan="2">Section</td></tr><tr><td> </td><td></td></tr>
    <tr><td>c</td><td><ul><li>x</li><li>y</li></ul></td></tr></tbody></table></main>"""
    assert text_of(tmp_path, page) == "| Item | 说明 |\n|---|---|\n| a b | 第一款 第二款 |\n| Section |\n| c | - x - y |\n"


def test_tables_that_are_never_closed(tmp_path: Path) -> None:
    assert text_of(tmp_path, "<table><tr><td>" * 300 + "末") == "末\n"
    assert text_of(tmp_path, "<table><tr><td>一<table><tr><td>二<tr><td>三") == "一\n\n二\n\n三\n"
