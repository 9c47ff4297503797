"""The process that parses: it reads requests from its parent and streams what it finds, within limits of time and memory.

The limits are the kernel's (a timer whose signal kills, a limit of the address space), so that they hold in endless loops of C code too.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import json
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from retrieval.parsers import Options, Parsed, ParseError, Skipped
from retrieval.parsers.archive import Member, unpack

Item = Parsed | ParseError | Skipped | Member
Reader = Callable[[Path, str, Options], Iterator[Parsed | ParseError]]
_PR_SET_PDEATHSIG = 1


def serve(arguments: str) -> None:
    """Answers requests until the parent closes the connection. `arguments` is the JSON that `retrieval.isolation` writes."""
    given = json.loads(arguments)
    _die_with_parent(given["parent"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError):  # A lower limit is set already.
        resource.setrlimit(resource.RLIMIT_AS, (given["memory_bytes"], given["memory_bytes"]))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable(logging.CRITICAL)
    module, _, function = given["reader"].partition(":")
    reader: Reader = getattr(importlib.import_module(module), function)
    connection = Connection(given["fd"])
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        timer = _Timer(request["name"], given["seconds"], given["total_seconds"])
        options = Options(**given["options"], alive=timer.alive)
        if not _answer(connection, timer, _items(request, reader, options), given["memory_bytes"]):
            return


def _items(request: dict[str, Any], reader: Reader, options: Options) -> Iterator[Item]:
    path, name = Path(request["path"]), request["name"]
    if request["folder"]:
        return unpack(path, name, Path(request["folder"]))
    return reader(path, name, options)


def _answer(connection: Connection, timer: _Timer, items: Iterator[Item], memory_bytes: int) -> bool:
    """Sends the items and how it ended; returns whether this process is fit for another file."""
    end: dict[str, Any] = {"kind": "done"}
    try:
        timer.start()
        for item in items:
            # While the parent is busy with what it got, time does not count.
            timer.stop()
            _send(connection, item)
            timer.start()
    except ParseError as error:
        end = {"kind": "raised", "error": str(error)}
    except MemoryError:
        end = {"kind": "memory"}
    timer.stop()
    # What one large file left behind must not be held against the next.
    fit = end["kind"] != "memory" and bool(psutil.Process().memory_info().vms < memory_bytes // 2)
    connection.send_bytes(json.dumps({**end, "fit": fit}).encode())
    return fit


def _send(connection: Connection, item: Item) -> None:
    if isinstance(item, ParseError):
        connection.send_bytes(json.dumps({"kind": "failed", "error": str(item)}).encode())
    elif isinstance(item, Skipped):
        connection.send_bytes(json.dumps({"kind": "skipped", "path": item.path, "reason": item.reason}).encode())
    elif isinstance(item, Member):
        connection.send_bytes(json.dumps({"kind": "member", "name": item.name, "path": str(item.path)}).encode())
    else:
        # The text goes on its own: as JSON it would be copied twice more.
        facts = {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.name != "text"}
        connection.send_bytes(json.dumps({"kind": "parsed", **facts}).encode())
        connection.send_bytes(item.text.encode("utf-8"))


class _Timer:
    """Kills this process `seconds` after the last sign of progress."""

    def __init__(self, name: str, seconds: float, total_seconds: float) -> None:
        self._name = name
        self._seconds = seconds
        self._total = total_seconds
        self._left = total_seconds
        self._since = 0.0

    def start(self) -> None:
        self._since = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._left -= time.monotonic() - self._since

    def alive(self) -> None:
        """Starts the time again. Raises ParseError if the whole file has taken too long."""
        self.stop()
        if self._left < 0:
            raise ParseError(f"{self._name}: took more than {self._total:g} s in all; split the file")
        self.start()


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
