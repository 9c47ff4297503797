"""Killed at random moments, while other processes search: what was acknowledged is there, and every answer is of one generation."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from crash_support import HERE, KILLED, Nursery, assert_collected, assert_whole, environment, texts
from retrieval_support import Knowledge, write

QUERIES = "paper version rule fee the of 文件 版本 费用"
DOCUMENTS = 12


@dataclass
class Oracle:
    """What must be there: the version of each document, in the folder, in the index, and in every generation."""

    folder: Path
    random: random.Random
    next_version: int = 1
    on_disk: dict[str, int] = field(default_factory=dict)
    live: dict[str, int] = field(default_factory=dict)
    generations: dict[int, dict[str, int]] = field(default_factory=dict)
    removed: set[tuple[str, int]] = field(default_factory=set)

    def change(self) -> None:
        """Add, change and delete a few documents of the folder."""
        for number in self.random.sample(range(DOCUMENTS), self.random.randint(1, 4)):
            name = f"{'zh/' if number % 3 == 0 else ''}paper-{number}.md"
            if name in self.on_disk and self.random.random() < 0.3:
                (self.folder / name).unlink()
                del self.on_disk[name]
            else:
                self.on_disk[name] = self.next_version
                write(self.folder / name, text(number, self.next_version))
                self.next_version += 1
        if not self.on_disk:
            self.change()


def text(number: int, version: int) -> str:
    """A document of several chunks, each of which says its version."""
    english = f"The rule {{}} of paper {number} in version v{version} sets the fee to {version} crowns and the term to {number} days."
    chinese = f"第{{}}条 第{number}号文件的版本 v{version} 规定费用为{version}元，期限为{number}天。"
    line = chinese if number % 3 == 0 else english
    return f"# Paper {number}\n\n" + "\n\n".join(f"## Part {part}\n\n{line.format(part)}" for part in range(1, 4 + version % 3)) + "\n"


def version_in(passage: str) -> int | None:
    found = re.findall(r"v(\d+)", passage)
    assert len(set(found)) <= 1, passage
    return int(found[0]) if found else None


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


def _observe(root: Path, oracle: Oracle, seen: int) -> int:
    """Compare the live state with what it may be, note which generation holds what; the number of the live generation."""
    knowledge = Knowledge(root)
    try:
        generation = knowledge.store.live_generation() or 0
        state = {id: version_in(text) for id, text in texts(knowledge).items()}
        if generation == seen:
            assert state == oracle.live, f"generation {generation} has changed"
        else:
            assert state == oracle.on_disk, f"generation {generation} is neither the old state nor the new one"
            oracle.live = dict(oracle.on_disk)
        for number in range(seen + 1, generation + 1):
            oracle.generations[number] = dict(oracle.live)
        if generation:
            assert_whole(knowledge, QUERIES)
        return generation
    finally:
        knowledge.db.close()


def _check_answers(log: Path, oracle: Oracle) -> Counter[int]:
    """Every answer a reader got is of one generation, each passage in the version that generation has. Answers by generation."""
    answers: Counter[int] = Counter()
    for line in log.read_text("utf-8").splitlines():
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        if answer["generation"] is None:
            continue
        state = oracle.generations[answer["generation"]]
        for id, passage in answer["passages"]:
            assert version_in(passage) == state.get(id), (answer["generation"], id, passage)
        answers[answer["generation"]] += 1
    return answers


def _moment(chosen: random.Random, durations: list[float]) -> float:
    """A moment of the usual duration or a little later; every other one near its end, where the commit is."""
    usual = sorted(durations)[len(durations) // 2]
    return chosen.uniform(chosen.choice([0, 0.7]) * usual, 1.2 * usual)


@pytest.mark.parametrize("kills", [pytest.param(20, marks=pytest.mark.slow, id="20"), pytest.param(200, marks=pytest.mark.full, id="200")])
def test_random_kills(tmp_path: Path, nursery: Nursery, kills: int) -> None:
    root, folder = tmp_path / "workspace", tmp_path / "docs"
    oracle = Oracle(folder, random.Random(20_260_101))
    folder.mkdir()
    oracle.change()
    assert nursery.run(root=root, action="ingest", docs=folder) == 0, nursery.said()
    seen = _observe(root, oracle, 0)

    durations: dict[str, list[float]] = {"ingest": [], "rebuild": [], "compact": []}
    log = tmp_path / "answers.jsonl"
    command = [sys.executable, str(HERE / "search_worker.py"), str(root), str(log)]
    outcome: Counter[str] = Counter()
    with subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE) as reader:
        try:
            while outcome["before the commit"] + outcome["after the commit"] < kills:
                action = oracle.random.choices(["ingest", "rebuild", "compact"], [8, 1, 1])[0]
                if action == "ingest":
                    oracle.change()
                known = durations[action]
                # Now and then undisturbed, to know how long it takes.
                undisturbed = len(known) < 2 or oracle.random.random() < 0.1
                after = None if undisturbed else _moment(oracle.random, known[-5:])
                began = time.monotonic()
                status = nursery.run(after, root=root, action=action, docs=folder)
                if undisturbed:
                    known.append(time.monotonic() - began)
                if action != "ingest":
                    # These keep the documents as they are, so nothing new of the folder may come in.
                    on_disk, oracle.on_disk = oracle.on_disk, dict(oracle.live)
                generation = _observe(root, oracle, seen)
                if action != "ingest":
                    oracle.on_disk = on_disk
                if status == 0:
                    assert action != "ingest" or oracle.live == oracle.on_disk, "an acknowledged document is missing"
                    outcome["finished"] += 1
                else:
                    assert status == KILLED, nursery.said()
                    outcome["after the commit" if generation != seen else "before the commit"] += 1
                seen = generation
                assert reader.poll() is None, "the reader died"
        finally:
            assert reader.stdin is not None
            reader.stdin.close()
    assert reader.returncode == 0
    assert nursery.run(root=root, action="ingest", docs=folder) == 0, nursery.said()
    _observe(root, oracle, seen)
    knowledge = Knowledge(root)
    assert oracle.live == oracle.on_disk
    assert_collected(knowledge)
    knowledge.db.close()
    answers = _check_answers(log, oracle)
    print(dict(outcome), f"generations {len(oracle.generations)}, answers {answers.total()} of {len(answers)} generations")
    assert outcome["before the commit"] and (outcome["after the commit"] or kills < 100)
    assert len(answers) > 2
