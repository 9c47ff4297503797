"""`appliance serve` over the real vLLM server: clients that leave, an engine that hangs, a line that breaks, the end under load."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from troubled_proxy import TroubledProxy, troubled

from appliance.engines.vllm_started import key_of
from tests.vllm_server import QUESTIONS, WORDS, VllmBench
from tests.waiting import until

pytestmark = pytest.mark.slow
# Seconds from one token to the next: what a hung engine costs who waits for it.
BETWEEN = 10
ASKERS = 6


class Gateway:
    """A running `appliance serve`."""

    def __init__(self, process: subprocess.Popen[str], http: httpx.Client) -> None:
        self.process, self.http = process, http

    def ask(self, arm: str, question: str = QUESTIONS[0], domain: str = "medical") -> httpx.Response:
        return self.http.post("/v1/answer", json={"question": question, "domain": domain, "arm": arm})

    def finetuned(self, domain: str = "medical") -> bool:
        found = self.ask("finetuned", QUESTIONS[2] if domain == "finance" else QUESTIONS[0], domain)
        return found.status_code == 200 and found.json()["answer"] == WORDS[domain]

    @contextmanager
    def stream(self, arm: str, question: str, tokens: int) -> Iterator[httpx.Response]:
        body = {"model": f"medical/{arm}", "messages": [{"role": "user", "content": question}], "max_tokens": tokens, "stream": True}
        with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            yield response


@contextmanager
def serving(bench: VllmBench, settings: dict[str, str]) -> Iterator[Gateway]:
    """It keeps no answers, so that the engine gives every one."""
    flags = [part for name, value in {"answering.cache_mb": "0", **settings}.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-c", "from appliance.cli.main import main; main()", "--workspace", str(bench.root), *flags]
    environment = {**os.environ, "ENGINE_KEY": key_of(bench.workspace, "default")}
    process = subprocess.Popen([*command, "serve", "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        with httpx.Client(base_url=address, timeout=120) as http:
            made = Gateway(process, http)
            until(made.finetuned, 180)
            yield made
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def gateway(vllm_bench: VllmBench) -> Iterator[Gateway]:
    """One for all tests."""
    with serving(vllm_bench, {"engines.default.between_tokens_seconds": str(BETWEEN)}) as made:
        yield made


@pytest.fixture(scope="module")
def far(vllm_bench: VllmBench) -> Iterator[tuple[Gateway, TroubledProxy]]:
    """A gateway that reaches the same server by its address, over a line that is troubled when it is told to."""
    assert vllm_bench.server.running is not None
    with troubled(vllm_bench.server.running.url) as line:
        engine = {"kind": "vllm", "url": line.url, "model": "base", "api_key_env": "ENGINE_KEY", "breaker_seconds": "1"}
        settings = {**{f"engines.far.{name}": value for name, value in engine.items()}, "engines.far.languages": '["en", "zh"]'}
        with serving(vllm_bench, {**settings, **{f"domains.{domain}.engine": "far" for domain in WORDS}}) as made:
            yield made, line


def generated(bench: VllmBench) -> float:
    """Tokens that the server has generated so far."""
    assert bench.server.running is not None
    text = httpx.get(bench.server.running.url.removesuffix("/v1") + "/metrics", timeout=30).text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("vllm:generation_tokens_total"))


def standing_still(bench: VllmBench) -> float:
    """Tokens that the server has generated once it generates no more."""

    def still() -> float | None:
        found = generated(bench)
        time.sleep(2)
        return found if generated(bench) == found else None

    return until(still)


def pieces(response: httpx.Response) -> Iterator[str]:
    """The texts of a stream, and what ends it: "[DONE]" or "error"."""
    for line in response.iter_lines():
        if not line.startswith("data: "):
            continue
        data = line.removeprefix("data: ")
        if data == "[DONE]" or "error" in json.loads(data):
            yield "[DONE]" if data == "[DONE]" else "error"
        elif (choices := json.loads(data)["choices"]) and (text := choices[0]["delta"].get("content")):
            yield text


@pytest.mark.parametrize("tokens", [0, 1, 8])
def test_when_the_client_is_gone_the_engine_stops(gateway: Gateway, vllm_bench: VllmBench, tokens: int) -> None:
    before = generated(vllm_bench)
    with gateway.stream("base", "Tell a very long story of a lighthouse.", 1500) as response:
        assert response.status_code == 200
        if tokens:
            found = pieces(response)
            assert [next(found) for _ in range(tokens)]
        else:
            time.sleep(0.2)
    # Let be, it tells all of the 1500 tokens.
    assert before + tokens <= standing_still(vllm_bench) < before + 1000
    assert gateway.finetuned()


def test_an_engine_that_hangs_is_told_and_is_back_when_it_goes_on(gateway: Gateway, vllm_bench: VllmBench) -> None:
    stopped = vllm_bench.processes()
    with gateway.stream("base", "Tell a very long story of a lighthouse.", 1500) as response:
        found = pieces(response)
        next(found)
        for process in stopped:
            process.suspend()
        try:
            since = time.monotonic()
            rest = list(found)
            # No false end: an error, and nothing after it.
            assert rest[-1] == "error" and "[DONE]" not in rest and time.monotonic() - since < 2 * BETWEEN
            until(lambda: gateway.http.get("/readyz").json()["degraded"] == ["engine"], 20)
            assert gateway.http.get("/readyz").status_code == 200
            since = time.monotonic()
            refused = gateway.ask("base")
            # Without waiting for the engine.
            assert refused.status_code == 503 and "Retry-After" in refused.headers and time.monotonic() - since < BETWEEN
            assert WORDS["medical"] in gateway.ask("quote").json()["answer"]
        finally:
            for process in stopped:
                process.resume()
    until(gateway.finetuned, 180)
    until(lambda: gateway.http.get("/readyz").json()["degraded"] == [], 20)


@pytest.mark.parametrize("fault", ["500", "reset"])
def test_an_answer_that_fails_before_it_begins_is_asked_for_once_more(far: tuple[Gateway, TroubledProxy], fault: str) -> None:
    gateway, line = far
    line.fault, line.left, line.done = fault, 1, 0
    assert gateway.finetuned() and line.done == 1


@pytest.mark.parametrize("fault", ["reset_later", "half"])
def test_an_answer_that_breaks_off_is_an_error_and_the_next_is_whole(far: tuple[Gateway, TroubledProxy], fault: str) -> None:
    gateway, line = far
    line.fault, line.left, line.done = fault, 1, 0
    with gateway.stream("base", "Tell a very long story of a lighthouse.", 200) as response:
        found = list(pieces(response))
    assert found[-1] == "error" and "[DONE]" not in found and len(found) < 200 and line.done == 1
    assert gateway.finetuned()


def test_an_answer_that_comes_slowly_in_torn_characters_is_whole(far: tuple[Gateway, TroubledProxy]) -> None:
    gateway, line = far
    line.fault, line.left, line.done = "bytes", 1, 0
    assert gateway.finetuned("finance") and line.done == 1
    assert gateway.http.get("/readyz").json()["degraded"] == []


def test_a_server_that_only_fails_is_left_alone_and_back_by_itself(far: tuple[Gateway, TroubledProxy]) -> None:
    gateway, line = far
    line.fault, line.left, line.done = "500", 1000, 0
    for _ in range(3):
        refused = gateway.ask("finetuned")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_unavailable" and "Retry-After" in refused.headers
    assert WORDS["medical"] in gateway.ask("quote").json()["answer"]
    assert 'appliance_engine_state{engine="far",state="closed"} 0.0' in gateway.http.get("/metrics").text
    line.left = 0
    until(gateway.finetuned, 60)
    until(lambda: gateway.http.get("/readyz").json()["degraded"] == [], 20)


def test_sigterm_under_load_finishes_what_has_begun(gateway: Gateway) -> None:
    # The last of them: the gateway ends with it.
    ends: Counter[str] = Counter()
    begun = threading.Semaphore(0)

    def ask() -> None:
        while True:
            answering = False
            try:
                with gateway.stream("finetuned", QUESTIONS[0], 12) as response:
                    if response.status_code != 200:
                        ends["refused" if response.status_code == 503 else f"broken: {response.status_code}"] += 1
                        return
                    answering = True
                    begun.release()
                    found = list(pieces(response))
            except httpx.TransportError as error:
                # The listening socket is gone, or goes with a connection that waits in it or was kept for the next request.
                ends[f"broken: {error!r}" if answering else "refused"] += 1
                return
            ends["whole" if "".join(found) == WORDS["medical"] + "[DONE]" else f"broken: {found}"] += 1

    askers = [threading.Thread(target=ask) for _ in range(ASKERS)]
    for asker in askers:
        asker.start()
    for _ in range(2 * ASKERS):
        assert begun.acquire(timeout=120)
    gateway.process.send_signal(signal.SIGTERM)
    assert gateway.process.wait(120) == 0
    for asker in askers:
        asker.join(60)
    assert ends["whole"] >= ASKERS and not [end for end in ends if end.startswith("broken")], ends
    assert ends["refused"] == ASKERS, ends
