"""What ingest holds in memory does not grow with what it reads: the resident memory of all its processes, sampled."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from crash_support import HERE, environment
from memory_worker import TextEmbedder
from retrieval_support import Knowledge

from retrieval.types import DocumentKey

LIMIT = 2 * 10**9
# A real embedding model adds this much, however much is read: a whole ingest with multilingual-e5-small has 1.24 GB, without it 0.15.
MODEL = 1_100_000_000


def lines() -> Iterator[str]:
    """Paragraphs in both languages without an end, each with words of its own."""
    for n in itertools.count():
        heading = f"## 第{n}节 Section {n}\n\n" if n % 40 == 0 else ""
        english = f"The dose number {n} of substance s{n * 7919 % 100_003} is {n % 97} mg/kg once daily, unless a level is above {n % 13}."
        yield f"{heading}{english} 第{n}条规定，编号{n * 31 % 10_007}的物品在收货后{n % 30}个工作日内完成检验。\n\n"


def write_text(path: Path, size: int) -> Path:
    """A text of `size` bytes, give or take a paragraph."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("# The whole 全部\n\n")
        left = size
        for line in lines():
            file.write(line)
            left -= len(line.encode())
            if left <= 0:
                return path
    return path


def measured(workspace: Path, *paths: Path) -> tuple[int, dict[str, Any]]:
    """The largest memory of the ingest's processes together, in bytes, and its report."""
    command = [sys.executable, str(HERE / "memory_worker.py"), str(workspace), *map(str, paths)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    assert process.stdout is not None
    out = process.stdout.read()
    process.stdout.close()
    assert process.returncode == 0
    return peak, json.loads(out)


def resident(pid: int) -> int:
    total = 0
    try:
        whole = psutil.Process(pid)
        for one in (whole, *whole.children(recursive=True)):
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # It ended while it was looked at.
    return total


def check_one_text(tmp_path: Path, size: int, limit: int) -> None:
    text = write_text(tmp_path / "huge.md", size)
    peak, report = measured(tmp_path / "workspace", text)
    print(f"{size} bytes: {peak / 1e6:.0f} MB at most, {report['seconds']} s, {report['chunks']} chunks")
    assert report["added"] == 1 and report["chunks"] > size / 2_000 and report["tidied"]["after"] < report["tidied"]["before"]
    assert peak < limit
    knowledge = Knowledge(tmp_path / "workspace", TextEmbedder("text-1"))
    try:
        stored = knowledge.store.document(DocumentKey("medical", "huge.md"))
        assert stored is not None and stored.text == text.read_text("utf-8")
        start = stored.text.rindex("第", 0, len(stored.text) - 100)
        found = knowledge.search(stored.text[start:].strip()).passages
        assert any(passage.chunk.start <= start < passage.chunk.end for passage in found)
    finally:
        knowledge.db.close()


def check_many(tmp_path: Path, documents: int, limit: int) -> None:
    def rows() -> Iterable[str]:
        source = lines()
        for n in range(documents):
            body = "".join(itertools.islice(source, 12))
            yield json.dumps({"id": f"d{n}", "title": f"Document {n} 文件", "text": body}, ensure_ascii=False) + "\n"

    corpus = tmp_path / "corpus.jsonl"
    with corpus.open("w", encoding="utf-8") as file:
        file.writelines(rows())
    peak, report = measured(tmp_path / "workspace", corpus)
    print(f"{documents} documents: {peak / 1e6:.0f} MB at most, {report['seconds']} s, {report['chunks']} chunks")
    assert report["added"] == documents and report["chunks"] >= documents
    assert peak < limit


@pytest.mark.slow
def test_one_text_of_20_mb(tmp_path: Path) -> None:
    check_one_text(tmp_path, 20_000_000, LIMIT - MODEL)


@pytest.mark.slow
def test_a_thousand_documents(tmp_path: Path) -> None:
    check_many(tmp_path, 1_000, LIMIT - MODEL)


@pytest.mark.full
def test_one_text_of_200_mb(tmp_path: Path) -> None:
    check_one_text(tmp_path, 200_000_000, LIMIT - MODEL)


@pytest.mark.full
def test_ten_thousand_documents(tmp_path: Path) -> None:
    check_many(tmp_path, 10_000, LIMIT - MODEL)
