"""How many threads a computation takes. Loads torch.

OpenMP keeps a team of threads for every thread that ever computed with more than one. Once all teams together are larger than the machine,
their members sleep between two products instead of staying awake for the next one (libgomp, GOMP_SPINCOUNT), and a token of a small model
takes twice as long (measured in docs/local-engine.md). So whatever is short computes alone, and what is long has a team only meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# omp_pause_hard of OpenMP 5.0, section 3.2.44: free everything, the team too.
_HARD = 2


def cores() -> int:
    """How many threads this process may have: OMP_NUM_THREADS, else the cores it may run on."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def alone() -> None:
    """The calling thread, and every thread that has not computed yet, computes with one thread from now on."""
    torch.set_num_threads(1)


def take(count: int) -> None:
    """The calling thread computes with `count` threads from now on, those that have not computed yet with one."""
    # A thread that was never asked takes the default when it first computes, whatever was set before (ATen/ParallelOpenMP.cpp).
    torch.get_num_threads()
    torch.set_num_threads(count)
    # What a thread sets is that default.
    last = threading.Thread(target=alone)
    last.start()
    last.join()


@contextmanager
def together() -> Iterator[None]:
    """The calling thread computes with all `cores` meanwhile, and alone afterwards."""
    take(cores())
    try:
        yield
    finally:
        alone()
        _dismiss()


def _dismiss() -> None:
    """The team of the calling thread ends. Elsewhere than on Linux it stays, which costs speed only."""
    library = _openmp() if sys.platform == "linux" else None
    if library is not None:
        library.omp_pause_resource_all(_HARD)


def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch brings and has loaded."""
    found = next(iter(sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))), None)
    return None if found is None else ctypes.CDLL(str(found))
