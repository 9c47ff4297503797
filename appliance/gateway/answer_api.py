"""``/v1/answer`` and ``/v1/documents``: the appliance's own form of an answer, and the passage behind a citation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import JSONResponse, Response

from appliance.engines.base import Message
from appliance.gateway.auth import caller_of
from appliance.gateway.desk import Desk
from appliance.gateway.errors import ApiError
from appliance.gateway.events import finished
from appliance.gateway.target import ChosenArm, Labels, Words, check_domain, narrowing
from appliance.gateway.trace import trace_of
from appliance.types import Caller, answer_json
from appliance.types import Request as Question
from router.types import Constraints

# (domain, document id, start, end, caller) -> the passage with its surroundings, or None where the caller sees no such document.
Passage = Callable[[str, str, int, int, Caller], dict[str, Any] | None]

Offset = Annotated[int, Query(ge=0, lt=2**31)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Turn(_Strict):
    role: Literal["user", "assistant"]
    content: Words


class Conditions(_Strict):
    must_cite: bool = False
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("the question must not be empty")
    return text


class AnswerRequest(_Strict):
    question: Annotated[str, StringConstraints(min_length=1), AfterValidator(_not_blank)]
    history: list[Turn] = []
    domain: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    arm: ChosenArm = "auto"
    labels: Labels | None = None
    constraints: Conditions = Conditions()


def answer_router(desk: Desk, passage: Passage, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """The routes; `passage` looks a citation's text up, `responses` documents the errors."""
    answering = desk.answering
    router = APIRouter(prefix="/v1", tags=["Appliance"], responses=responses)

    @router.post("/answer", summary="Answer one question")
    async def answer(body: AnswerRequest, request: Request) -> Response:
        """The same JSON as `appliance ask --json`: the answer, its citations, what no passage supports, the decision and its reasons."""
        caller = caller_of(request)
        if body.domain is not None:
            await answering.look(check_domain, answering, caller, body.domain, "domain")
        history = tuple(Message(role=turn.role, content=turn.content) for turn in body.history)
        constraints = Constraints(body.constraints.must_cite, body.constraints.max_latency_ms)
        labels = narrowing(caller, body.labels, "labels")
        question = Question(body.question, history, body.domain, body.arm, constraints, labels=labels)
        events = desk.ask(trace_of(request.scope), question, caller)
        return JSONResponse(answer_json(await finished(request.receive, events)))

    @router.get("/documents/{domain}/{id:path}", summary="A citation's passage in its context")
    async def document(domain: str, id: str, start: Offset, end: Offset, request: Request) -> Response:
        """Offsets are Unicode code points of the document's text, as in a citation: `quote` is the text from `start` to `end`, `before` and
        `after` surround it."""
        caller = caller_of(request)
        if end < start:
            raise ApiError(400, f"end: must not be before start ({end} < {start})", param="end", code="invalid_field")
        await answering.look(check_domain, answering, caller, domain, "domain")
        # No document id has a NUL, and some databases refuse to look for one.
        found = None if "\0" in id else await answering.look(passage, domain, id, start, end, caller)
        if found is None:
            message = f"there is no such passage of {id!r} in {domain!r} that this key may see"
            raise ApiError(404, message, param="id", code="document_not_found")
        return JSONResponse(found)

    return router
