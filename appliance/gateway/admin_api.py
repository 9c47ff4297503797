"""``/v1/admin``: documents, data sets, training, adapters, trials, approved answers, evaluation and keys of a running appliance."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import Field

from appliance.admin.acts import Administration
from appliance.gateway.admin_jobs import jobs_router
from appliance.gateway.admin_keys import keys_router
from appliance.gateway.admin_parts import (
    Answer,
    AskedDomain,
    DocId,
    Domain,
    Limit,
    Name,
    Offset,
    Strict,
    Text,
    Word,
    administrator,
    done,
)
from appliance.gateway.admin_uploads import uploads_router
from appliance.gateway.errors import ErrorBody
from appliance.gateway.health import Lifecycle
from appliance.types import Caller

_MORE: dict[int | str, dict[str, Any]] = {
    403: {"model": ErrorBody, "description": "The key lacks the scope, the domain or a label"},
    404: {"model": ErrorBody, "description": "Nothing of this name that this key may know of, or administration is on another port"},
    409: {"model": ErrorBody, "description": "Somebody else is at it, or a gate stands in the way"},
    503: {"model": ErrorBody, "description": "The database cannot be used, or there is no space left"},
}


class Documents(Strict):
    domain: Domain
    documents: Annotated[list[DocId], Field(min_length=1, max_length=200)]


class Generation(Strict):
    generation: Annotated[int, Field(ge=1, lt=2**31)]


class TuneRequest(Strict):
    """`settings` are those of a training file, such as ``{"rank": 16, "epochs": 3}``. With `promote` the version goes live if it passes."""

    domain: Domain
    dataset: Word | None = None
    method: Word | None = None
    settings: Annotated[dict[Word, bool | int | float | str | list[Word] | None], Field(max_length=50, default_factory=dict)]
    promote: bool = False


class Reason(Strict):
    """`why` is the reason to go on without the gate, which is recorded."""

    why: Text | None = None


class CanaryRequest(Strict):
    """`share` of the questions, above 0 and at most 1; `why` is the reason to try a version without the gate."""

    version: Word
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    why: Text | None = None


class InDomain(Strict):
    domain: Domain


class Approval(Strict):
    """`documents` are those the answer rests on."""

    domain: Domain
    question: Text
    answer: Text
    approved_by: Word
    documents: Annotated[list[DocId], Field(max_length=100, default_factory=list)]


class EvalRequest(Strict):
    """`arms` is ``all`` or a comma-separated list, `split` one of the data set's, or ``all``."""

    dataset: Word
    arms: Word = "all"
    split: Word = "test"
    limit: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=32_768)] = 64


def admin_router(administration: Administration, lifecycle: Lifecycle, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """Every route of ``/v1/admin``; `responses` documents the errors."""
    documented = {**responses, **_MORE}
    router = APIRouter()
    router.include_router(uploads_router(administration, documented))
    router.include_router(jobs_router(administration, lifecycle, documented))
    router.include_router(_knowledge(administration, documented))
    router.include_router(_adapters(administration, documented))
    router.include_router(_quality(administration, documented))
    router.include_router(keys_router(administration, documented))
    return router


def _knowledge(admin: Administration, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    router = APIRouter(prefix="/v1/admin", tags=["Administration: knowledge"], responses=responses)
    who = Depends(administrator)

    @router.get("/documents", summary="The live documents")
    async def documents(domain: AskedDomain = None, limit: Limit = 100, offset: Offset = 0, caller: Caller = who) -> Answer:
        """By domain and id; `next` is the offset to go on with. What carries labels that the key does not hold is left out."""
        return await done(admin.documents, caller, domain, limit, offset)

    @router.post("/documents/remove", summary="Delete documents for good", status_code=202)
    async def remove(body: Documents, caller: Caller = who) -> Answer:
        """A job; its result names the adapters that were trained on them."""
        return await done(admin.remove_documents, caller, body.domain, body.documents)

    @router.get("/index", summary="The live generation and what is wrong with it")
    async def index(caller: Caller = who) -> Answer:
        return await done(admin.index, caller)

    @router.post("/index/rollback", summary="Make an older generation live again", status_code=202)
    async def rollback(body: Generation, caller: Caller = who) -> Answer:
        """A job. Documents that were deleted since stay deleted."""
        return await done(admin.index_job, caller, "index-rollback", {"generation": body.generation})

    @router.post("/index/rebuild", summary="Make the index anew from the stored texts", status_code=202)
    async def rebuild(caller: Caller = who) -> Answer:
        return await done(admin.index_job, caller, "index-rebuild", {})

    @router.post("/index/compact", summary="Merge segments and purge what was deleted", status_code=202)
    async def compact(caller: Caller = who) -> Answer:
        return await done(admin.index_job, caller, "index-compact", {})

    @router.get("/datasets", summary="The live versions of the data sets")
    async def datasets(caller: Caller = who) -> list[Answer]:
        return await done(admin.datasets, caller)

    @router.post("/datasets/{name}/check", summary="What is wrong with a data set", status_code=202)
    async def check(name: Name, caller: Caller = who) -> Answer:
        """A job; its result has the findings by kind. Their texts are shown by `appliance dataset check` alone."""
        return await done(admin.check_dataset, caller, name)

    return router


def _adapters(admin: Administration, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    router = APIRouter(prefix="/v1/admin", tags=["Administration: adapters"], responses=responses)
    who = Depends(administrator)

    @router.post("/tune", summary="Train an adapter", status_code=202)
    async def tune(body: TuneRequest, caller: Caller = who) -> Answer:
        """A job. A job that is cancelled or broken off goes on from its last checkpoint when the same is asked for again."""
        return await done(admin.tune, caller, body.domain, body.dataset, body.method, body.settings, body.promote)

    @router.post("/retrain", summary="Train from the newest data now, as on schedule", status_code=202)
    async def retrain(body: InDomain, caller: Caller = who) -> Answer:
        return await done(admin.retrain, caller, body.domain)

    @router.get("/adapters", summary="The adapter versions")
    async def adapters(domain: AskedDomain = None, caller: Caller = who) -> list[Answer]:
        return await done(admin.adapters, caller, domain)

    @router.get("/adapters/{version}", summary="Everything recorded about a version")
    async def adapter(version: Name, caller: Caller = who) -> Answer:
        return await done(admin.adapter, caller, version)

    @router.get("/adapters/{version}/gates", summary="What was measured when a version was to go live")
    async def gates(version: Name, caller: Caller = who) -> list[Answer]:
        return await done(admin.gates, caller, version)

    @router.post("/adapters/{version}/promote", summary="Make a version live if it passes the gate", status_code=202)
    async def promote(version: Name, body: Reason, caller: Caller = who) -> Answer:
        """A job; its state is `missed` where the gate was."""
        return await done(admin.promote, caller, version, body.why)

    @router.post("/adapters/rollback", summary="Go back to the version that was live before")
    async def rollback(body: InDomain, caller: Caller = who) -> Answer:
        return await done(admin.rollback, caller, body.domain)

    @router.get("/canaries", summary="Versions on trial, and their figures")
    async def canaries(domain: AskedDomain = None, caller: Caller = who) -> list[Answer]:
        return await done(admin.canaries, caller, domain)

    @router.post("/canaries", summary="Try a version on a share of the questions", status_code=202)
    async def start(body: CanaryRequest, caller: Caller = who) -> Answer:
        """A job, which measures the gate first; its state is `missed` where that was."""
        return await done(admin.start_canary, caller, body.version, body.share, body.why)

    @router.post("/canaries/stop", summary="End the trial in a domain")
    async def stop(body: InDomain, caller: Caller = who) -> Answer:
        return await done(admin.stop_canary, caller, body.domain)

    return router


def _quality(admin: Administration, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    router = APIRouter(prefix="/v1/admin", tags=["Administration: answers"], responses=responses)
    who = Depends(administrator)

    @router.get("/verified", summary="The approved answers")
    async def verified(domain: AskedDomain = None, caller: Caller = who) -> list[Answer]:
        return await done(admin.verified, caller, domain)

    @router.post("/verified", summary="Approve an answer", status_code=201)
    async def approve(body: Approval, caller: Caller = who) -> Answer:
        return await done(admin.approve, caller, body.domain, body.question, body.answer, body.documents, body.approved_by)

    @router.delete("/verified/{id}", summary="Withdraw an approved answer")
    async def withdraw(id: Name, caller: Caller = who) -> Answer:
        return await done(admin.withdraw, caller, id)

    @router.get("/evals", summary="The evaluation runs")
    async def runs(caller: Caller = who) -> list[Answer]:
        return await done(admin.runs, caller)

    @router.get("/evals/{id}", summary="The summary of a run")
    async def run(id: Name, caller: Caller = who) -> Answer:
        return await done(admin.run, caller, id)

    @router.post("/evals", summary="Measure arms on a data set", status_code=202)
    async def evaluate(body: EvalRequest, caller: Caller = who) -> Answer:
        """A job; its result has the `run_id`."""
        return await done(admin.evaluate, caller, body.dataset, body.arms, body.split, body.limit, body.max_tokens)

    return router
