"""Parsing at arm's length: one hostile file costs one error, never the process that ingests.

Formats whose libraries do much (PDF, Office, HTML, tables, archives) are read by a child process with limits of time and memory; it serves
many files and is replaced when it died or grew. JSONL, and plain text and Markdown in UTF-8, stay in this process: what reads them is
`bytes.decode` and `json.loads` of the standard library, which take linear time and a known multiple of a size that is checked before; a
large text is then held once, not twice. Text in other encodings, which have to be guessed, goes to the child.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from retrieval import parsers
from retrieval.parsers import Options, Parsed, ParseError, Skipped
from retrieval.parsers.archive import Member
from retrieval.parsers.plain import is_utf8
from retrieval.types import RetrievalError

_WAIT_SECONDS = 5.0
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from retrieval.parsers.child import serve; serve(sys.argv[2])"
# Threads and their heaps would count as memory of the parser.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What reading one file may take: `seconds` from one document, page or sheet to the next, `total_seconds` for all of them, and
    `memory_bytes` of address space for the parsing process (about 100 MB of it are Python and the libraries)."""

    seconds: float = 60.0
    total_seconds: float = 3600.0
    memory_bytes: int = 1 << 30


class Parsers:
    """Reads files of every format; a context manager that owns at most one child process, started when it is first needed.

    `waiting` is called every few seconds while the child works. `reader` names the function the child parses with, as "module:function".
    Not for several threads at once.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        options: Options | None = None,
        waiting: Callable[[], None] = lambda: None,
        reader: str = "retrieval.parsers:parse",
    ) -> None:
        self._waiting = waiting
        self._limits = limits or Limits()
        self._options = options or Options()
        self._reader = reader
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Parsers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def parse(self, path: Path, name: str) -> Iterator[Parsed | ParseError | Skipped]:
        """The documents of a file in order, as `retrieval.parsers.parse` gives them; those of an archive have ids "name/inner/path".

        Raises ParseError if the file cannot be read as a whole: damaged, over a limit, or the end of the child.
        """
        if not parsers.is_archive(path):
            yield from self._file(path, name)
            return
        with tempfile.TemporaryDirectory(prefix="archive-") as folder:
            for member in list(self._ask(path, name, folder)):
                if not isinstance(member, Member):
                    yield member
                    continue
                inner = f"{name}/{member.name}"
                try:
                    for found in self._file(member.path, inner):
                        yield replace(found, id=inner) if isinstance(found, Parsed) and found.id is None else found
                except ParseError as error:
                    yield error
                member.path.unlink()

    def close(self) -> None:
        """End the child process, whatever it is doing."""
        if self._process is not None:
            self._end(self._process)
        if self._connection is not None:
            self._connection.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._process = self._connection = self._folder = None

    def _file(self, path: Path, name: str) -> Iterator[Parsed | ParseError | Skipped]:
        kind = parsers.SUFFIXES.get(path.suffix.lower())
        if kind == "jsonl" or (kind == "plain" and is_utf8(path)):
            yield from parsers.parse(path, name, self._options)
            return
        for item in self._ask(path, name):
            if not isinstance(item, Member):
                yield item

    def _ask(self, path: Path, name: str, folder: str = "") -> Iterator[Parsed | ParseError | Skipped | Member]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        connection = self._connection or self._start()
        fit = False
        try:
            connection.send_bytes(json.dumps({"path": str(path.absolute()), "name": name, "folder": folder}).encode())
            while True:
                while not connection.poll(_WAIT_SECONDS):
                    self._waiting()
                message = json.loads(connection.recv_bytes())
                kind = message.pop("kind")
                if kind in ("done", "raised", "memory"):
                    fit = message["fit"]
                    break
                yield _item(kind, message, connection)
        except (EOFError, OSError) as error:
            raise ParseError(self._obituary(name)) from error
        finally:
            if not fit:
                self.close()
        if kind == "raised":
            raise ParseError(message["error"])
        if kind == "memory":
            raise ParseError(f"{name}: needed more than {_size(self._limits.memory_bytes)} of memory; {_MORE} parse_memory_mb")

    def _start(self) -> Connection:
        self._folder = tempfile.TemporaryDirectory(prefix="parsers-", ignore_cleanup_errors=True)
        here, there = socket.socketpair()
        with here, there, (Path(self._folder.name) / "stderr").open("wb") as stderr:
            arguments = {
                "fd": there.fileno(),
                "parent": os.getpid(),
                "reader": self._reader,
                "seconds": self._limits.seconds,
                "total_seconds": self._limits.total_seconds,
                "memory_bytes": self._limits.memory_bytes,
                "options": {"ocr": self._options.ocr, "ocr_languages": self._options.ocr_languages},
            }
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _START, json.dumps(sys.path), json.dumps(arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[there.fileno()],
                env={**os.environ, **_ENVIRONMENT, "TMPDIR": self._folder.name},
                # Out of reach of the terminal's Ctrl-C: this process ends it, and its children with it.
                start_new_session=True,
            )
            self._connection = Connection(here.detach())
        return self._connection

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> int:
        """Kills the child and what it started; the exit code is the one it had if it was dead already."""
        if process.returncode is None:
            # The group, because OCR is a process of its own; not yet waited for, so that the number is still ours.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def _obituary(self, name: str) -> str:
        """Why the child died, for the file it was reading."""
        process, folder = self._process, self._folder
        if process is None or folder is None:
            raise RetrievalError("the parsing process was closed while it was reading")
        code = self._end(process)
        if code == -signal.SIGALRM:
            return f"{name}: took more than {self._limits.seconds:g} s without progress; {_MORE} parse_seconds"
        if code == -signal.SIGKILL:
            return f"{name}: the parser was killed (signal 9), most likely because the machine ran out of memory; split the file"
        if code < 0:
            crash = f"the parser crashed (signal {-code}, {signal.Signals(-code).name})"
            return f"{name}: {crash}; open the file in its own program and save it again"
        said = (Path(folder.name) / "stderr").read_text("utf-8", "replace").strip().rpartition("\n")[2]
        return f"{name}: the parser ended (exit code {code}): {said or 'it said nothing'}"


_MORE = "split the file, or raise [ingest]"


def _item(kind: str, message: dict[str, Any], connection: Connection) -> Parsed | ParseError | Skipped | Member:
    if kind == "failed":
        return ParseError(message["error"])
    if kind == "skipped":
        return Skipped(message["path"], message["reason"])
    if kind == "member":
        return Member(message["name"], Path(message["path"]))
    message["pages"] = tuple((start, end, page) for start, end, page in message["pages"])
    message["warnings"] = tuple(message["warnings"])
    return Parsed(**message, text=connection.recv_bytes().decode("utf-8"))


def _size(count: int) -> str:
    return f"{count / (1 << 30):g} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"
