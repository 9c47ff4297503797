from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from gateway_fake import QUOTE, FakeAnswering
from gateway_server import Served

from appliance.engines.base import EngineBusy, EngineError, PromptTooLong
from appliance.errors import UsageError
from retrieval.types import IndexCorrupt
from tests.waiting import until

TEXT = "成人每日最多 4 克。\u2028At most 4 g."
ASK: list[Any] = [{"role": "user", "content": "成人一天最多吃多少？"}]


def client(served: Served, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key or served.key, max_retries=0)


def events(body: str) -> list[Any]:
    """The data of server-sent events; every event is one `data:` line and an empty line."""
    assert body.endswith("\n\n")
    frames = body[:-2].split("\n\n")
    assert all(frame.startswith("data: ") and "\n" not in frame for frame in frames)
    return [data if data == "[DONE]" else json.loads(data) for data in (frame[6:] for frame in frames)]


def test_the_official_client_gets_an_answer(served: Served) -> None:
    completion = client(served).chat.completions.create(model="medical", messages=ASK)
    assert completion.choices[0].message.content == TEXT and completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None and completion.usage.total_tokens == 30
    extra = completion.model_extra["appliance"]
    assert extra["arm"] == "rag" and extra["decision"]["reasons"][1] == "已找到直接相关的原文。"
    assert extra["citations"][0]["quote"] == QUOTE and extra["timings_ms"]["total"] == 240.0


def test_the_official_client_streams(served: Served) -> None:
    stream = client(served).chat.completions.create(model="auto", messages=ASK, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert {chunk.id for chunk in chunks} == {"chatcmpl-a1b2"}
    carrying = [chunk for chunk in chunks if "appliance" in (chunk.model_extra or {})]
    assert [chunk.choices[0].finish_reason for chunk in carrying] == ["stop"] and carrying[0].model_extra["appliance"]["answer"] == TEXT
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 9


def test_the_asynchronous_client_streams(served: Served) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key) as aclient:
            stream = await aclient.chat.completions.create(model="auto", messages=ASK, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == TEXT


def test_stream_framing(served: Served) -> None:
    response = served.http().post("/v1/chat/completions", json={"model": "auto", "messages": ASK, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8" and response.headers["cache-control"] == "no-store"
    parsed = events(response.text)
    assert parsed[-1] == "[DONE]" and parsed.count("[DONE]") == 1
    assert parsed[-2]["choices"][0]["finish_reason"] == "stop"
    assert "\u2028" not in response.text and "usage" not in parsed[0]


def test_a_chat_becomes_a_question(served: Served) -> None:
    body = {
        "model": "medical/quote",
        "messages": [
            {"role": "system", "content": "用中文回答"},
            {"role": "user", "content": "扑热息痛？"},
            {"role": "assistant", "content": "是的"},
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "儿童呢？"}, {"type": "text", "text": "按体重？"}]},
        ],
        "max_tokens": 5,
        "max_completion_tokens": 7,
        "stop": "。",
        "seed": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 1,
        "user": "someone",
        "appliance": {"must_cite": True, "max_latency_ms": 900},
    }
    assert served.http().post("/v1/chat/completions", json=body).status_code == 200
    request, caller = served.answering.asked[0]
    assert request.question == "儿童呢？\n按体重？" and request.system == "用中文回答\n\nBe brief."
    assert request.history == ({"role": "user", "content": "扑热息痛？"}, {"role": "assistant", "content": "是的"})
    assert (request.domain, request.arm) == ("medical", "quote")
    assert request.constraints.must_cite and request.constraints.max_latency_ms == 900
    sampling = request.sampling
    assert sampling is not None and (sampling.max_tokens, sampling.stop, sampling.seed, sampling.temperature) == (7, ("。",), 3, 0.5)
    assert caller.scope.labels == {"staff"} and caller.scope.domains is None and len(caller.name) == 16


def test_without_sampling_fields_the_appliance_decides(served: Served) -> None:
    served.http().post("/v1/chat/completions", json={"model": "auto", "messages": ASK})
    assert served.answering.asked[0][0].sampling is None


def test_models_are_listed_and_found(served: Served) -> None:
    names = [model.id for model in client(served).models.list()]
    assert names[:3] == ["auto", "legal", "legal/base"] and "medical/rag" in names
    assert client(served).models.retrieve("medical/rag").id == "medical/rag"
    _, narrow = served.keys.create("legal only", domains=["legal"])
    assert not [model.id for model in client(served, narrow).models.list() if model.id.startswith("medical")]
    with pytest.raises(openai.NotFoundError):
        client(served, narrow).models.retrieve("medical")


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "cooking"}, 404, "model"),
        ({"model": "cooking/quote"}, 404, "model"),
        ({"model": "embedding"}, 404, "model"),
        ({"model": "medical/magic"}, 404, "model"),
        ({"model": "medical/finetuned"}, 404, "model"),
        ({"model": "auto/quote"}, 404, "model"),
        ({"model": "auto", "appliance": {"domain": "cooking"}}, 404, "appliance.domain"),
        ({"model": "medical", "appliance": {"domain": "legal"}}, 400, "appliance.domain"),
        ({"model": "medical/rag", "appliance": {"arm": "quote"}}, 400, "appliance.arm"),
        ({"appliance": {"arm": "magic"}}, 400, "appliance.arm"),
        ({"appliance": {"surprise": 1}}, 400, "appliance.surprise"),
        ({"appliance": {"max_latency_ms": 0}}, 400, "appliance.max_latency_ms"),
        ({"n": 2}, 400, "n"),
        ({"temperature": 3}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": " \n"}]}, 400, "messages"),
        ({"messages": [{"role": "system", "content": "hi"}]}, 400, "messages"),
        ({"messages": [*ASK, {"role": "assistant", "content": "hi"}]}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, 400, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages[0].content"),
        ({"model": ""}, 400, "model"),
    ],
)
def test_bad_requests_name_the_field(served: Served, body: dict[str, Any], status: int, param: str) -> None:
    response = served.http().post("/v1/chat/completions", json={"model": "auto", "messages": ASK, **body})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param), error
    assert set(error) == {"message", "type", "param", "code"} and served.answering.asked == []
    assert (error["code"] == "model_not_found") == (param == "model" and status == 404)


@pytest.mark.parametrize("field", [{"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}}, {"logprobs": True}])
def test_what_would_change_the_answer_is_not_ignored(served: Served, field: dict[str, Any]) -> None:
    response = served.http().post("/v1/chat/completions", json={"model": "auto", "messages": ASK, **field})
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] in field and "not supported" in error["message"]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (EngineBusy("full", retry_after=2.4), 503, "engine_busy"),
        (EngineError("http://10.0.0.9:8000 refused"), 503, "engine_error"),
        (PromptTooLong(9000, 2048), 400, "context_length_exceeded"),
        (UsageError("the question has 100000 characters, at most 8000 are read"), 400, "invalid_request"),
        (IndexCorrupt("/data/index/7/vectors.npy is truncated"), 503, "index_unavailable"),
        (ZeroDivisionError("secret detail"), 500, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [-1, 0])
def test_failures_before_the_first_text_have_their_status(
    served: Served, monkeypatch: pytest.MonkeyPatch, fault: Exception, status: int, code: str, stream: bool, after: int
) -> None:
    monkeypatch.setattr(served.answering, "fault", fault)
    monkeypatch.setattr(served.answering, "fault_after", after)
    response = served.http().post("/v1/chat/completions", json={"model": "auto", "messages": ASK, "stream": stream})
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert response.headers.get("retry-after") == ("3" if code == "engine_busy" else None)
    assert response.headers["x-request-id"] and response.headers["x-content-type-options"] == "nosniff"
    assert not any(secret in response.text for secret in ("10.0.0.9", "/data/", "secret detail", "Traceback"))


def test_a_failure_in_mid_stream_is_an_error_event_and_never_done(start: Callable[..., Served]) -> None:
    served = start(FakeAnswering(fault=EngineError("http://10.0.0.9:8000 reset"), fault_after=2))
    response = served.http().post("/v1/chat/completions", json={"model": "auto", "messages": ASK, "stream": True})
    parsed = events(response.text)
    assert response.status_code == 200 and parsed[-1]["error"]["code"] == "engine_error" and "[DONE]" not in response.text
    assert "10.0.0.9" not in response.text
    with pytest.raises(openai.APIError, match="engine failed"):
        list(client(served).chat.completions.create(model="auto", messages=ASK, stream=True))
    metrics = httpx.get(f"{served.url}/metrics").text
    assert 'appliance_requests_total{arm="rag",domain="medical",route="/v1/chat/completions",status="503"} 2.0' in metrics


@pytest.mark.parametrize("answering", [FakeAnswering(endless=True), FakeAnswering(stall=True)], ids=["writing", "waiting"])
def test_a_client_that_leaves_a_stream_ends_the_answer(start: Callable[..., Served], answering: FakeAnswering) -> None:
    served = start(answering)
    with served.http().stream("POST", "/v1/chat/completions", json={"model": "auto", "messages": ASK, "stream": True}) as response:
        assert next(response.iter_bytes())
    wait(answering.abandoned)
    until(lambda: 'status="499"' in httpx.get(f"{served.url}/metrics").text)


def test_a_client_that_leaves_a_plain_call_ends_the_answer(start: Callable[..., Served]) -> None:
    served = start(FakeAnswering(stall=True))
    with pytest.raises(httpx.ReadTimeout):
        served.http().post("/v1/chat/completions", json={"model": "auto", "messages": ASK}, timeout=0.5)
    wait(served.answering.abandoned)


def wait(event: asyncio.Event) -> None:
    until(event.is_set)
