"""``/v1/admin/uploads``, and what takes the files: ingest and data sets."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from appliance.admin.acts import Administration
from appliance.admin.uploads import Incoming, Purpose
from appliance.gateway.admin_parts import Answer, Domain, Name, Strict, Word, Words, done, supplier
from appliance.types import Caller
from finetune.types import Task

PATH = "/v1/admin/uploads"
# Bytes gathered before they are written: each change of threads costs.
_BLOCK = 1 << 20
# Files that are looked into at once: each takes a process with up to a gigabyte.
_CHECKING = 2
_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}}


class IngestRequest(Strict):
    """`uploads` are ids of files that wait. `labels` are those one must hold to see the documents."""

    uploads: Annotated[list[Word], Field(min_length=1, max_length=200)]
    domain: Domain | None = None
    labels: Words
    archives: bool = False


class DatasetRequest(Strict):
    """`mapping` names the file's columns: ``{"question": "instruction"}``; without it they are guessed."""

    upload: Word
    name: Word | None = None
    domain: Domain | None = None
    mapping: dict[Word, Word] | None = None
    task: Task | None = None
    skip_bad: bool = False


def uploads_router(administration: Administration, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    router = APIRouter(prefix="/v1/admin", tags=["Administration: bringing in"], responses=responses)
    who, checking = Depends(supplier), asyncio.Semaphore(_CHECKING)

    @router.post("/uploads", summary="Send a file", status_code=201, openapi_extra=_BODY)
    async def upload(
        request: Request,
        name: Annotated[str, Query(min_length=1, max_length=500, description="A relative path; it becomes the document's id.")],
        purpose: Annotated[Purpose, Query(description="What the file is for.")] = "documents",
        caller: Caller = who,
    ) -> Answer:
        """The body is the file itself. It is written to a quarantine, checked by its content (not only by its name), and waits there for
        a day for `ingest` or `datasets`; a file that is refused is removed at once."""
        uploads = administration.receiver(caller)
        with ExitStack() as stack:
            incoming = await done(lambda: stack.enter_context(uploads.receive(name, purpose)))
            await _receive(request, incoming)
            async with checking:
                taken = await done(uploads.release, incoming, caller.name)
        return taken.to_json()

    @router.get("/uploads", summary="This key's files that wait")
    async def waiting(caller: Caller = who) -> list[Answer]:
        return await done(administration.uploads, caller)

    @router.delete("/uploads/{id}", summary="Remove a file that waits")
    async def drop(id: Name, caller: Caller = who) -> Answer:
        return await done(administration.drop, caller, id)

    @router.post("/ingest", summary="Bring uploaded files into the knowledge base", status_code=202)
    async def ingest(body: IngestRequest, caller: Caller = who) -> Answer:
        """A job. A new domain is created; a file whose name a document of the domain has replaces it."""
        return await done(administration.ingest, caller, body.uploads, body.domain, body.labels, body.archives)

    @router.post("/datasets", summary="Register an uploaded file as a data set", status_code=202)
    async def add(body: DatasetRequest, caller: Caller = who) -> Answer:
        """A job; its result shows the columns that were taken, the counts, and every row that cannot be used."""
        return await done(administration.add_dataset, caller, body.upload, body.name, body.domain, body.mapping, body.task, body.skip_bad)

    return router


async def _receive(request: Request, incoming: Incoming) -> None:
    """Write the body to the quarantine in large pieces, outside the event loop."""
    pending = bytearray()
    async for chunk in request.stream():
        pending += chunk
        if len(pending) >= _BLOCK:
            await run_in_threadpool(incoming.write, bytes(pending))
            pending.clear()
    await run_in_threadpool(incoming.write, bytes(pending))
