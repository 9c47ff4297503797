"""Telling a process from a later one of the same number."""

from __future__ import annotations

import sys
from pathlib import Path


def started(pid: int) -> str:
    """When a process was started, in words that no setting of the clock changes and no other boot repeats.

    '' if there is none, or only what is left of one that was killed and whose parent has not taken note yet. Without ``:``.
    """
    if sys.platform != "linux":
        return _elsewhere(pid)
    try:
        # proc(5): what follows the name, which may hold anything, is state, …, and in the 22nd place the start in ticks since the boot.
        state, *rest = Path(f"/proc/{pid}/stat").read_text("latin-1").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state in "ZX" else f"{rest[18]}-{boot()}"


def boot() -> str:
    """What tells this boot of the machine from others, '' where nothing does; `started` ends with it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii")[:8]
    except OSError:
        return ""


def _elsewhere(pid: int) -> str:
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
