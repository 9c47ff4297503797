"""The number of jobs by kind and state, as the gateway's metrics show it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.jobs.counts import JobCounts
from appliance.jobs.jobs import STATES, Jobs
from appliance.jobs.kinds import KINDS
from appliance.workspace import Workspace


def _watched(counts: JobCounts, until: Callable[[], bool]) -> None:
    async def watch() -> None:
        task = asyncio.create_task(counts.run())
        async with asyncio.timeout(20):
            while not until():  # noqa: ASYNC110 (what changes is another thread's)
                await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(watch())


def test_every_kind_and_state_is_counted_from_the_start(tmp_path: Path) -> None:
    with Workspace.create(tmp_path / "w") as workspace:
        jobs, counts = Jobs(workspace.db), JobCounts(workspace.db)
        assert counts.found() == {}
        first, _ = jobs.add("tune", {}, "medical"), jobs.add("tune", {}, "medical")
        jobs.finish(first.id, "failed", error="病历不可读")
        _watched(counts, lambda: bool(counts.found()))
        found = counts.found()
    assert set(found) == {(kind, state) for kind in KINDS for state in STATES}
    assert found["tune", "failed"] == found["tune", "queued"] == 1 and sum(found.values()) == 2


def test_a_database_that_cannot_be_read_costs_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    with Workspace.create(tmp_path / "w") as workspace:
        counts, tries = JobCounts(workspace.db), []
        look = counts.look

        def failing() -> None:
            tries.append(1)
            if len(tries) == 1:
                raise OSError("disk I/O error")
            look()

        monkeypatch.setattr("appliance.jobs.counts._EVERY", 0.01)
        monkeypatch.setattr(counts, "look", failing)
        _watched(counts, lambda: bool(counts.found()))
    assert "the jobs cannot be counted: disk I/O error" in caplog.text
