"""Starting and killing jobs of `crash_worker`, and what must hold of an index after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from retrieval_support import Knowledge

from appliance.store import schema
from retrieval.index import verify
from retrieval.types import DocumentKey

HERE = Path(__file__).parent
KILLED = -signal.SIGKILL


def environment() -> dict[str, str]:
    """The environment of a process that imports what tests import."""
    return {**os.environ, "PYTHONPATH": f"{HERE.parent.parent}:{HERE}", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class Nursery:
    """A process that does jobs, each in a child of its own: what is imported once need not be imported for each kill."""

    def __enter__(self) -> Self:
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "crash_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.errors.close()

    def start(self, **job: Any) -> int:
        """Begin a job; its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job, default=str) + "\n")
        self.process.stdin.flush()
        return int(self._answer()["pid"])

    def wait(self) -> int:
        """The exit code of the job, or minus the signal that ended it."""
        return int(self._answer()["status"])

    def run(self, after: float | None = None, **job: Any) -> int:
        """Do a job, killed after `after` seconds if it is not done by then."""
        pid = self.start(**job)
        if after is None:
            return self.wait()
        timer = threading.Timer(after, _kill, [pid])
        timer.start()
        try:
            return self.wait()
        finally:
            timer.cancel()
            timer.join()

    def said(self) -> str:
        """What the jobs wrote to stderr."""
        self.errors.seek(0)
        return self.errors.read()

    def _answer(self) -> dict[str, int]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the worker ended: {self.said()}"
        answer: dict[str, int] = json.loads(line)
        return answer


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it was done just now


def texts(knowledge: Knowledge) -> dict[str, str]:
    """Every live document's text by id."""
    found = {document.key.id: knowledge.store.document(document.key) for document in list(knowledge.store.live_documents())}
    return {id: document.text for id, document in found.items() if document is not None}


def assert_whole(knowledge: Knowledge, queries: str) -> None:
    """Every file is as written; every live document is found by `queries` and quotes its text; nothing else is found."""
    assert verify(knowledge.store, knowledge.vectors) == []
    live = texts(knowledge)
    found = knowledge.search(queries, k=200).passages
    assert {passage.document.id for passage in found} == set(live)
    for passage in found:
        assert live[passage.document.id][passage.chunk.start : passage.chunk.end] == passage.chunk.text
        current = knowledge.store.document(DocumentKey(*passage.document.key))
        assert current is not None and current.info.sha256 == passage.document.sha256


def assert_collected(knowledge: Knowledge) -> None:
    """No leftovers: the folder holds exactly the segments with chunks, and the manifests of the generations."""
    with knowledge.db.read() as connection:
        segments = set(connection.execute(sa.select(schema.segment.c.id)).scalars())
        used = set(connection.execute(sa.select(schema.chunk.c.segment_id)).scalars())
        manifests = set(connection.execute(sa.select(schema.generation.c.manifest)).scalars())
    assert segments == used
    assert {entry.name for entry in (knowledge.folder / "segments").iterdir()} == segments
    assert {entry.name for entry in (knowledge.folder / "manifests").iterdir()} == manifests
