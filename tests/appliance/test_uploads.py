"""Files sent in: their names, what they really are, and that nothing of a refused one stays."""

from __future__ import annotations

import io
import os
import stat
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.admin.audit import find
from appliance.admin.upload_check import Refused as BadContent
from appliance.admin.upload_check import check
from appliance.admin.uploads import Purpose, Refused, Upload, Uploads, format_of, safe_name
from appliance.errors import UsageError
from appliance.jobs.jobs import Jobs
from appliance.workspace import Workspace

TEXT = "# 探视规定\n\n探视时间为每日15:00至19:00。\n".encode()


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.create(tmp_path / "workspace") as workspace:
        yield workspace


def send(uploads: Uploads, name: str, content: bytes, purpose: Purpose = "documents", caller: str = "k1") -> Upload:
    with uploads.receive(name, purpose) as incoming:
        incoming.write(content)
        return uploads.release(incoming, caller)


def zipped(*members: tuple[str, bytes], link: str = "") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc/passwd")
    return out.getvalue()


def tarred(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, size, "/etc/passwd"
        archive.addfile(info, io.BytesIO(bytes(size)))
    return out.getvalue()


def files(workspace: Workspace) -> list[Path]:
    return [path for path in (workspace.root / "uploads").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "/etc/passwd.md", "../a.md", "a/../b.md", "a//b.md", "./a.md", ".hidden.md", "a/.b/c.md", "a\\b.md", "C:a.md"),
        *("a\0.md", "a\n.md", "a\u202e.md", "a.md/", "a./b.md", " a.md"),
        *("x" * 300 + ".md", "药" * 100 + ".md", "/".join("abcdefghijklmnopqr") + ".md"),
    ],
)
def test_a_name_that_could_mean_another_place_is_refused(name: str) -> None:
    with pytest.raises(Refused):
        safe_name(name)


def test_names_of_every_script_are_kept() -> None:
    assert safe_name("手册/探视 规定.md") == "手册/探视 规定.md"
    # One form for what looks the same.
    assert safe_name("re\u0301sume\u0301.md") == "r\u00e9sum\u00e9.md"
    assert [format_of(name, "documents") for name in ("a.MD", "b.tar.gz", "c.tgz", "d.xhtml")] == ["md", "tar.gz", "tgz", "xhtml"]
    assert format_of("pairs.parquet", "dataset") == "parquet"
    for name, purpose in (("a.exe", "documents"), ("a", "documents"), ("a.pdf", "dataset"), ("a.parquet", "documents")):
        with pytest.raises(Refused, match="formats are read"):
            format_of(name, purpose)  # type: ignore[arg-type]


OOXML = zipped(("[Content_Types].xml", b"<x/>"), ("word/document.xml", b"<x/>"))


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("md", TEXT),
        ("txt", "探视".encode("gb18030")),
        ("csv", "问题,答案".encode("utf-16")),
        ("txt", b"MZ is a state of old programs"),
        ("pdf", b"%PDF-1.7\n%%EOF"),
        ("zip", zipped(("手册/a.md", TEXT))),
        ("docx", OOXML),
        ("tgz", tarred("a.md", size=10)),
        ("parquet", b"PAR1" + bytes(20) + b"PAR1"),
        ("jsonl", b'{"question": "?"}\n'),
    ],
)
def test_what_is_what_it_is_called_is_taken(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    check(tmp_path / "file", suffix)


@pytest.mark.parametrize(
    ("suffix", "content", "why"),
    [
        ("md", b"", "empty"),
        ("md", b"%PDF-1.7", "a PDF"),
        ("txt", b"MZ\x90\0\x03", "a program"),
        ("txt", b"abc\0def", "binary data"),
        ("jsonl", zipped(("a", b"b")), "zip archive"),
        ("pdf", TEXT, "something else"),
        ("pdf", OOXML, "zip archive"),
        ("docx", zipped(("a.md", TEXT)), "no word/document.xml"),
        ("docx", b"\xd0\xcf\x11\xe0old", "an old office file"),
        ("xlsx", OOXML, "no xl/workbook.xml"),
        ("zip", OOXML[:-30], "damaged"),
        ("zip", zipped(("../a.md", TEXT)), "leads out"),
        ("zip", zipped(("/a.md", TEXT)), "leads out"),
        ("zip", zipped(("a/..\\..\\b.md", TEXT)), "leads out"),
        ("zip", zipped(("a.md", TEXT), link="b.md"), "a link"),
        ("zip", zipped(("bomb.txt", bytes(40 << 20))), "unpacks to more"),
        ("zip", zipped(*((f"{n}.txt", b"") for n in range(20_001))), "members"),
        ("tar.gz", tarred("../a.md"), "leads out"),
        ("tar.gz", tarred("a.md", tarfile.SYMTYPE), "a link or a device"),
        ("tar.gz", tarred("bomb.txt", size=40 << 20), "unpacks to more"),
        ("tar", b"no archive at all" * 100, "damaged"),
        ("parquet", b"PAR1 cut off", "Parquet data"),
        ("exe", b"MZ", "not taken"),
    ],
    # Archives hold the time, so their bytes are no name that two processes agree on.
    ids=lambda value: "content" if isinstance(value, bytes) else None,
)
def test_what_is_not_is_refused(tmp_path: Path, suffix: str, content: bytes, why: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(BadContent, match=why):
        check(tmp_path / "file", suffix)


def test_an_upload_waits_for_its_job_and_goes_with_it(workspace: Workspace) -> None:
    uploads = Uploads(workspace)
    upload = send(uploads, "手册/探视.md", TEXT)
    folder, file = uploads.place(upload)
    assert file.relative_to(folder).as_posix() == "手册/探视.md" and file.read_bytes() == TEXT
    assert (upload.kind, upload.bytes, len(upload.sha256)) == ("md", len(TEXT), 64)
    assert uploads.waiting([upload.id], "k1") == [upload]
    with pytest.raises(UsageError, match="no upload"):
        uploads.waiting([upload.id], "k2")
    uploads.take([upload], "job-1")
    with pytest.raises(UsageError, match="another job"):
        uploads.take([upload], "job-2")
    with pytest.raises(UsageError, match="no upload"):
        uploads.waiting([upload.id], "k1")
    uploads.taken("job-1")
    assert uploads.all() == [] and files(workspace) == []


def test_of_a_refused_file_nothing_stays_but_its_name_in_the_log(workspace: Workspace) -> None:
    uploads = Uploads(workspace)
    with pytest.raises(Refused, match=r"药品\.pdf is refused: it is called \.pdf, but its content is something else"):
        send(uploads, "药品.pdf", TEXT)
    assert uploads.all() == [] and files(workspace) == []
    [entry] = find(workspace.db, "upload.refuse")
    assert entry["details"]["name"] == "药品.pdf"
    # Broken off in the middle.
    with pytest.raises(KeyboardInterrupt), uploads.receive("a.md", "documents") as incoming:
        incoming.write(TEXT)
        raise KeyboardInterrupt
    assert files(workspace) == []


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    Workspace.create(tmp_path / "workspace").close()
    with Workspace(tmp_path / "workspace", {"server.max_upload_bytes": "1024"}) as workspace:
        uploads = Uploads(workspace)
        for number in range(4):
            send(uploads, f"{number}.md", b"a" * 4096)
        with pytest.raises(Refused, match="4 files wait to be ingested or registered, which is enough"):
            send(uploads, "more.md", TEXT)


def test_a_registry_of_data_sets_is_refused() -> None:
    """It names files of the server, or of a hub."""
    with pytest.raises(Refused, match="names other files"):
        format_of("data/dataset_info.json", "dataset")
    assert format_of("dataset_info.jsonl", "dataset") == "jsonl"


def test_the_files_of_a_job_that_ended_or_never_was_are_removed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads, jobs = Uploads(workspace), Jobs(workspace.db)
    taken, cancelled, lost = (send(uploads, f"{name}.md", TEXT) for name in ("taken", "cancelled", "lost"))
    job, ended = jobs.add("index-compact", {}), jobs.add("index-compact", {})
    uploads.take([taken], job.id)
    uploads.take([cancelled], ended.id)
    # As where the process was killed before it queued the job.
    uploads.take([lost], "job-never-queued")
    jobs.cancel(ended.id)
    uploads.expire()
    assert {upload.id for upload in uploads.all()} == {taken.id, lost.id}
    monkeypatch.setattr("appliance.admin.uploads.KEPT", timedelta(seconds=-1))
    uploads.expire()
    assert files(workspace) == [uploads.place(taken)[1]]


def test_what_nobody_takes_is_removed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = Uploads(workspace)
    kept, left = send(uploads, "a.md", TEXT), workspace.root / "uploads" / "quarantine" / "upl-left"
    left.write_bytes(TEXT)
    uploads.expire()
    assert len(files(workspace)) == 2
    os.utime(left, (time.time() - 90_000,) * 2)
    uploads.expire()
    assert files(workspace) == [uploads.place(kept)[1]]
    monkeypatch.setattr("appliance.admin.uploads.KEPT", timedelta(seconds=-1))
    uploads.expire()
    assert files(workspace) == [] and uploads.all() == []


def test_files_sent_at_the_same_time_share_the_room(workspace: Workspace) -> None:
    uploads = Uploads(workspace)
    uploads._room = 100
    with uploads.receive("a.md", "documents") as first, uploads.receive("b.md", "documents") as second:
        first.write(b"a" * 60)
        second.write(b"b" * 60)
        first.file.flush()
        second.file.flush()
        with pytest.raises(Refused, match="at once or wait"):
            first.write(b"a")
    assert files(workspace) == []


def test_a_folder_that_goes_while_the_room_is_looked_at_stops_nobody(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads, scan = Uploads(workspace), os.scandir
    waiting = uploads.place(send(uploads, "a.md", TEXT))[0]

    def gone(path: Any) -> Any:
        if Path(path) == waiting:
            raise FileNotFoundError(path)
        return scan(path)

    with uploads.receive("b.md", "documents") as incoming:
        monkeypatch.setattr(os, "scandir", gone)
        incoming.write(TEXT)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("program", "why"), [("kill -9 $$", "too much memory or time"), ("echo KeyError >&2; exit 1", "the check itself failed")]
)
def test_a_check_that_crashes_is_told_from_one_that_was_stopped(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, program: str, why: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n", "utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(Refused, match=why):
        send(Uploads(workspace), "a.md", TEXT)
    assert ("KeyError" in caplog.text) is ("itself" in why) and files(workspace) == []
