"""Ingests a folder and dies at the n-th time a named step is reached: ``crash_worker.py WORKSPACE DOCS STEP N``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from retrieval_support import Knowledge

from retrieval.staging import IngestSettings


def main(workspace: str, docs: str, wanted: str, times: str) -> None:
    left = int(times)

    def step(name: str) -> None:
        nonlocal left
        if name == wanted:
            left -= 1
            if left == 0:
                os._exit(9)

    Knowledge(Path(workspace)).ingest(Path(docs), prune=True, settings=IngestSettings(40, 80, segment_chunks=1), step=step)


if __name__ == "__main__":
    main(*sys.argv[1:])
