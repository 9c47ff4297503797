"""Searches an index all the time and writes down what it gets, until stdin closes: ``search_worker.py WORKSPACE LOG``."""

from __future__ import annotations

import json
import random
import select
import sys
from pathlib import Path

from retrieval_support import Knowledge

from retrieval.types import Scope

QUESTIONS = ["the rule of paper {n}", "version fee crowns {n}", "第{n}号文件 费用", "term of {n} days 期限"]


def main(root: str, log: str) -> None:
    knowledge = Knowledge(Path(root))
    chosen = random.Random(1)
    index = None
    with Path(log).open("w", encoding="utf-8") as file:
        while not select.select([sys.stdin], [], [], 0)[0]:
            answer: dict[str, object]
            try:
                # A new process opens everything anew; a gateway goes on from what it has open.
                index = knowledge.index() if index is None or chosen.random() < 0.2 else index.refresh()
                found = index.search(chosen.choice(QUESTIONS).format(n=chosen.randint(0, 12)), Scope(), 8)
                answer = {"generation": found.generation, "passages": [[p.document.id, p.chunk.text] for p in found.passages]}
            except Exception as error:  # noqa: BLE001
                answer = {"error": repr(error)}
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")
    knowledge.db.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
