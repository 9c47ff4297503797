"""``/v1/expert``: blind scoring over HTTP. Nothing here tells which arm gave an answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.concurrency import run_in_threadpool

from appliance.experts.files import rubric_json
from appliance.experts.tasks import ExpertTasks, NoSuchTask
from appliance.gateway.auth import caller_of
from appliance.gateway.errors import ApiError
from appliance.types import Caller
from eval.experts import BadScore

_Text = Annotated[str, StringConstraints(min_length=1, max_length=50_000, pattern=r"^[^\x00]*$")]
# Strict: `true` would be taken for 1, the worst there is.
_Score = Annotated[int, Field(ge=1, le=5, strict=True)]
_TaskId = Annotated[str, Path(min_length=1, max_length=80, pattern=r"^[^\x00]*$")]
_Run = Annotated[str | None, Query(min_length=1, max_length=80, pattern=r"^[^\x00]*$", description="Only tasks of this run.")]


class Verdict(BaseModel):
    """One answer: every score (`citation` where it names sources). Two answers: a preference. Or else why it cannot be judged."""

    model_config = ConfigDict(extra="forbid")

    correctness: _Score | None = None
    completeness: _Score | None = None
    citation: _Score | None = None
    harm: _Score | None = None
    preference: Literal["a", "b", "tie"] | None = None
    cannot_judge: _Text | None = None
    correction: _Text | None = None
    comment: _Text | None = None


class Side(BaseModel):
    name: Literal["a", "b"]
    answer: str
    sources: list[str]


class Task(BaseModel):
    """What is to be judged: one answer, or two to be compared. `sources` are the documents an answer names."""

    task: str
    kind: Literal["single", "pair"]
    lang: str
    domain: str | None
    question: str
    answers: list[Side]


class Progress(BaseModel):
    """Tasks of this expert: `open`, `done`, `cannot` be judged, `skipped`."""

    open: int
    done: int
    cannot: int
    skipped: int


class Next(BaseModel):
    """`task` is null when there is nothing to judge."""

    task: Task | None
    progress: Progress


class Taken(BaseModel):
    task: str
    state: Literal["new", "changed", "unchanged"]


class Skipped(BaseModel):
    task: str
    state: Literal["skipped"]


def expert(request: Request) -> Caller:
    """A caller with the scope `expert` or `admin`. Raises ApiError 403."""
    caller = caller_of(request)
    if not caller.scopes & {"expert", "admin"}:
        message = "this needs a key with the scope expert; make one with: appliance key create NAME --scope expert"
        raise ApiError(403, message, code="scope_missing")
    return caller


def expert_router(tasks: ExpertTasks, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """The routes of experts; `responses` documents the errors."""
    router = APIRouter(prefix="/v1/expert", tags=["Expert scoring"], responses=responses)
    who = Depends(expert)

    async def progress_of(caller: Caller, run: str | None) -> Progress:
        return Progress(**await run_in_threadpool(tasks.progress, caller.name, caller.scope, run))

    @router.get("/rubric", summary="The criteria and what 1 to 5 mean")
    async def rubric(lang: Literal["en", "zh"] = "en", caller: Caller = who) -> dict[str, Any]:
        return rubric_json(lang)

    @router.post("/next", summary="The next task")
    async def following(run: _Run = None, caller: Caller = who) -> Next:
        """The same one until it is judged or skipped. Taking one keeps it from others for a while."""
        found = await run_in_threadpool(tasks.next, caller.name, caller.scope, run)
        return Next(task=None if found is None else Task(**found), progress=await progress_of(caller, run))

    @router.get("/progress", summary="How far this expert is")
    async def progress(run: _Run = None, caller: Caller = who) -> Progress:
        return await progress_of(caller, run)

    @router.post("/tasks/{task}", summary="Judge a task")
    async def judge(task: _TaskId, body: Verdict, caller: Caller = who) -> Taken:
        """A second judgement replaces the first."""
        try:
            state = await run_in_threadpool(tasks.submit, caller.name, caller.scope, task, body.model_dump())
        except NoSuchTask as error:
            raise _unknown(error) from error
        except BadScore as error:
            raise ApiError(400, str(error), param=error.field, code="invalid_field") from error
        if state == "empty":
            message = "correctness: is missing; give the scores, a preference, or a reason under cannot_judge"
            raise ApiError(400, message, param="correctness", code="invalid_field")
        return Taken(task=task, state=state)  # type: ignore[arg-type]

    @router.post("/tasks/{task}/skip", summary="Leave a task to others")
    async def skip(task: _TaskId, caller: Caller = who) -> Skipped:
        try:
            await run_in_threadpool(tasks.skip, caller.name, caller.scope, task)
        except NoSuchTask as error:
            raise _unknown(error) from error
        return Skipped(task=task, state="skipped")

    return router


def _unknown(error: NoSuchTask) -> ApiError:
    return ApiError(404, str(error), param="task", code="task_not_found")
