"""Whatever works on the index may be killed at every named step: the old state or the new one, and the next run completes it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_support import KILLED, Nursery, assert_collected, assert_whole, texts
from crash_worker import REFUSED
from retrieval_support import Knowledge, write

QUERIES = "the of 的 visitors dose patient rule parking 元 甲方 乙方 规定 费用"
JOBS: dict[str, dict[str, Any]] = {
    "ingest": {"action": "ingest"},
    "remove": {"action": "remove", "ids": ["visits.txt", "zh/contract.txt"]},
    "rebuild": {"action": "rebuild"},
    "rollback": {"action": "rollback", "generation": 1},
    "compact": {"action": "compact"},
}
EMBEDDING = ("ingest", "rebuild")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


@pytest.fixture
def prepared(tmp_path: Path, docs: Path, nursery: Nursery) -> Path:
    """A workspace with two generations, tombstones, and a folder of documents that has changed since."""
    root = tmp_path / "prepared"
    assert nursery.run(root=root / "workspace", action="ingest", docs=docs) == 0, nursery.said()
    write(docs / "gentamicin.md", "# Gentamicin\n\nThe dose is 6 mg/kg.\n\n## Rule\n\nAsk the pharmacist about the dose.\n")
    write(docs / "parking.txt", "PARKING\n\nParking is for patients and visitors.\n")
    (docs / "zh" / "fees.md").unlink()
    assert nursery.run(root=root / "workspace", action="ingest", docs=docs) == 0, nursery.said()
    write(docs / "visits.txt", "VISITING RULES\n\nVisitors may come at noon, one visitor per patient.\n\nChildren stay outside.\n")
    write(docs / "gentamicin.md", "# Gentamicin\n\nThe dose is 7 mg/kg.\n\n## Rule\n\nAsk the pharmacist about the dose.\n")
    write(docs / "zh" / "新增.md", "# 新增规定\n\n新的停车规定：每小时的费用为5元。\n")
    (docs / "parking.txt").unlink()
    return root / "workspace"


def _state(root: Path) -> tuple[int | None, dict[str, str]]:
    knowledge = Knowledge(root)
    try:
        return knowledge.store.live_generation(), texts(knowledge)
    finally:
        knowledge.db.close()


def _copy(prepared: Path, name: str) -> Path:
    return Path(shutil.copytree(prepared, prepared.parent / name))


@pytest.mark.parametrize("everywhere", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["at-the-commit", "everywhere"])
@pytest.mark.parametrize("action", JOBS)
def test_killed_at_every_step(prepared: Path, docs: Path, nursery: Nursery, action: str, everywhere: bool) -> None:
    job = {**JOBS[action], "docs": docs, "result": prepared.parent / "result.json"}
    old_generation, old = _state(prepared)
    whole = _copy(prepared, "whole")
    assert nursery.run(root=whole, **job) == 0, nursery.said()
    done = json.loads((prepared.parent / "result.json").read_text("utf-8"))
    new_generation, new = _state(whole)
    assert new_generation != old_generation
    assert "committed" in done["steps"]
    times = Counter(done["steps"])
    # Every step, at its first and its last time; without `everywhere` the two around the commit.
    commit = done["steps"].index("committed")
    near = done["steps"][commit - 1 : commit + 1]
    kills = [(name, number) for name in (times if everywhere else near) for number in (1, times[name])]
    for name, number in dict.fromkeys(kills):
        root = _copy(prepared, f"{name}-{number}")
        assert nursery.run(root=root, kill=name, times=number, **job) == KILLED, (name, number, nursery.said())
        place = [place for place, step in enumerate(done["steps"]) if step == name][number - 1]
        committed = place >= commit
        after = Knowledge(root)
        generation = after.store.live_generation()
        assert (generation != old_generation) == committed, (name, number)
        assert texts(after) == (new if committed else old), (name, number)
        assert_whole(after, QUERIES)
        after.db.close()

        if not committed or action in EMBEDDING:
            assert nursery.run(root=root, **job) == 0, (name, number, nursery.said())
            again = json.loads((prepared.parent / "result.json").read_text("utf-8"))
            if action in EMBEDDING and not committed and "staged" in done["steps"][:place]:
                assert again["passages"] < done["passages"], f"{name} {number}: nothing that was staged is used again"
            if action == "ingest" and "ready" in done["steps"][: place + 1]:
                assert again["passages"] == 0, f"{name} {number}"
        else:
            # Any later work collects what was left behind.
            write(docs / "later.md", "# Later\n\nThe rule of later.\n")
            assert nursery.run(root=root, action="ingest", docs=docs) == 0, nursery.said()
            (docs / "later.md").unlink()
        after = Knowledge(root)
        if not committed or action in EMBEDDING:
            assert texts(after) == new, (name, number)
        assert_whole(after, QUERIES)
        assert_collected(after)
        after.db.close()
        shutil.rmtree(root)


def test_killed_during_the_first_ingest(tmp_path: Path, docs: Path, nursery: Nursery) -> None:
    root = tmp_path / "workspace"
    for step in ("segment-written", "staged", "before-commit"):
        assert nursery.run(root=root, action="ingest", docs=docs, kill=step, times=1) == KILLED
        after = Knowledge(root)
        assert after.store.live_generation() is None
        assert after.search("anything").passages == ()
        after.db.close()
    after = Knowledge(root)
    assert after.ingest(docs).added == 4
    assert_whole(after, QUERIES)
    assert_collected(after)
    after.db.close()


def test_killed_while_holding_the_databases_write_lock(knowledge: Knowledge, docs: Path) -> None:
    knowledge.ingest(docs)
    before = texts(knowledge)
    code = (
        "import sqlite3, sys, time\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('PRAGMA foreign_keys=ON')\n"
        "connection.execute('BEGIN IMMEDIATE')\n"
        "connection.execute('DELETE FROM document')\n"
        "print('held', flush=True)\n"
        "time.sleep(600)\n"
    )
    place = knowledge.folder.parent / "appliance.db"
    with subprocess.Popen([sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert knowledge.search("visitors").passages, "readers are not held up by a writer"
        with sqlite3.connect(place, timeout=0) as other, pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        process.kill()
    assert texts(knowledge) == before
    write(docs / "new.md", "# New\n\nA new rule.\n")
    assert knowledge.ingest(docs).added == 1
    assert_whole(knowledge, QUERIES)


# --- no space


def _full(root: Path) -> Path:
    """A file system of its own below `root`; skips where this user may not mount one."""
    place = root / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True) if os.geteuid() == 0 else None
    if mounted is None or mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    return place


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = _full(tmp_path)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def _fill(place: Path, leave: int) -> Path:
    """Take all space of a file system but `leave` bytes."""
    filler = place / "filler"
    free = os.statvfs(place)
    filler.write_bytes(b"x" * max(free.f_bavail * free.f_bsize - leave, 0))
    return filler


@pytest.mark.parametrize(
    ("action", "stride"),
    [
        ("ingest", 49_152),
        # The page of the file system: each round gets one write further.
        *(pytest.param(action, 4096, marks=pytest.mark.slow) for action in ("ingest", "remove", "rebuild", "compact")),
    ],
)
def test_a_full_disk_at_every_write(small: Path, docs: Path, nursery: Nursery, action: str, stride: int) -> None:
    root = small / "workspace"
    assert nursery.run(root=root, action="ingest", docs=docs) == 0, nursery.said()
    if action == "compact":
        assert nursery.run(root=root, action="remove", ids=["visits.txt"]) == 0, nursery.said()
    generation, old = _state(root)
    write(docs / "new.md", "# New\n\nA new rule of parking.\n" + "Patients and visitors park in the north. 患者停车免费。\n\n" * 40)
    refused = 0
    for leave in range(0, 1 << 21, stride):
        filler = _fill(small, leave)
        status = nursery.run(root=root, **{**JOBS[action], "docs": docs})
        filler.unlink()
        if status == 0:
            break
        assert status == REFUSED, (leave, status, nursery.said())
        refused += 1
        assert _state(root) == (generation, old), leave
    assert status == 0
    assert refused >= 2
    after = Knowledge(root)
    assert after.store.live_generation() != generation
    assert_whole(after, QUERIES)
    after.db.close()
