"""Queries go on while generations come and go; each is answered from one of them."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from crash_support import HERE, environment
from retrieval_support import Knowledge, write

from retrieval.compact import compact
from retrieval.fallback import LiveIndex
from retrieval.maintain import remove
from retrieval.staging import IngestSettings
from retrieval.types import DocumentKey, Evidence, Scope

DOCUMENTS = 6
SETTINGS = IngestSettings(40, 80, segment_chunks=2)


def _write(folder: Path, version: int) -> None:
    for number in range(DOCUMENTS):
        english = f"# Rule {number}\n\nThe fee of rule {number} is v{version}.\n\n## More\n\nThe term of rule {number} is v{version} too.\n"
        chinese = f"# 规定{number}\n\n第一条　规定{number}的费用为 v{version}。\n\n第二条　规定{number}的期限为 v{version}。\n"
        # One document stays as it is, so that segments are shared.
        write(folder / f"rule-{number}.md", (english if number % 2 else chinese) if number else "# Constant\n\nThe rule that stays.\n")


def _compact(knowledge: Knowledge) -> None:
    with knowledge.db.lock("index") as lock:
        compact(store=knowledge.store, vectors=knowledge.vectors, lock=lock)


def _remove(knowledge: Knowledge, *ids: str) -> None:
    with knowledge.db.lock("index") as lock:
        remove([DocumentKey("medical", id) for id in ids], store=knowledge.store, vectors=knowledge.vectors, lock=lock)


@pytest.mark.parametrize(("readers", "commits"), [(4, 4), pytest.param(16, 7, marks=pytest.mark.slow)])
def test_readers_and_commits(knowledge: Knowledge, tmp_path: Path, readers: int, commits: int) -> None:
    folder = tmp_path / "rules"
    _write(folder, 1)
    knowledge.ingest(folder, settings=SETTINGS)
    following, pinned = LiveIndex(knowledge.store, knowledge.vectors), knowledge.index(1)
    versions = {1: 1}
    stop = threading.Event()
    answers: list[tuple[str, Evidence]] = []

    def read(number: int) -> int:
        chosen = random.Random(number)
        index, count = knowledge.index(), 0
        while not stop.is_set() or not count:
            query = chosen.choice(["fee of rule 3", "规定2的费用", "term of rule 5", "the rule that stays"])
            for kind in ("follow", "refresh", "pin"):
                index = index.refresh()
                searched = {"follow": following.serving(knowledge.embedder).index, "refresh": index, "pin": pinned}[kind]
                answers.append((kind, searched.search(query, Scope(), 6)))
                count += 1
        return count

    with ThreadPoolExecutor(readers) as pool:
        reading = [pool.submit(read, number) for number in range(readers)]
        try:
            for version in range(2, commits + 2):
                _write(folder, version)
                report = knowledge.ingest(folder, settings=SETTINGS)
                assert report.generation is not None
                versions[report.generation] = version
                if version % 4 == 0:
                    _compact(knowledge)
                    versions[knowledge.store.live_generation() or 0] = version
        finally:
            stop.set()
        assert all(future.result() for future in reading)
    seen = set()
    for kind, evidence in answers:
        assert evidence.generation is not None and evidence.passages
        assert kind != "pin" or evidence.generation == 1
        seen.add(evidence.generation)
        for passage in evidence.passages:
            assert set(re.findall(r"v(\d+)", passage.chunk.text)) <= {str(versions[evidence.generation])}, (kind, evidence.generation)
    assert len(seen) > 1
    assert following.serving(knowledge.embedder).index.generation == knowledge.store.live_generation()


def test_refreshing_opens_only_what_is_new(knowledge: Knowledge, tmp_path: Path) -> None:
    folder = tmp_path / "rules"
    _write(folder, 1)
    knowledge.ingest(folder, settings=SETTINGS)
    index = knowledge.index()
    write(folder / "new.md", "# New\n\nA new rule.\n")
    knowledge.ingest(folder, settings=SETTINGS)
    # Damage to what is open already does not matter to who has it open, and nothing of it is read again.
    opened = []
    real = knowledge.vectors._open  # type: ignore[attr-defined]
    knowledge.vectors._open = lambda id, manifest: (opened.append(id), real(id, manifest))[1]  # type: ignore[attr-defined]
    again = index.refresh()
    assert again.generation == 2 and len(opened) == 1
    assert again.refresh() is again


_PINNED = """
import json, sys
from pathlib import Path
from retrieval_support import Knowledge
from retrieval.types import Scope
knowledge = Knowledge(Path(sys.argv[1]))
index = knowledge.index()
print("open", flush=True)
for line in sys.stdin:
    found = index.search(line, Scope(), 50)
    texts = [passage.chunk.text for passage in found.passages]
    print(json.dumps([found.generation, sorted({passage.document.id for passage in found.passages}), texts]), flush=True)
"""


def test_another_process_keeps_its_generation_while_the_files_go(knowledge: Knowledge, tmp_path: Path) -> None:
    folder = tmp_path / "rules"
    _write(folder, 1)
    knowledge.ingest(folder, settings=SETTINGS)
    before = set((knowledge.folder / "segments").iterdir())
    command = [sys.executable, "-c", _PINNED, str(tmp_path / "workspace")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=HERE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "open\n"

        def ask(query: str) -> tuple[int, list[str], list[str]]:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(query + "\n")
            process.stdin.flush()
            found: tuple[int, list[str], list[str]] = tuple(json.loads(process.stdout.readline()))
            return found

        # Nothing was searched in it before everything it has open is merged away, changed, or removed.
        _write(folder, 2)
        knowledge.ingest(folder, settings=SETTINGS)
        _remove(knowledge, "rule-3.md", "rule-4.md")
        _compact(knowledge)
        assert not before & set((knowledge.folder / "segments").iterdir())
        generation, ids, texts = ask("the fee of rule 规定 费用 stays")
        assert generation == 1
        assert ids == ["rule-0.md", "rule-1.md", "rule-2.md", "rule-5.md"], "what was removed is gone at once"
        assert not any("v2" in text for text in texts)
        process.stdin.close()
    assert process.returncode == 0
