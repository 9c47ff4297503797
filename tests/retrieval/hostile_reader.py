"""What the parsing process calls in the tests: the real parsers, and files whose text says what goes wrong."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from retrieval.parsers import Options, Parsed, ParseError
from retrieval.parsers import parse as real_parse


def parse(path: Path, name: str, options: Options) -> Iterator[Parsed | ParseError]:
    what = path.read_text("utf-8", "replace") if path.suffix == ".html" else ""
    if what.startswith("hostile"):
        yield from _misbehave(what.split()[1], name, options)
    else:
        yield from real_parse(path, name, options)


def _misbehave(what: str, name: str, options: Options) -> Iterator[Parsed | ParseError]:
    if what == "loop":
        while True:
            pass
    elif what == "loop-in-c":
        # Holds the interpreter's lock: no thread of this process could end it.
        bytes(1 << 24).count(b"\0" * (1 << 20) + b"\1")
        sum(range(1 << 62))
    elif what == "memory":
        hoard = []
        while True:
            hoard.append(bytearray(1 << 24))
    elif what == "crash":
        ctypes.string_at(0)
    elif what == "exit":
        print("library gives up", file=sys.stderr)
        os._exit(3)
    elif what == "noise":
        print("this is no message of the protocol", flush=True)
        yield Parsed("noise", "安静 quiet", name)
    elif what == "rows":
        for number in range(20_000):
            yield (
                ParseError(f"{name}: row {number}") if number == 7 else Parsed("r", "行" * 500, name, id=str(number), meta={"n": [number]})
            )
    elif what == "rows-then-crash":
        yield Parsed("r", "first", name, id="1")
        ctypes.string_at(0)
    elif what == "slow":
        for _ in range(8):
            time.sleep(0.25)
            options.alive()
        yield Parsed("slow", "done", name)
    elif what == "modules":
        heavy = [module for module in ("torch", "faiss", "transformers", "numpy", "sqlalchemy", "appliance") if module in sys.modules]
        yield Parsed("modules", f"{os.getpid()} {' '.join(heavy)}", name)
