"""What a gateway under load refuses, and how: the queue, quotas, the deadline for open streams."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import openai
import pytest
from gateway_fake import FakeAnswering, FakeEmbedding
from gateway_server import Served
from starlette.requests import ClientDisconnect

from appliance.admin.keys import Keys
from appliance.admin.quotas import Quotas
from appliance.engines.base import EngineBusy
from appliance.errors import UsageError
from appliance.gateway.admission import Admission
from appliance.gateway.app import Limits
from appliance.gateway.errors import ApiError
from appliance.gateway.events import unless_gone
from appliance.gateway.trace import RESPONSE_HEADERS
from appliance.types import Caller, Event, Request
from tests.waiting import until

QUESTION = {"question": "成人一天最多吃多少？"}
CHAT = {"model": "auto", "messages": [{"role": "user", "content": "剂量？"}], "stream": True}


# --- the queue


def test_a_full_queue_is_503_with_retry_after_and_drains(start: Callable[..., Served]) -> None:
    served = start(FakeAnswering(stall=True), limits=Limits(running=1, queued=1))
    with ExitStack() as stack:
        first = stack.enter_context(served.http().stream("POST", "/v1/chat/completions", json=CHAT))
        pieces = first.iter_bytes()
        next(pieces)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        second = pool.submit(lambda: served.http().post("/v1/answer", json=QUESTION))
        until(lambda: served.metric("appliance_answers_queued", queue="generating") == 1)
        for path, body in (("/v1/answer", QUESTION), ("/v1/chat/completions", CHAT)):
            refused = served.http().post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_busy"), path
            assert int(refused.headers["retry-after"]) >= 1
        assert served.http().get("/v1/models").status_code == 200 and served.http("").get("/readyz").status_code == 200
        assert served.metric("appliance_queue_full_total", queue="generating") == 2
        assert served.metric("appliance_answers_running", queue="generating") == served.metric("appliance_answers_running") == 1
        # What needs no model waits for none.
        assert served.http().post("/v1/embeddings", json={"model": "embedding", "input": "药"}).status_code == 200
        served.answering.stall = False
        assert served.http().post("/v1/answer", json={**QUESTION, "arm": "quote"}).status_code == 200
        first.close()
        assert second.result(20).status_code == 200
    until(lambda: served.metric("appliance_answers_running") == 0)
    assert 'stage="queue"' in served.http("").get("/metrics").text


def test_a_client_that_leaves_the_queue_takes_no_turn(start: Callable[..., Served]) -> None:
    served = start(FakeAnswering(stall=True), limits=Limits(running=1, queued=5))
    with served.http().stream("POST", "/v1/chat/completions", json=CHAT) as first:
        pieces = first.iter_bytes()
        next(pieces)
        with pytest.raises(httpx.ReadTimeout):
            served.http().post("/v1/answer", json=QUESTION, timeout=0.5)
        until(lambda: served.metric("appliance_answers_queued") == 0)
    assert len(served.answering.asked) == 2
    until(lambda: served.metric("appliance_answers_running") == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_who_waits_too_long_for_a_turn_is_told_to_come_back(start: Callable[..., Served], stream: bool) -> None:
    served = start(FakeAnswering(stall=True), limits=Limits(running=1, queued=5, queue_seconds=0.3))
    with served.http().stream("POST", "/v1/chat/completions", json=CHAT) as first:
        pieces = first.iter_bytes()
        next(pieces)
        late = served.http().post("/v1/chat/completions", json={**CHAT, "stream": stream})
        assert (late.status_code, late.json()["error"]["code"]) == (503, "gateway_busy") and int(late.headers["retry-after"]) >= 1
        assert "within 0.3 s" in late.json()["error"]["message"]
        assert served.metric("appliance_answers_queued") == 0 and served.metric("appliance_queue_full_total") == 1
    until(lambda: served.metric("appliance_answers_running") == 0)


@pytest.mark.parametrize("kind", ["deciding", "embedding"])
def test_what_needs_no_model_has_a_queue_that_ends(start: Callable[..., Served], kind: str) -> None:
    answering, entered, go = FakeAnswering(), threading.Semaphore(0), threading.Event()
    original = answering.stream

    async def slow(request: Request, caller: Caller) -> AsyncIterator[Event]:
        entered.release()
        await asyncio.to_thread(go.wait)
        async for event in original(request, caller):
            yield event

    def embedding() -> FakeEmbedding:
        entered.release()
        go.wait()
        return FakeEmbedding()

    answering.stream = slow  # type: ignore[method-assign]
    served = start(answering, embedding=embedding, limits=Limits(running=1, queued=1))
    path, body = ("/v1/embeddings", {"model": "embedding", "input": "药"}) if kind == "embedding" else ("/v1/answer", QUESTION)

    def ask() -> int:
        response = served.http().post(path, json=body)
        assert response.status_code == 200 or response.json()["error"]["code"] == "gateway_busy"
        return response.status_code

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask)]
        entered.acquire(timeout=10)
        asking.append(pool.submit(ask))
        until(lambda: served.metric("appliance_answers_queued", queue=kind) == 1)
        assert ask() == 503 and served.metric("appliance_queue_full_total", queue=kind) == 1
        go.set()
        assert [one.result(20) for one in asking] == [200, 200]


def test_turns_are_first_come_first_served_and_never_lost() -> None:
    async def run() -> None:
        admission, order = Admission(2, 50, 10), []

        async def one(number: int) -> None:
            async with admission.turn():
                order.append(number)
                await asyncio.sleep(0.001)

        tasks = []
        for number in range(30):
            tasks.append(asyncio.create_task(one(number)))
            await asyncio.sleep(0)
        for task in tasks[5:30:3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == sorted(order) and len(order) == 21
        assert (admission.running, admission.queued) == (0, 0)

        # A turn that comes at the moment its owner goes is passed on.
        holding = admission.turn(), admission.turn()
        for turn in holding:
            await turn.__aenter__()
        leaving, staying = asyncio.create_task(one(100)), asyncio.create_task(one(101))
        await asyncio.sleep(0)
        await holding[0].__aexit__(None, None, None)
        leaving.cancel()
        await holding[1].__aexit__(None, None, None)
        await asyncio.gather(leaving, staying, return_exceptions=True)
        assert order[-1] == 101 and (admission.running, admission.queued) == (0, 0)

    asyncio.run(run())


def test_who_goes_at_the_moment_a_turn_passes_by_just_goes() -> None:
    async def run() -> None:
        admission = Admission(1, 5, 10)

        async def one() -> None:
            async with admission.turn():
                pass

        holding = admission.turn()
        await holding.__aenter__()
        leaving, staying = asyncio.create_task(one()), asyncio.create_task(one())
        await asyncio.sleep(0)
        leaving.cancel()
        await holding.__aexit__(None, None, None)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await staying
        assert (admission.running, admission.queued) == (0, 0)

    asyncio.run(run())


def test_without_a_queue_the_next_is_refused_at_once() -> None:
    async def run() -> None:
        admission = Admission(1, 0, 10)
        async with admission.turn():
            with pytest.raises(ApiError) as refused:
                async with admission.turn():
                    pass
        assert refused.value.status_code == 503 and admission.refused == 1 and admission.running == 0

    asyncio.run(run())


# --- quotas


def test_requests_a_minute(served: Served) -> None:
    _, secret = served.keys.create("限额", requests_per_minute=2)
    http = served.http(secret)
    assert [http.get("/v1/models").status_code, http.post("/v1/answer", json=QUESTION).status_code] == [200, 200]
    refused = http.post("/v1/answer", json=QUESTION)
    assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 61
    assert refused.json()["error"]["type"] == "rate_limit_error" and refused.json()["error"]["code"] == "rate_limit_exceeded"
    with pytest.raises(openai.RateLimitError):
        openai.OpenAI(base_url=f"{served.url}/v1", api_key=secret, max_retries=0).models.list()
    assert served.metric("appliance_quota_exceeded_total", quota="requests") >= 2
    assert served.http().get("/v1/models").status_code == 200 and "限额" not in served.http("").get("/metrics").text


def test_tokens_a_minute_also_of_streams_and_embeddings(served: Served) -> None:
    for path, body in (
        ("/v1/answer", QUESTION),
        ("/v1/chat/completions", CHAT),
        ("/v1/embeddings", {"model": "embedding", "input": ["药" * 20, "b" * 10]}),
    ):
        _, secret = served.keys.create("tokens", tokens_per_minute=30)
        assert served.http(secret).post(path, json=body).status_code == 200
        # The server counts after the response's last byte.
        until(lambda secret=secret: served.http(secret).get("/v1/models").status_code == 429)  # type: ignore[misc]


def test_a_broken_off_answer_counts_what_was_sent(start: Callable[..., Served]) -> None:
    served = start(FakeAnswering(endless=True))
    # The prompt has 21.
    _, secret = served.keys.create("impatient", tokens_per_minute=25)
    with served.http(secret).stream("POST", "/v1/chat/completions", json=CHAT) as response:
        for number, _ in enumerate(response.iter_bytes()):
            if number > 6:
                break
    until(lambda: served.http(secret).get("/v1/models").status_code == 429)


def test_who_goes_before_the_first_token_pays_for_the_prompt(start: Callable[..., Served]) -> None:
    served = start(FakeAnswering(pause=3600, pieces=[""]))
    _, secret = served.keys.create("impatient", tokens_per_minute=21)
    with pytest.raises(httpx.ReadTimeout):
        served.http(secret).post("/v1/chat/completions", json=CHAT, timeout=0.5)
    until(lambda: served.http(secret).get("/v1/models").status_code == 429)


def test_what_the_engine_fails_at_costs_nothing(start: Callable[..., Served]) -> None:
    served = start(FakeAnswering(fault=EngineBusy("full")))
    _, secret = served.keys.create("unlucky", tokens_per_minute=21)
    for _ in range(3):
        assert served.http(secret).post("/v1/answer", json=QUESTION).status_code == 503


def test_the_window_slides() -> None:
    now = 1000.5
    quotas = Quotas(clock=lambda: now)
    assert [quotas.admit("k", 2, None) for _ in range(2)] == [None, None]
    exceeded = quotas.admit("k", 2, None)
    assert exceeded is not None and exceeded.kind == "requests" and exceeded.wait == pytest.approx(59.5)
    assert quotas.admit("other", 2, None) is None
    now += exceeded.wait
    assert quotas.admit("k", 2, None) is None
    quotas.spend("t", 5)
    now += 30
    quotas.spend("t", 6)
    full = quotas.admit("t", None, 10)
    assert full is not None and full.kind == "tokens" and full.wait == pytest.approx(30)
    now += 30.01
    assert quotas.admit("t", None, 10) is None
    now += 1e6
    assert quotas.admit("t", 1, 1) is None and len(quotas._used["t"]) == 1


def test_a_quota_is_kept_with_its_key(keys: Keys) -> None:
    made, secret = keys.create("a", requests_per_minute=5, tokens_per_minute=6000)
    assert keys.authenticate(secret) == made and (made.requests_per_minute, made.tokens_per_minute) == (5, 6000)
    for wrong in (0, -1, 2**31):
        with pytest.raises(UsageError, match="a quota is a number from 1"):
            keys.create("b", tokens_per_minute=wrong)


# --- the end


def test_the_deadline_for_streams_is_an_error_event(start: Callable[..., Served], caplog: pytest.LogCaptureFixture) -> None:
    """What uvicorn does at the deadline: it cancels the tasks of open requests."""
    served = start(FakeAnswering(stall=True))
    seen: list[str] = []

    def read() -> None:
        with served.http().stream("POST", "/v1/chat/completions", json=CHAT) as response:
            seen.extend(response.iter_text())

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: bool(seen) and served.answering.stalled.is_set())
    served.server.config.timeout_graceful_shutdown = 1
    served.server.should_exit = True
    reader.join(20)
    text = "".join(seen)
    assert "[DONE]" not in text
    assert json.loads(text.strip().rpartition("data: ")[2])["error"]["code"] == "shutting_down"
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", {**CHAT, "stream": False}), ("/v1/chat/completions", CHAT), ("/v1/answer", QUESTION)]
)
def test_what_has_not_begun_at_the_deadline_is_an_error_like_any_other(
    start: Callable[..., Served], path: str, body: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "appliance.access")
    served = start(FakeAnswering(pieces=[""], stall=True))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(lambda: served.http().post(path, json=body, headers={"X-Request-ID": "the-last"}))
        until(served.answering.stalled.is_set)
        served.server.config.timeout_graceful_shutdown = 1
        served.server.should_exit = True
        stopped = asked.result(20)
    assert (stopped.status_code, stopped.json()["error"]["code"]) == (503, "shutting_down")
    assert stopped.json()["error"]["type"] == "server_error" and int(stopped.headers["retry-after"]) >= 1
    assert (
        stopped.headers["x-request-id"] == "the-last"
        and RESPONSE_HEADERS.items() <= {name: stopped.headers.get(name) for name in RESPONSE_HEADERS}.items()
    )
    until(lambda: any(record.name == "appliance.access" for record in caplog.records))
    logged = [record.facts["status"] for record in caplog.records if record.name == "appliance.access"]  # type: ignore[attr-defined]
    assert logged == [503] and served.answering.abandoned.is_set() and "Traceback" not in caplog.text


def test_the_deadline_does_not_change_that_a_client_has_gone() -> None:
    async def run() -> None:
        ending, receive = asyncio.Event(), asyncio.Queue[dict[str, object]]()

        async def work() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                ending.set()
                await asyncio.sleep(3600)

        asked = asyncio.create_task(unless_gone(receive.get, work()))  # type: ignore[arg-type]
        await receive.put({"type": "http.disconnect"})
        await ending.wait()
        asked.cancel()
        with pytest.raises(ClientDisconnect):
            await asked

    asyncio.run(run())
