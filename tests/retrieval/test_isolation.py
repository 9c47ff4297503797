"""Hostile files cost one error each, in the process that parses and not in the one that ingests."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import psutil
import pytest
from retrieval_support import Knowledge, write

from retrieval.isolation import Limits, Parsers
from retrieval.parsers import Parsed, ParseError, Skipped, is_corpus
from retrieval.parsers.plain import is_utf8
from retrieval.staging import IngestSettings

HERE = Path(__file__).parent
HOSTILE = "hostile_reader:parse"
TIGHT = Limits(seconds=1.5, memory_bytes=384 << 20)


def parsing() -> list[psutil.Process]:
    """The children of this process, without Python's own, which any test before may have left."""
    return [child for child in psutil.Process().children() if not any("resource_tracker" in word for word in child.cmdline())]


def read(parsers: Parsers, path: Path) -> list[Parsed]:
    found = list(parsers.parse(path, path.name))
    assert all(isinstance(item, Parsed) for item in found)
    return [item for item in found if isinstance(item, Parsed)]


def hostile(folder: Path, what: str) -> Path:
    return write(folder / f"{what}.html", f"hostile {what}")


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("loop", r"loop\.html: took more than 1.5 s without progress; .*parse_seconds"),
        ("loop-in-c", r"loop-in-c\.html: took more than 1.5 s"),
        ("memory", r"memory\.html: needed more than 384 MiB of memory; .*parse_memory_mb"),
        ("crash", r"crash\.html: the parser crashed \(signal 11, SIGSEGV\)"),
        ("exit", r"exit\.html: the parser ended \(exit code 3\): library gives up"),
    ],
)
def test_a_hostile_file_costs_one_error(tmp_path: Path, what: str, error: str) -> None:
    good = write(tmp_path / "good.csv", "项目,价格\n床位费,每日50元\n")
    with Parsers(TIGHT, reader=HOSTILE) as parsers:
        assert read(parsers, good)[0].text == "项目: 床位费; 价格: 每日50元\n"
        with pytest.raises(ParseError, match=error):
            list(parsers.parse(hostile(tmp_path, what), f"{what}.html"))
        assert read(parsers, good)[0].text == "项目: 床位费; 价格: 每日50元\n"


def test_one_process_serves_many_files_and_ends_with_the_context(tmp_path: Path) -> None:
    path = hostile(tmp_path, "modules")
    with Parsers(reader=HOSTILE) as parsers:
        first, second = (read(parsers, path)[0].text.split() for _ in range(2))
        # No model library is loaded, and nothing of the product.
        assert first == second and len(first) == 1
        child = psutil.Process(int(first[0]))
        assert child.ppid() == os.getpid()
    assert not child.is_running()


def test_rows_stream_and_memory_stays_bounded(tmp_path: Path) -> None:
    with Parsers(reader=HOSTILE) as parsers:
        stream = parsers.parse(hostile(tmp_path, "rows"), "rows.html")
        first = next(stream)
        assert isinstance(first, Parsed) and (first.id, first.meta, first.text) == ("0", {"n": [0]}, "行" * 500)
        (child,) = parsing()
        time.sleep(0.2)
        # The rows are 30 MB: the child waits until they are taken, and waiting is not counted as its time.
        assert child.memory_info().rss < 120 << 20
        rest = list(stream)
    assert len(rest) == 19_999 and isinstance(rest[6], ParseError) and str(rest[6]) == "rows.html: row 7"


def test_a_crash_in_the_middle_keeps_what_came_before(tmp_path: Path) -> None:
    with Parsers(reader=HOSTILE) as parsers:
        stream = parsers.parse(hostile(tmp_path, "rows-then-crash"), "a.html")
        assert isinstance(next(stream), Parsed)
        with pytest.raises(ParseError, match="crashed"):
            next(stream)


def test_a_stream_that_is_left_early_does_not_reach_the_next_file(tmp_path: Path) -> None:
    with Parsers(reader=HOSTILE) as parsers:
        stream = parsers.parse(hostile(tmp_path, "rows"), "rows.html")
        next(stream)
        stream.close()
        assert read(parsers, write(tmp_path / "a.html", "<p>next</p>"))[0].text == "next\n"


def test_what_libraries_print_is_no_message(tmp_path: Path) -> None:
    with Parsers(reader=HOSTILE) as parsers:
        assert read(parsers, hostile(tmp_path, "noise"))[0].text == "安静 quiet"


def test_progress_starts_the_time_again_and_the_whole_is_limited(tmp_path: Path) -> None:
    waited: list[int] = []
    with Parsers(Limits(seconds=1.0), waiting=lambda: waited.append(1), reader=HOSTILE) as parsers:
        assert read(parsers, hostile(tmp_path, "slow"))[0].text == "done"
    with (
        Parsers(Limits(seconds=1.0, total_seconds=0.6), reader=HOSTILE) as parsers,
        pytest.raises(ParseError, match=r"took more than 0\.6 s in all"),
    ):
        list(parsers.parse(hostile(tmp_path, "slow"), "slow.html"))


def test_a_child_killed_while_idle_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a.html", "<p>text</p>")
    with Parsers() as parsers:
        read(parsers, path)
        (child,) = parsing()
        child.kill()
        child.wait()
        assert read(parsers, path)[0].text == "text\n"


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_the_child_dies_with_its_parent(tmp_path: Path, sign: signal.Signals) -> None:
    command = [sys.executable, str(HERE / "parsing_parent.py"), str(hostile(tmp_path, "loop-in-c"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE)])}

    def keyboard() -> None:
        # As on a terminal: a suite started in the background inherits Ctrl-C ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "preexec_fn": keyboard}
    with subprocess.Popen(command, env=environment, text=True, **quiet) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        time.sleep(0.3)
        parent.send_signal(sign)
        assert parent.wait(timeout=30) != 0
        child.wait(timeout=30)


def test_large_text_is_read_here_and_large_pages_cross_whole(tmp_path: Path) -> None:
    text = "第一条　甲方应当验收。\n" * 200_000
    with Parsers() as parsers:
        assert read(parsers, write(tmp_path / "a.txt", text))[0].text == text
        assert not parsing()
        rows = read(parsers, write(tmp_path / "a.csv", "条款,内容\n" + "一,甲方应当验收\n" * 200_000))[0].text
        assert rows == "条款: 一; 内容: 甲方应当验收\n" * 200_000


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _tar(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


MEMBERS = {
    "rules.md": "# 规则\n\n访客须登记。\n".encode(),
    "inner/page.html": b"<p>A page.</p>",
    "inner/qa.jsonl": '{"id": "q1", "question": "几点开门？", "answer": "八点。"}\n'.encode(),
    "inner/crash.html": b"hostile crash",
    "after.txt": b"After the crash.",
    "picture.png": b"\x89PNG",
    "nested.zip": b"PK",
    ".hidden.txt": b"x",
    "__MACOSX/rules.md": b"x",
    "../escape.txt": b"x",
    "/absolute.txt": b"x",
}


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives(tmp_path: Path, kind: str) -> None:
    path = _zip(tmp_path / "a.zip", MEMBERS) if kind == "zip" else _tar(tmp_path / "a.tar.gz", MEMBERS, {"link.txt": "/etc/passwd"})
    with Parsers(reader=HOSTILE) as parsers:
        found = list(parsers.parse(path, path.name))
    texts = {item.id: item.text for item in found if isinstance(item, Parsed)}
    assert texts == {
        f"{path.name}/rules.md": "# 规则\n\n访客须登记。\n",
        f"{path.name}/inner/page.html": "A page.\n",
        "q1": "几点开门？\n\n八点。\n",
        f"{path.name}/after.txt": "After the crash.",
    }
    (error,) = [str(item) for item in found if isinstance(item, ParseError)]
    assert error.startswith(f"{path.name}/inner/crash.html: the parser crashed")
    reasons = {item.path.removeprefix(f"{path.name}/"): item.reason for item in found if isinstance(item, Skipped)}
    assert {"picture.png", "nested.zip", "../escape.txt", "/absolute.txt"} <= reasons.keys() and "hidden" not in str(reasons)
    assert kind == "zip" or "link" in reasons["link.txt"]
    assert not (tmp_path / "escape.txt").exists() and not (tmp_path.parent / "escape.txt").exists()


def test_names_in_a_zip_packed_on_chinese_windows(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"xxxx/yyyyyy.txt": b"text"})
    path.write_bytes(path.read_bytes().replace(b"xxxx", "制度".encode("gbk")).replace(b"yyyyyy", "请假制".encode("gbk")))
    with Parsers() as parsers:
        assert read(parsers, path)[0].id == "a.zip/制度/请假制.txt"


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_not_unpacked(tmp_path: Path, kind: str) -> None:
    members = {f"{number}.txt": b"\0" * (32 << 20) for number in range(3)}
    path = _zip(tmp_path / "b.zip", members) if kind == "zip" else _tar(tmp_path / "b.tar.gz", members)
    with Parsers() as parsers, pytest.raises(ParseError, match=r"b\..*: unpacks to more than 300 times its size"):
        list(parsers.parse(path, path.name))


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.tgz", "a.tar"])
def test_a_damaged_archive_is_one_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 or something else")
    with Parsers() as parsers, pytest.raises(ParseError, match="the archive cannot be unpacked"):
        list(parsers.parse(tmp_path / name, name))


def test_ingest_goes_on_after_hostile_files(knowledge: Knowledge, tmp_path: Path) -> None:
    import openpyxl

    folder = tmp_path / "in"
    write(folder / "good.html", "<h1>探视</h1><p>探视时间为下午两点至七点。</p>")
    with zipfile.ZipFile(folder / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"\0" * (32 << 20))
    # Real data, but more of it than the parser may hold.
    (folder / "huge.html").write_text("<p>" + "word " * (24 << 20) + "</p>", "utf-8")
    book = openpyxl.Workbook()
    book.active.append(["drug", "dose"])
    book.active.append(["gentamicin", "5 mg/kg"])
    book.save(folder / "doses.xlsx")
    report = knowledge.ingest(folder, settings=IngestSettings(40, 80, limits=Limits(memory_bytes=384 << 20)))
    assert report.added == 2
    errors = {failure.path: failure.error for failure in report.failed}
    assert errors.keys() == {"bomb.docx", "huge.html"}
    assert "times its size" in errors["bomb.docx"] and "needed more than 384 MiB" in errors["huge.html"]
    assert knowledge.ids("dose of gentamicin")[0] == "doses.xlsx" and knowledge.ids("探视时间")[0] == "good.html"
    assert not parsing()


def test_archives_are_followed_only_when_asked(knowledge: Knowledge, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "plain.md", "# Plain\n\nA plain document about parking.\n")
    _zip(folder / "old.zip", {"inner/fees.md": "# 收费\n\n普通门诊诊查费为每次20元。\n".encode(), "logo.png": b"x"})
    report = knowledge.ingest(folder)
    assert report.added == 1 and ("old.zip", "an archive is read only with --archives") in report.skipped
    asked = IngestSettings(40, 80, archives=True)
    report = knowledge.ingest(folder, settings=asked)
    assert (report.added, report.unchanged, report.failed) == (1, 1, [])
    assert [skipped.path for skipped in report.skipped] == ["old.zip/logo.png"]
    assert knowledge.ids("门诊诊查费")[0] == "old.zip/inner/fees.md"
    again = knowledge.ingest(folder, settings=asked)
    assert (again.added, again.updated, again.unchanged) == (0, 0, 2)
    # A member that is gone from the archive is gone like a file.
    _zip(folder / "old.zip", {"inner/other.md": b"# Other\n\nText.\n"})
    report = knowledge.ingest(folder, settings=asked, prune=True)
    assert (report.added, report.removed) == (1, 1)


def test_pairs_beside_documents(knowledge: Knowledge, tmp_path: Path) -> None:
    write(tmp_path / "in" / "faq.csv", "问题,答案\n床位费是多少？,每床每日50元。\n可以带宠物吗？,不可以。\n坏行,\n")
    report = knowledge.ingest(tmp_path / "in")
    assert report.added == 2 and len(report.failed) == 1 and "line 4" in report.failed[0].error
    # A row that failed may be one that is live: nothing of its file is removed for its sake.
    write(tmp_path / "in" / "faq.csv", "问题,答案\n床位费是多少？,每床每日50元。\n可以带宠物吗？,\n")
    assert knowledge.ingest(tmp_path / "in", prune=True).removed == 0
    write(tmp_path / "in" / "faq.csv", "问题,答案\n床位费是多少？,每床每日50元。\n")
    assert knowledge.ingest(tmp_path / "in", prune=True).removed == 1


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "big5", "cp1252"])
def test_text_in_other_encodings_is_read_by_the_child(tmp_path: Path, encoding: str) -> None:
    text = "Café façade, naïve.\n" * 9 if encoding == "cp1252" else "員工出差報銷規定：普通員工乘坐高鐵二等座。\n" * 9
    (tmp_path / "a.md").write_bytes(text.encode(encoding))
    (tmp_path / "b.txt").write_bytes("\ufeff条款 §1\n".encode())
    with Parsers() as parsers:
        assert read(parsers, tmp_path / "b.txt")[0].text == "条款 §1\n" and not parsing()
        assert read(parsers, tmp_path / "a.md")[0].text == text and len(parsing()) == 1


def test_utf8_is_told_from_the_whole_file(tmp_path: Path) -> None:
    text = "条款" * (1 << 19)  # Characters lie across the borders of blocks.
    path = tmp_path / "a.txt"
    for data, expected in ((b"", True), (text.encode(), True), (text.encode() + b"\xff", False), (text.encode()[:-1], False)):
        path.write_bytes(data)
        assert is_utf8(path) is expected


def test_which_tables_hold_pairs_is_told_without_guessing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)
    (tmp_path / "qa.csv").write_bytes("question,answer\nWhere is the café?,Là-bas\n".encode("cp1252"))
    (tmp_path / "问答.csv").write_bytes("问题,答案\n床位费是多少？,五十元\n".encode("gb18030"))
    (tmp_path / "menu.csv").write_bytes("dish,price\ncafé,3\n".encode("cp1252"))
    assert [is_corpus(tmp_path / name) for name in ("qa.csv", "问答.csv", "menu.csv")] == [True, True, False]


def test_a_page_too_big_for_the_limit_is_one_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path / "big.html", "<p>第一条　甲方验收。</p>\n" * 300_000)
    with Parsers(Limits(memory_bytes=160 << 20)) as parsers:
        with pytest.raises(
            ParseError, match=r"big\.html: needed more than 160 MiB of memory; split the file, or raise \[ingest\] parse_memory_mb"
        ):
            list(parsers.parse(path, "big.html"))
        # The next one is read.
        assert read(parsers, write(tmp_path / "a.html", "<p>好</p>"))[0].text == "好\n"
