"""``/v1/chat/completions`` and ``/v1/models`` in OpenAI's form."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema
from starlette.responses import JSONResponse, Response

from appliance.engines.base import Message, Sampling
from appliance.gateway.auth import caller_of
from appliance.gateway.desk import Desk
from appliance.gateway.errors import ApiError
from appliance.gateway.events import EventStream, encoded, finished, frame
from appliance.gateway.target import ChosenArm, Labels, Words, model_ids, narrowing, resolve
from appliance.gateway.trace import trace_of
from appliance.types import Answer, Decided, Event, Finished, Text, answer_json
from appliance.types import Request as Question
from router.types import Constraints


def _joined(content: Any) -> Any:
    """A list of text parts as one string; anything else is left for validation."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError('expected a string or a list of {"type": "text", "text": "…"}; other parts cannot be read')
    return "\n".join(part["text"] for part in content)


_PART = {"type": "object", "properties": {"type": {"const": "text"}, "text": {"type": "string"}}, "required": ["type", "text"]}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]}
_STOP = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 4}]}

StopList = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=200)]],
    Field(max_length=4),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    WithJsonSchema(_STOP),
]


def _refused(value: Any) -> Any:
    if value:
        raise ValueError("this is not supported; leave it out")
    return value


def _text_only(value: Any) -> Any:
    return value if isinstance(value, dict) and value.get("type") == "text" else _refused(value)


# Fields that mean nothing here (user, store, penalties) are ignored, but not those that would change what the answer looks like.
Unsupported = Annotated[Any, AfterValidator(_refused)]


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ChatMessage(_Lenient):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Words | None, BeforeValidator(_joined), WithJsonSchema(_CONTENT)] = None


class ChatOptions(BaseModel):
    """What is asked of the appliance beyond OpenAI's fields."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    domain: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    arm: ChosenArm | None = None
    must_cite: bool = False
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    labels: Labels | None = None


class StreamOptions(_Lenient):
    include_usage: bool = False


class ChatRequest(_Lenient):
    """The last message is the question, the turns before it are its history, system messages are added to the appliance's own."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopList | None = None
    n: Literal[1] | None = 1
    tools: Unsupported = None
    functions: Unsupported = None
    logprobs: Unsupported = None
    audio: Unsupported = None
    response_format: Annotated[Any, AfterValidator(_text_only)] = None
    appliance: ChatOptions = ChatOptions()

    def turns(self) -> tuple[str, tuple[Message, ...], str | None]:
        """Question, history and system message; raises ApiError unless the last turn is a question by the user."""
        system = [message.content for message in self.messages if message.role in ("system", "developer") and message.content]
        turns = [
            Message(role=message.role, content=message.content or "") for message in self.messages if message.role in ("user", "assistant")
        ]
        if not turns or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
            raise ApiError(
                400, "messages: the last message must be the user's question, and not empty", param="messages", code="no_question"
            )
        return turns[-1]["content"], tuple(turns[:-1]), "\n\n".join(system) or None

    def sampling(self, default: Sampling) -> Sampling | None:
        """`default` with what the request sets, or None when it sets nothing."""
        given: dict[str, Any] = {
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": tuple(self.stop) if self.stop else None,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        return replace(default, **changes) if changes else None


class Chunks:
    """Renders events as frames of ``chat.completion.chunk`` objects; the one with `finish_reason` carries the ``appliance`` field.

    The chunks of text differ in nothing but the text: what stands around it is made once.
    """

    def __init__(self, model: str, with_usage: bool) -> None:
        self.model, self.with_usage = model, with_usage
        self.created = int(time.time())
        self.id = ""
        self.around: tuple[bytes, bytes] | None = None

    def __call__(self, event: Event) -> bytes:
        if isinstance(event, Text):
            if not event.text:
                return b""
            opening = self._opening()
            before, after = self.around or (b"", b"")
            return b"".join((opening, before, encoded(event.text), after))
        if isinstance(event, Decided):
            self.id = event.id
        if not isinstance(event, Finished):
            return b""
        self.id = self.id or event.answer.id
        frames = [self._opening(), frame({**self._chunk({}, event.answer.finish_reason), "appliance": answer_json(event.answer)})]
        if self.with_usage:
            frames.append(frame({**self._chunk({}), "choices": [], "usage": _usage(event.answer)}))
        return b"".join(frames)

    def _opening(self) -> bytes:
        """The first chunk, once."""
        if self.around is not None:
            return b""
        before, mark, after = frame(self._chunk({"content": ""})).partition(b'"content":""')
        self.around = (before + mark[:-2], after)
        return frame(self._chunk({"role": "assistant", "content": ""}))

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {
            "id": f"chatcmpl-{self.id}",
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": [choice],
        }
        return {**chunk, "usage": None} if self.with_usage else chunk


def _usage(answer: Answer) -> dict[str, int]:
    read, written = answer.usage.prompt_tokens, answer.usage.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _completion(answer: Answer, model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    return {
        "id": f"chatcmpl-{answer.id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}],
        "usage": _usage(answer),
        "appliance": answer_json(answer),
    }


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "appliance"}


def openai_router(desk: Desk, default: Sampling, responses: dict[int | str, dict[str, Any]]) -> APIRouter:
    """The routes; `default` fills in the sampling fields a request leaves out, `responses` documents the errors."""
    answering = desk.answering
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=responses)

    @router.post("/chat/completions", summary="Answer the last message of a chat")
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Ask for the model `auto`, a domain, or `domain/arm`. Decision and citations come in the field `appliance` of the response, and of
        the last chunk of a stream. A stream that fails ends with an error event and without `[DONE]`."""
        caller = caller_of(request)
        text, history, system = body.turns()
        domain, arm = await answering.look(resolve, answering, caller, body.model, body.appliance.domain, body.appliance.arm)
        labels = narrowing(caller, body.appliance.labels, "appliance.labels")
        constraints = Constraints(body.appliance.must_cite, body.appliance.max_latency_ms)
        question = Question(text, history, domain, arm, constraints, body.sampling(default), system, labels)
        events = desk.ask(trace_of(request.scope), question, caller)
        if body.stream:
            return EventStream(events, Chunks(body.model, body.stream_options is not None and body.stream_options.include_usage))
        return JSONResponse(_completion(await finished(request.receive, events), body.model))

    @router.get("/models", summary="The models this key may use")
    async def models(request: Request) -> dict[str, Any]:
        ids = await answering.look(model_ids, answering, caller_of(request))
        return {"object": "list", "data": [_model(name) for name in ids]}

    @router.get("/models/{model:path}", summary="One model")
    async def model(model: str, request: Request) -> dict[str, Any]:
        if model not in await answering.look(model_ids, answering, caller_of(request)):
            raise ApiError(404, f"the model {model!r} does not exist; GET /v1/models lists them", param="model", code="model_not_found")
        return _model(model)

    return router
