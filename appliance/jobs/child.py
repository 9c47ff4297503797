"""The process of a job: the command line, ended when the worker that started it is gone."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Let the kernel send SIGTERM to this process when the thread that started it ends; on other systems nothing does."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        # It was gone before the kernel knew.
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """``python -c … PARENT ARGUMENTS``: run the command line with the arguments."""
    parent, *arguments = sys.argv[1:]
    end_with_parent(int(parent))
    from appliance.cli.main import main as command_line

    command_line(arguments)
