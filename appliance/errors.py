"""Errors a person sees, and the exit codes they become."""

from __future__ import annotations

DONE, FAILURE, USAGE, PARTLY, GATE_MISSED = 0, 1, 2, 3, 4


class ApplianceError(Exception):
    """Something failed. The message says what, where, and what to do."""

    exit_code = FAILURE


class UsageError(ApplianceError):
    """The request itself is wrong: unknown domain, missing path, bad option."""

    exit_code = USAGE


class DatabaseFailed(ApplianceError):
    """The database itself fails: locked for too long, damaged, not writable, not reachable."""


class AlteredFiles(ApplianceError):
    """The files of a version are missing, or are not what was registered."""


class GateMissed(ApplianceError):
    """A measured condition was not met."""

    exit_code = GATE_MISSED
