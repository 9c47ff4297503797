"""What the worker goes on with all the time: jobs, versions on trial, and files that nobody took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from appliance.adapters.canary_watch import watch
from appliance.adapters.registry import Registry
from appliance.admin.uploads import Uploads
from appliance.jobs.jobs import Job
from appliance.jobs.runner import Runner
from appliance.workspace import Workspace

# Seconds between two looks at the figures of the versions on trial, and two at forgotten uploads.
_WATCH, _EXPIRE = 1.0, 600.0


class Background:
    """Takes up the jobs of a killed worker; `report` gets the name and outcome of all that ends."""

    def __init__(self, workspace: Workspace, report: Callable[[str, dict[str, Any]], None]) -> None:
        self._report = report
        self._registry = Registry(workspace)
        self._uploads = Uploads(workspace)
        self._watched = self._expired = float("-inf")
        self._runner = Runner(workspace, self._job_ended)

    def step(self) -> bool:
        """Go on; False if no job waits or runs."""
        now = time.monotonic()
        if now >= self._watched + _WATCH:
            self._watched = now
            for ended in watch(self._registry):
                self._report(f"canary {ended['domain']}", {**ended, "kind": "canary", "outcome": ended["state"]})
        if now >= self._expired + _EXPIRE:
            self._expired = now
            self._uploads.expire()
        return self._runner.step()

    def close(self) -> None:
        """End the processes of the jobs, which wait for the next worker."""
        self._runner.close()

    def _job_ended(self, job: Job) -> None:
        facts = {"job": job.id, "kind": job.kind, "domain": job.domain, "outcome": job.state}
        self._report(f"job {job.id}", facts if job.error is None else {**facts, "error": job.error})
