"""Works on an index, one job per forked process, so that a test can kill it at a named step or at any moment.

A job is a line of JSON on stdin. The answers are ``{"pid"}`` when it has begun and ``{"status"}`` when it has ended: its exit code, or
minus the signal that ended it.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval_support import HashingEmbedder, Knowledge

from appliance.errors import ApplianceError
from appliance.store.trouble import explained
from retrieval import maintain
from retrieval.compact import compact
from retrieval.ingest import ingest
from retrieval.staging import IngestSettings
from retrieval.types import DocumentKey, RetrievalError

SETTINGS = IngestSettings(chunk_tokens=40, chunk_max_tokens=80, segment_chunks=2)
DOMAIN = "medical"
REFUSED = 7
"""The exit code of a job that ended with an error a person can read."""

# What the jobs import as they go, torch among it: imported before the forks, it costs seconds once and not for each kill.
AHEAD = ("charset_normalizer", "datasketch", "faiss", "rjieba", "retrieval.threads", "snowballstemmer")

Step = Callable[[str], None]


def work(knowledge: Knowledge, job: dict[str, Any], step: Step) -> dict[str, Any]:
    """Do one job: ``action`` is ingest (of folder ``docs``), remove (``ids``), rebuild, rollback (to ``generation``) or compact."""
    parts: dict[str, Any] = {"store": knowledge.store, "vectors": knowledge.vectors}
    embedder: HashingEmbedder = knowledge.embedder
    with knowledge.db.lock("index") as lock:
        parts |= {"lock": lock, "step": step}
        match job["action"]:
            case "ingest":
                options: dict[str, Any] = {"domain": DOMAIN, "known_domains": [DOMAIN], "prune": True, "settings": SETTINGS}
                done = ingest([Path(job["docs"])], embedder=embedder, **options, **parts).to_json()
            case "remove":
                done = maintain.remove([DocumentKey(DOMAIN, id) for id in job["ids"]], **parts)
            case "rebuild":
                done = maintain.rebuild(embedder=embedder, settings=SETTINGS, **parts)
            case "rollback":
                maintain.rollback(job["generation"], **parts)
                done = {"generation": job["generation"]}
            case "compact":
                done = compact(**parts)
    return {**done, "passages": embedder.passages}


def _run(job: dict[str, Any]) -> int:
    left = job.get("times", 0)
    steps: list[str] = []

    def step(name: str) -> None:
        nonlocal left
        steps.append(name)
        if name == job.get("kill"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    knowledge = None
    try:
        with explained("appliance.db"):
            knowledge = Knowledge(Path(job["root"]))
        done = work(knowledge, job, step)
    except (ApplianceError, RetrievalError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"the disk is full: {error}", file=sys.stderr)
        return REFUSED
    finally:
        if knowledge is not None:
            knowledge.db.close()
    if job.get("result"):
        Path(job["result"]).write_text(json.dumps({**done, "steps": steps}), "utf-8")
    return 0


def main() -> None:
    for name in AHEAD:
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = _run(job)
            except Exception:  # noqa: BLE001
                traceback.print_exc()
            finally:
                os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
