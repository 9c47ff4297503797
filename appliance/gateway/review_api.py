"""``/v1/review``: the questions that need a person, for those who administer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.concurrency import run_in_threadpool

from appliance.answers.verified import VerifiedAnswers
from appliance.errors import UsageError
from appliance.experts.review import NoSuchReview, Resolution, ReviewQueue, share_answered
from appliance.gateway.admin_parts import administrator
from appliance.gateway.errors import ApiError
from appliance.store.database import Database
from appliance.types import Caller

_Text = Annotated[str, StringConstraints(min_length=1, max_length=50_000, pattern=r"^[^\x00]*$")]
_Short = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
_Id = Annotated[str, Path(min_length=1, max_length=80, pattern=r"^[^\x00]*$")]
_Domain = Annotated[str | None, Query(min_length=1, max_length=64, pattern=r"^[^\x00]*$", description="Only this domain.")]


class Resolved(BaseModel):
    """What became of a question. `answer`, `documents` and `question` (where its text is not kept) are for "answered", which makes an
    approved answer; `topics` for "missing"; `duplicate_of` for "duplicate".
    """

    model_config = ConfigDict(extra="forbid")

    resolution: Resolution
    answer: _Text | None = None
    documents: Annotated[
        list[Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]], Field(max_length=100)
    ] = []
    question: _Text | None = None
    topics: Annotated[list[_Short], Field(max_length=50)] = []
    duplicate_of: _Short | None = None
    note: Annotated[str, StringConstraints(max_length=5_000, pattern=r"^[^\x00]*$")] = ""
    by: _Short | None = None


def review_router(
    queue: ReviewQueue, database: Database, answers: Callable[[Caller], VerifiedAnswers], responses: dict[int | str, dict[str, Any]]
) -> APIRouter:
    """The routes; `answers` gives the approved answers in a caller's name, `responses` documents the errors."""
    router = APIRouter(prefix="/v1/review", tags=["Review"], responses=responses)
    who = Depends(administrator)

    @router.get("", summary="Questions that need a person")
    async def questions(
        domain: _Domain = None,
        state: Literal["open", "answered", "missing", "out_of_scope", "duplicate", "wont_fix", "all"] = "open",
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        caller: Caller = who,
    ) -> list[dict[str, Any]]:
        """What was asked most often first; `question` is null where its text is not kept."""
        found = await run_in_threadpool(queue.questions, caller.scope, domain, None if state == "all" else state, limit)
        return [one.to_json() for one in found]

    @router.get("/topics", summary="What documents are missing on")
    async def topics(domain: _Domain = None, caller: Caller = who) -> list[dict[str, Any]]:
        return await run_in_threadpool(queue.topics, caller.scope, domain)

    @router.get("/share", summary="The share of questions answered without a person")
    async def share(domain: _Domain = None, caller: Caller = who) -> dict[str, float | int | None]:
        """Neither declined nor rated down, of the answers still on record; with a 95 % interval."""
        allowed = caller.scope.domains
        if domain is not None and allowed is not None and domain not in allowed:
            raise ApiError(403, f"this key may not see the domain {domain!r}", param="domain", code="domain_not_allowed")
        return asdict(await run_in_threadpool(share_answered, database, allowed if domain is None else {domain}))

    @router.get("/{id}", summary="One question and what was said about its answers")
    async def show(id: _Id, caller: Caller = who) -> dict[str, Any]:
        try:
            found, given = await run_in_threadpool(queue.show, caller.scope, id)
        except NoSuchReview as error:
            raise _unknown(error) from error
        said = [
            {"rating": one.rating, "answer": one.answer, "correction": one.correction, "arm": one.arm, "withheld": one.withheld}
            for one in given
        ]
        return {**found.to_json(), "feedback": said}

    @router.post("/{id}", summary="Say what became of a question")
    async def resolve(id: _Id, body: Resolved, caller: Caller = who) -> dict[str, Any]:
        """What was answered or missing is open again when the appliance fails on the same question later."""
        by = body.by or caller.name
        given = [name for name in ("answer", "documents", "question") if getattr(body, name)]
        if given and body.resolution != "answered":
            raise ApiError(400, f"{given[0]}: it is for the resolution answered, and only for it", param=given[0], code="invalid_field")
        try:
            if body.answer is not None:
                verified = answers(caller)
                done = await run_in_threadpool(
                    lambda: queue.answer(
                        verified, caller.scope, id, by, body.answer or "", body.documents, question=body.question, note=body.note
                    )
                )
            else:
                done = await run_in_threadpool(
                    lambda: queue.resolve(
                        caller.scope, id, body.resolution, by, note=body.note, topics=body.topics, duplicate_of=body.duplicate_of
                    )
                )
        except NoSuchReview as error:
            raise _unknown(error) from error
        except UsageError as error:
            raise ApiError(400, str(error), code="invalid_request") from error
        return done.to_json()

    return router


def _unknown(error: NoSuchReview) -> ApiError:
    return ApiError(404, str(error), param="id", code="review_not_found")
