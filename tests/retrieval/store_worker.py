"""Ingests a folder and is killed when a named step is first reached: ``store_worker.py WORKSPACE DOCS STEP [URL]``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from retrieval_support import Knowledge

from retrieval.staging import IngestSettings


def main(workspace: str, docs: str, wanted: str, url: str | None = None) -> None:
    def step(name: str) -> None:
        if name == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    Knowledge(Path(workspace), url=url).ingest(Path(docs), prune=True, settings=IngestSettings(40, 80, segment_chunks=1), step=step)


if __name__ == "__main__":
    main(*sys.argv[1:])
