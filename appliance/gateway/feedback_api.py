"""``/v1/feedback``: what a person says about an answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.concurrency import run_in_threadpool

from appliance.answers.feedback import Feedback, UnknownAnswer
from appliance.gateway.auth import caller_of
from appliance.gateway.errors import ApiError

# A NUL is text to JSON, but not to every database.
_WORDS = Annotated[str, StringConstraints(min_length=1, max_length=50_000, pattern=r"^[^\x00]*$")]
_CHAT = "chatcmpl-"


class FeedbackRequest(BaseModel):
    """`id` is an answer's id, or that of its chat completion. Texts that are not sent are taken from what was kept, if anything was."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, StringConstraints(min_length=1, max_length=80, pattern=r"^[^\x00]*$")]
    rating: Literal["up", "down"]
    correction: _WORDS | None = None
    question: _WORDS | None = None
    answer: _WORDS | None = None


def feedback_router(feedback: Feedback, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["Appliance"], responses=responses)

    @router.post("/feedback", summary="Rate or correct an answer")
    async def give(body: FeedbackRequest, request: Request) -> dict[str, str]:
        """Only with the key that got the answer; a second feedback on it replaces the first."""
        answer_id = body.id.removeprefix(_CHAT)
        texts = {"correction": body.correction, "question": body.question, "answer": body.answer}
        try:
            await run_in_threadpool(feedback.give, caller_of(request), answer_id, body.rating, **texts)
        except UnknownAnswer as error:
            raise ApiError(404, str(error), param="id", code="answer_not_found") from error
        return {"id": answer_id, "rating": body.rating}

    return router
