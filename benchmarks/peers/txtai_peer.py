"""txtai keeping an index of chunks (SQLite and FAISS) up to date, in its own environment.

It neither cuts documents nor notices what changed: ``txtai_peer.py MODEL STORE SETTINGS`` is given the chunks of a file of rows
{"id", "text"} and the ids that are gone, and answers each line {"rows": …, "gone": [ids]} with {"seconds": …, "cpu_seconds": …,
"chunks": …}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def make(model: str, settings: dict[str, Any]) -> Any:
    from txtai import Embeddings

    made = Embeddings(
        path=model,
        method="transformers",
        content=True,
        gpu=False,
        encodebatch=settings["batch"],
        instructions={"query": "query: ", "data": "passage: "},
    )
    made.transform("A first text, so that nothing is measured twice. 第一段。")
    return made


def main(model: str, store: str, settings: str) -> None:
    # What the libraries print is talk.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    embeddings = make(model, json.loads(settings))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        rows = [json.loads(row) for row in Path(request["rows"]).read_text("utf-8").splitlines()]
        began, worked = time.perf_counter(), time.process_time()
        if request["gone"]:
            embeddings.delete(request["gone"])
        if rows:
            embeddings.upsert((row["id"], row["text"], None) for row in rows)
        embeddings.save(store)
        taken = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}
        print(json.dumps({**taken, "chunks": embeddings.count()}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
