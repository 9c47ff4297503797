"""The gateway over the real answering and a model server that fails in every way: what is answered, how fast, and that it recovers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_real import APPROVED, DOCUMENTS, make_knowledge, real_answering
from gateway_server import LIMITS, Served, running
from lying_engine import LyingEngine, lying

from appliance.admin.keys import Keys
from appliance.answers.cache import AnswerCache
from appliance.gateway.app import Limits
from retrieval.types import DocumentKey
from tests.waiting import until

QUESTION = "专家门诊挂号费是多少？"
QUICK = {"connect_seconds": "1", "first_token_seconds": "1.5", "between_tokens_seconds": "1.5", "breaker_seconds": "0.3"}


@contextmanager
def gateway(folder: Path, url: str, limits: Limits = LIMITS, cached: bool = False, **settings: str) -> Iterator[Served]:
    knowledge = make_knowledge(folder, url, **{**QUICK, **settings})
    answering = real_answering(knowledge)
    answering.cache = AnswerCache(knowledge.workspace.db, 1 << 20) if cached else None
    with running(Keys(knowledge.workspace.db), answering, limits=limits, passage=knowledge.passage) as served:
        yield served
    knowledge.workspace.close()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, LyingEngine]]:
    with lying() as engine, gateway(tmp_path_factory.mktemp("faults"), engine.url) as served:
        # The warm-up asks too.
        until(lambda: ask(served, "rag").status_code == 200 and engine.chats >= 2)
        yield served, engine


@pytest.fixture
def lie(both: tuple[Served, LyingEngine]) -> Iterator[LyingEngine]:
    """The engine, made well again after each test."""
    served, engine = both
    yield engine
    engine.fault, engine.sick, engine.words, engine.pause, engine.faults_left = "", False, 5, 0.0, 1 << 30
    engine.left.clear()
    until(lambda: ask(served, "rag").status_code == 200)


def ask(served: Served, arm: str, question: str = QUESTION) -> httpx.Response:
    return served.http().post("/v1/answer", json={"question": question, "domain": "medical", "arm": arm})


def chat(question: str = QUESTION, arm: str = "rag", **more: Any) -> dict[str, Any]:
    return {"model": f"medical/{arm}", "messages": [{"role": "user", "content": question}], **more}


def still_served(served: Served) -> None:
    """What needs no engine is answered, and the gateway is ready, if degraded."""
    quoted = ask(served, "quote").json()
    assert quoted["arm"] == "quote" and "50元" in quoted["answer"]
    assert ask(served, "auto", APPROVED[0]).json()["answer"] == APPROVED[1]
    ready = served.http("").get("/readyz")
    assert (ready.status_code, ready.json()["degraded"]) == (200, ["engine"])
    assert "127.0.0.1" not in ready.text


def test_a_dead_engine_is_a_clear_error_at_once_and_the_rest_goes_on(both: tuple[Served, LyingEngine], lie: LyingEngine) -> None:
    served, _ = both
    assert ask(served, "rag").status_code == 200
    lie.down()
    for arm in ("rag", "base"):
        response = ask(served, arm)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (503, "engine_unavailable") and int(response.headers["retry-after"]) >= 1
        assert "'quote'" in error["message"] and "127.0.0.1" not in response.text
    still_served(served)
    answer = ask(served, "auto").json()
    assert answer["arm"] == "quote" and "127.0.0.1" not in json.dumps(answer) and "不可用" in answer["decision"]["unavailable"]["rag"]
    assert 'appliance_engine_state{engine="default",state="closed"} 0.0' in served.http("").get("/metrics").text
    lie.up()
    until(lambda: ask(served, "rag").status_code == 200)
    assert served.http("").get("/readyz").json()["degraded"] == []
    assert 'appliance_engine_state{engine="default",state="closed"} 1.0' in served.http("").get("/metrics").text


def test_a_hanging_engine_is_a_clear_error(both: tuple[Served, LyingEngine], lie: LyingEngine) -> None:
    served, _ = both
    lie.fault, lie.sick = "hang", True
    assert ask(served, "rag").json()["error"]["code"] in ("engine_timeout", "engine_unavailable")
    assert ask(served, "rag").json()["error"]["code"] == "engine_unavailable"
    still_served(served)


def test_what_needs_no_engine_does_not_wait_for_one_that_hangs(tmp_path: Path) -> None:
    patient = {"first_token_seconds": "5", "connect_seconds": "10"}
    with (
        lying(fault="hang") as engine,
        gateway(tmp_path, engine.url, limits=Limits(running=2, queued=4), **patient) as served,
        ThreadPoolExecutor(3) as pool,
    ):
        hanging = [pool.submit(ask, served, "base") for _ in range(3)]
        until(lambda: served.metric("appliance_answers_queued", queue="generating") == 1)
        for arm, question in (("quote", QUESTION), ("verified", APPROVED[0]), ("refuse", QUESTION), ("auto", APPROVED[0])):
            assert ask(served, arm, question).status_code == 200, arm
        assert not any(one.done() for one in hanging)
        assert {one.result(20).status_code for one in hanging} == {503}


def test_an_answer_that_was_kept_does_not_wait_for_a_model_that_hangs(tmp_path: Path) -> None:
    def queued() -> float:
        return served.metric("appliance_answers_queued", queue="generating")

    patient = {"first_token_seconds": "5", "connect_seconds": "10"}
    with (
        lying() as engine,
        gateway(tmp_path, engine.url, limits=Limits(running=2, queued=4), cached=True, **patient) as served,
        ThreadPoolExecutor(3) as pool,
    ):
        said = ask(served, "rag").json()
        engine.fault = "hang"
        hanging = [pool.submit(ask, served, "base", f"{QUESTION}{number}") for number in range(3)]
        until(lambda: queued() == 1)
        again = ask(served, "rag").json()
        stream = served.http().post("/v1/chat/completions", json=chat(stream=True)).text
        assert (said["cached"], again["cached"], again["answer"]) == (False, True, said["answer"])
        assert '"cached":true' in stream and stream.endswith("data: [DONE]\n\n")
        assert queued() == 1 and not any(one.done() for one in hanging)
        assert {one.result(20).status_code for one in hanging} == {503}


@pytest.mark.parametrize("fault", ["reset", "500", "garbage"])
def test_one_fault_before_the_first_byte_is_never_seen(both: tuple[Served, LyingEngine], lie: LyingEngine, fault: str) -> None:
    served, _ = both
    lie.fault, lie.faults_left = fault, 1
    response = served.http().post("/v1/chat/completions", json=chat(stream=True))
    assert response.status_code == 200 and response.text.endswith("data: [DONE]\n\n") and "第4词" in response.text


@pytest.mark.parametrize("fault", ["reset_later", "half_chunk", "no_done", "error_event", "hang_later"])
def test_a_stream_that_fails_in_the_middle_never_ends_well(both: tuple[Served, LyingEngine], lie: LyingEngine, fault: str) -> None:
    served, _ = both
    lie.fault = fault
    response = served.http().post("/v1/chat/completions", json=chat(stream=True))
    last = json.loads(response.text.strip().rpartition("data: ")[2])
    assert response.status_code == 200 and "第1词" in response.text and "[DONE]" not in response.text
    assert last["error"]["type"] == "server_error" and last["error"]["code"] in ("engine_unavailable", "engine_timeout")
    assert "10.0.0.9" not in response.text and "127.0.0.1" not in response.text
    plain = served.http().post("/v1/chat/completions", json=chat())
    assert plain.status_code == 503 and plain.json()["error"]["code"] in ("engine_unavailable", "engine_timeout")


def test_the_breaker_spares_an_engine_that_keeps_failing(both: tuple[Served, LyingEngine], lie: LyingEngine) -> None:
    served, _ = both
    breaker = served.answering.guards()["default"].breaker
    lie.fault, breaker._pause = "500", 600.0
    codes = {ask(served, "rag").json()["error"]["code"] for _ in range(4)}
    asked = lie.chats
    refused = ask(served, "rag")
    assert codes == {"engine_unavailable"} and refused.status_code == 503 and lie.chats == asked
    assert int(refused.headers["retry-after"]) >= 1
    metrics = served.http("").get("/metrics").text
    assert 'appliance_engine_state{engine="default",state="open"} 1.0' in metrics
    assert 'appliance_engine_faults_total{engine="default",fault="retried"}' in metrics
    still_served(served)
    breaker._pause = 0.3


@pytest.mark.parametrize("tokens", [0, 1, 20])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_the_work(both: tuple[Served, LyingEngine], lie: LyingEngine, tokens: int, stream: bool) -> None:
    served, _ = both
    lie.words, lie.pause = 10_000, 0.01
    lie.fault = "" if tokens else "hang"
    before, sent = lie.chats, lie.sent
    with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {served.key}"}, timeout=20) as http:
        body = chat(stream=stream)
        request = http.build_request(
            "POST", "/v1/chat/completions", json=body, timeout=httpx.Timeout(20, read=20 if tokens and stream else 1.0)
        )
        try:
            response = http.send(request, stream=True)
            pieces = response.iter_text()
            while tokens > lie.sent - sent:
                next(pieces)
            response.close()
        except httpx.ReadTimeout:
            assert not (tokens and stream)
    until(lambda: bool(lie.left))
    assert lie.chats == before + 1 and lie.sent < lie.words
    until(lambda: served.metric("appliance_answers_running") == 0)


def test_an_engine_that_cannot_be_started_does_not_stop_the_rest(tmp_path: Path) -> None:
    with gateway(tmp_path, "", kind="local", base="path:/nowhere/at/all") as served:
        assert ask(served, "rag").json()["error"]["code"] == "engine_unavailable"
        still_served(served)


def test_a_citation_leads_to_its_passage_until_the_document_is_gone(tmp_path: Path) -> None:
    with lying() as engine:
        knowledge = make_knowledge(tmp_path, engine.url)
        with running(Keys(knowledge.workspace.db), real_answering(knowledge), passage=knowledge.passage) as served:
            cited = ask(served, "quote").json()["citations"][0]
            place = f"/v1/documents/medical/{cited['doc_id']}?start={cited['start']}&end={cited['end']}"
            shown = served.http().get(place).json()
            assert shown["quote"] == cited["quote"] and shown["before"].startswith("# 门诊挂号")
            assert shown["before"] + shown["quote"] + shown["after"] == DOCUMENTS["zh/registration.md"]
            # The key holds the label staff, not management.
            assert served.http().get("/v1/documents/medical/pay.md?start=0&end=5").status_code == 404
            _, manager = served.keys.create("manager", labels=["management"])
            assert served.http(manager).get("/v1/documents/medical/pay.md?start=0&end=5").json()["quote"] == "# Pay"
            knowledge.remove([DocumentKey("medical", "zh/registration.md")])
            assert served.http().get(place).status_code == 404
        knowledge.workspace.close()
