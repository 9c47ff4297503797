"""A process that parses one file in an endless loop and says the number of its child, to be killed or interrupted by a test."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import psutil

from retrieval.isolation import Limits, Parsers


def main(path: str) -> None:
    def tell() -> None:
        while not (children := psutil.Process().children()):
            time.sleep(0.02)
        print(children[0].pid, flush=True)

    threading.Thread(target=tell, daemon=True).start()
    with Parsers(Limits(seconds=300), reader="hostile_reader:parse") as parsers:
        list(parsers.parse(Path(path), "a.html"))


if __name__ == "__main__":
    main(sys.argv[1])
