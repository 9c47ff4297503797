"""``/v1/admin/jobs``: what runs, how far it is, and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.responses import StreamingResponse

from appliance.admin.acts import Administration
from appliance.errors import ApplianceError
from appliance.gateway.admin_parts import Answer, AskedDomain, Limit, Name, done, supplier
from appliance.gateway.errors import ApiError
from appliance.gateway.events import encoded
from appliance.gateway.health import Lifecycle
from appliance.jobs.jobs import State
from appliance.types import Caller

# Seconds between two looks at a job, and two signs of life while nothing changes.
_LOOK, _ALIVE = 0.5, 15.0


def jobs_router(administration: Administration, lifecycle: Lifecycle, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    router = APIRouter(prefix="/v1/admin/jobs", tags=["Administration: jobs"], responses=responses)
    who = Depends(supplier)

    @router.get("", summary="The newest jobs")
    async def jobs(
        domain: AskedDomain = None,
        state: Annotated[State | None, Query(description="Only those in this state.")] = None,
        limit: Limit = 50,
        caller: Caller = who,
    ) -> list[Answer]:
        """Newest first. A key with the scope `ingest` alone sees its own."""
        return await done(administration.jobs, caller, domain, state, limit)

    @router.get("/{id}", summary="A job: how far it is, the end of its log, its result")
    async def job(id: Name, caller: Caller = who) -> Answer:
        return (await done(administration.job, caller, id)).to_json()

    @router.get(
        "/{id}/events",
        summary="A job's progress as server-sent events",
        response_class=StreamingResponse,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "Events until the job has ended"}
        },
    )
    async def events(id: Name, caller: Caller = who) -> StreamingResponse:
        """An event `job` each time something has changed, and `end` with the last state."""
        await done(administration.job, caller, id)
        return StreamingResponse(_events(administration, lifecycle, caller, id), media_type="text/event-stream")

    @router.post("/{id}/cancel", summary="Cancel a job")
    async def cancel(id: Name, caller: Caller = who) -> Answer:
        """One that waits ends at once, one that runs within seconds. What it had finished stays."""
        return await done(administration.cancel, caller, id)

    return router


async def _events(administration: Administration, lifecycle: Lifecycle, caller: Caller, id: str) -> AsyncGenerator[bytes]:
    before, said = b"", time.monotonic()
    while not lifecycle.draining:
        try:
            await done(administration.own, caller)
            found = await done(administration.job, caller, id)
        except (ApiError, ApplianceError):
            # The job is gone, the key is revoked, or the database is away: the client asks again and is told what.
            return
        now = {key: value for key, value in found.to_json().items() if key != "heartbeat" or found.ended}
        data = encoded(now)
        if data != before:
            yield b"event: " + (b"end" if found.ended else b"job") + b"\ndata: " + data + b"\n\n"
            before, said = data, time.monotonic()
        if found.ended:
            return
        if time.monotonic() - said > _ALIVE:
            yield b": still there\n\n"
            said = time.monotonic()
        await asyncio.sleep(_LOOK)
