"""Other systems in environments of their own, with pinned versions, built when they are missing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedding_cache import default_cache

PEERS = Path(__file__).parent / "peers"


def python_of(name: str) -> Path:
    """The interpreter of the environment that `peers/NAME.txt` pins, in the benchmarks' cache."""
    pins = PEERS / f"{name}.txt"
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = default_cache() / "peers" / f"{name}-{digest}"
    if not (folder / "complete").exists():
        print(f"building the environment of {name} in {folder} (minutes)", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        # The pins are complete; what a peer asks for beyond them, it does not need for what is measured.
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-deps", "--disable-pip-version-check"]
        command += ["-r", str(pins)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (folder / "complete").touch()
    return folder / "bin" / "python"


class Peer:
    """A running `peers/NAME_peer.py`: one line of JSON in, one out."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer to a request. Raises RuntimeError if it ended; what it said is on stderr."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with exit code {self._process.wait()}; its last words are above")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def running(name: str, *arguments: str, environment: Mapping[str, str]) -> Iterator[Peer]:
    """Start a peer and wait until it is ready; it ends with the block."""
    command = [str(python_of(name)), str(PEERS / f"{name}_peer.py"), *arguments]
    # Nothing of our environment reaches it, and it fetches nothing.
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    own |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **environment}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=own)
    try:
        peer = Peer(process)
        peer.answer()
        yield peer
    finally:
        process.kill()
        process.wait()
