"""The openai engine against a real server on a real socket that answers well, badly, late, or half."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from appliance.engines.base import AdapterRef, Delta, EngineBusy, EngineError, Message, PromptTooLong, Sampling, Usage
from appliance.engines.openai import OpenAIEngine
from appliance.engines.vllm import VllmEngine

pytestmark = pytest.mark.anyio
MESSAGES: list[Message] = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "挂号费是多少？"}]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def chunk(text: str | None = None, reason: str | None = None, **extra: Any) -> bytes:
    delta = {} if text is None else {"content": text}
    body = {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **extra}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


SSE = {"Content-Type": "text/event-stream; charset=utf-8"}
DONE = b"data: [DONE]\n\n"
GOOD = [
    chunk("", role="assistant"),
    chunk("普通门诊"),
    chunk("\u2028二十元"),
    chunk("。", "stop"),
    b'data: {"choices":[],"usage":{"prompt_tokens":21,"completion_tokens":7}}\n\n',
    DONE,
]


@dataclass
class Server:
    """One scripted answer: `pieces` are written one by one with `pause` seconds between them; None closes the connection at once."""

    pieces: list[bytes | None] = field(default_factory=lambda: list[bytes | None](GOOD))
    status: str = "200 OK"
    headers: dict[str, str] = field(default_factory=lambda: dict(SSE))
    pause: float = 0.0
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    received_headers: str = ""
    client_left: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.received_headers = head
        length = next((int(line.split(":")[1]) for line in head.lower().splitlines() if line.startswith("content-length")), 0)
        if length:
            self.requests.append(json.loads(await reader.readexactly(length)))
        lines = [f"HTTP/1.1 {self.status}", "Connection: close", *(f"{name}: {value}" for name, value in self.headers.items())]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        watcher = asyncio.create_task(self._watch(reader))
        try:
            for piece in self.pieces:
                if piece is None:
                    writer.transport.abort()
                    break
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(self.pause)
        except ConnectionError:
            self.client_left.set()
        finally:
            writer.close()
            watcher.cancel()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        await reader.read()
        self.client_left.set()


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Server]:
    script = Server(**settings)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield script
    finally:
        server.close()


def engine_for(url: str, **settings: Any) -> OpenAIEngine:
    return OpenAIEngine("remote", url, "big-model", "secret-key", ["en", "zh"], **settings)


async def collect(engine: OpenAIEngine, sampling: Sampling | None = None) -> list[Delta]:
    try:
        return [delta async for delta in engine.chat(MESSAGES, None, sampling or Sampling())]
    finally:
        await engine.close()


async def test_a_stream_of_chunks_becomes_deltas() -> None:
    async with serving() as server:
        sampling = Sampling(max_tokens=50, temperature=0.5, top_p=0.9, seed=7, stop=("END",))
        deltas = await collect(engine_for(server.url), sampling)
    assert "".join(delta.text for delta in deltas) == "普通门诊\u2028二十元。"
    assert deltas[-1] == Delta("", "stop", Usage(21, 7))
    assert "authorization: bearer secret-key" in server.received_headers.lower()
    assert server.received_headers.startswith("POST /v1/chat/completions")
    (body,) = server.requests
    assert body["messages"] == MESSAGES
    expected = {"model": "big-model", "max_tokens": 50, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stop": ["END"], "stream": True}
    assert expected.items() <= body.items()


@pytest.mark.parametrize("size", [1, 3, 50])
async def test_chunks_may_arrive_in_any_pieces_with_comments_between(size: int) -> None:
    raw = b": keep-alive\r\n\r\n" + b"".join(GOOD).replace(b"\n", b"\r\n")
    async with serving(pieces=[raw[at : at + size] for at in range(0, len(raw), size)]) as server:
        deltas = await collect(engine_for(server.url))
    assert "".join(delta.text for delta in deltas) == "普通门诊\u2028二十元。"


async def test_a_character_in_two_halves_is_put_together_and_a_half_one_is_marked() -> None:
    halves = [
        b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n' % half for half in (b"\\ud83d", b"\\ude00")
    ]
    async with serving(
        pieces=[chunk("好"), *halves, chunk("的"), halves[1], chunk("。"), halves[0], chunk(None, "stop"), DONE], pause=0.02
    ) as server:
        deltas = await collect(engine_for(server.url))
    assert "".join(delta.text for delta in deltas).encode().decode() == "好😀的\ufffd。"


async def test_without_usage_it_is_estimated_and_length_is_kept() -> None:
    async with serving(pieces=[chunk("一二三四"), chunk(None, "length"), DONE]) as server:
        engine = engine_for(server.url)
        counted = await engine.count_tokens(MESSAGES)
        deltas = await collect(engine)
    assert deltas[-1] == Delta("", "length", Usage(4 + 7 + 2 * 4, 4))
    # A quarter more is left room for.
    assert counted == 24


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pieces": [chunk("half")]}, r"ended without \[DONE\]"),
        ({"pieces": [chunk("half"), chunk("x")[:20]]}, r"ended without \[DONE\], in the middle of b'data: "),
        ({"pieces": [chunk("half"), DONE]}, "without a finish_reason"),
        ({"pieces": [b"data: {nonsense\n\n", DONE]}, "not a stream of chat completions"),
        ({"pieces": [b"data: [1, 2]\n\n", DONE]}, "not a stream of chat completions"),
        ({"pieces": [b'data: {"no": "choices"}\n\n', DONE]}, "not a stream of chat completions"),
        ({"pieces": [b"data: \xff\xfe\n\n", DONE]}, "not a stream of chat completions"),
        ({"pieces": [b"data: " + b"x" * (5 << 20)]}, "a line of more than 4194304 bytes"),
        ({"pieces": [b'data: {"error": {"message": "CUDA out of memory"}}\n\n', DONE]}, "failed during the answer: CUDA out of memory"),
        ({"pieces": [chunk("half"), chunk("", "content_filter"), DONE]}, "content filter"),
        ({"pieces": [b"<html>login</html>"], "headers": {"Content-Type": "text/html"}}, "answers text/html, expected text/event-stream"),
        ({"pieces": [b"<html>bad</html>"], "headers": {"Content-Type": "text/html"}, "status": "502 Bad Gateway"}, r"answers 502$"),
        ({"pieces": [b'{"error": {"message": "no key"}}'], "headers": {}, "status": "401 Unauthorized"}, "refuses the API key.*no key"),
        ({"pieces": [b'{"error": "gone"}'], "headers": {}, "status": "404 Not Found"}, "no model 'big-model'.*gone"),
        ({"pieces": [b'{"detail": "x"}'], "headers": {}, "status": "400 Bad Request"}, "answers 400"),
        (
            {"pieces": [chunk("half"), None], "headers": SSE | {"Content-Length": "9999"}},
            "connection.* broke",
        ),
    ],
)
async def test_every_fault_is_an_engine_error_that_says_what_happened(settings: dict[str, Any], message: str) -> None:
    async with serving(**settings) as server:
        with pytest.raises(EngineError, match=message) as caught:
            await collect(engine_for(server.url))
    assert "secret-key" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "header", "low", "high"),
    [
        ("429 Too Many Requests", "12", 12, 12),
        ("503 Service Unavailable", None, 1, 1),
        ("503 Service Unavailable", "soon", 1, 1),
        ("429 Too Many Requests", "DATE", 50, 60),
    ],
)
async def test_a_busy_server_says_when_to_come_back(status: str, header: str | None, low: float, high: float) -> None:
    value = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True) if header == "DATE" else header
    headers = {"Content-Type": "application/json"} | ({"Retry-After": value} if value else {})
    async with serving(status=status, headers=headers, pieces=[b'{"error": {"message": "too many"}}']) as server:
        with pytest.raises(EngineBusy, match="too many") as caught:
            await collect(engine_for(server.url))
    assert low <= caught.value.retry_after <= high


async def test_a_prompt_the_server_finds_too_long() -> None:
    said = b'{"error": {"message": "This model\'s maximum context length is 8192 tokens", "code": null}}'
    async with serving(status="400 Bad Request", headers={}, pieces=[said]) as server:
        with pytest.raises(PromptTooLong):
            await collect(engine_for(server.url))


async def test_an_answer_is_asked_for_no_longer_than_the_window() -> None:
    async with serving() as server:
        engine = engine_for(server.url, context_window=2048)
        prompt = await engine.count_tokens(MESSAGES)
        for wanted in (2048, 1_000_000, 2000, 50):
            assert [delta async for delta in engine.chat(MESSAGES, None, Sampling(max_tokens=wanted))]
        long: list[Message] = [{"role": "user", "content": "费" * 3000}]
        assert [delta async for delta in engine.chat(long, None, Sampling(max_tokens=100))]
        await engine.close()
    sent = [body["max_tokens"] for body in server.requests]
    # Whether the last one fits is the server's to say.
    assert sent == [2048 - prompt, 2048 - prompt, 2000, 50, 100]


async def test_a_refusal_for_max_tokens_names_them() -> None:
    said = b'{"error": {"message": "This model\'s maximum context length is 8192 tokens. However, you requested 8252 tokens"}}'
    async with serving(status="400 Bad Request", headers={}, pieces=[said]) as server:
        with pytest.raises(PromptTooLong, match=r"max_tokens is 7000, .* at most 8192 of both together; ask for fewer max_tokens"):
            await collect(engine_for(server.url), Sampling(max_tokens=7000))


async def test_nobody_listening() -> None:
    async with serving() as server:
        url = server.url
    with pytest.raises(EngineError, match=r"cannot be reached.*is the server running"):
        await collect(engine_for(url))
    health = await engine_for(url).health()
    assert not health.ok
    assert "cannot be reached" in health.detail


async def test_closing_the_iterator_closes_the_connection() -> None:
    async with serving(pieces=[chunk(str(n)) for n in range(1000)], pause=0.01) as server:
        engine = engine_for(server.url)
        stream = engine.chat(MESSAGES, None, Sampling())
        assert (await anext(stream)).text == "0"
        await stream.aclose()
        await asyncio.wait_for(server.client_left.wait(), 10)
        await engine.close()


async def test_an_answer_leaves_its_connection_for_the_next() -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            for piece in GOOD:
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(b"0\r\n\r\n")

    server = await asyncio.start_server(lambda reader, writer: asyncio.create_task(_quietly(serve(reader, writer))), "127.0.0.1", 0)
    engine = engine_for(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    for _ in range(5):
        assert "".join([delta.text async for delta in engine.chat(MESSAGES, None, Sampling())]) == "普通门诊\u2028二十元。"
    await engine.close()
    server.close()
    assert connections == 1


async def _quietly(work: Awaitable[None]) -> None:
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        await work


@pytest.mark.parametrize(
    ("status", "ok", "detail"),
    [("200 OK", True, ""), ("404 Not Found", True, ""), ("401 No", False, "refuses the API key"), ("500 No", False, "500")],
)
async def test_health_asks_the_server(status: str, ok: bool, detail: str) -> None:
    async with serving(status=status, headers={"Content-Type": "application/json"}, pieces=[b"{}"]) as server:
        health = await engine_for(server.url).health()
    assert health.ok is ok
    assert detail in health.detail


async def test_what_this_engine_cannot_do_is_said() -> None:
    engine = engine_for("http://127.0.0.1:9/v1")
    assert (engine.serves_adapters, engine.base_hash, await engine.adapters()) == (False, "", [])
    refused: list[Callable[[], Awaitable[Any]]] = [
        lambda: engine.load(AdapterRef("medical@1", Path("/adapters/1"))),
        lambda: anext(engine.chat(MESSAGES, "medical@1", Sampling())),
    ]
    for call in refused:
        with pytest.raises(EngineError, match="serves no adapters"):
            await call()
    with pytest.raises(EngineError, match="no messages"):
        await anext(engine.chat([], None, Sampling()))
    with pytest.raises(EngineError, match=r"url is 'example.org/v1', expected http"):
        engine_for("example.org/v1")
    await engine.close()
    with pytest.raises(EngineError, match="engine is closed"):
        await anext(engine.chat(MESSAGES, None, Sampling()))


def test_a_second_event_loop_gets_connections_of_its_own() -> None:
    async def one(engine: OpenAIEngine) -> str:
        async with serving() as server:
            engine._url = server.url
            return "".join([delta.text async for delta in engine.chat(MESSAGES, None, Sampling())])

    engine = engine_for("http://127.0.0.1:9/v1")
    assert asyncio.run(one(engine)) == asyncio.run(one(engine)) == "普通门诊\u2028二十元。"


async def test_control_words_are_found_once_for_all_that_ask_at_once() -> None:
    finding: list[bool] = []

    def words() -> list[str]:
        finding.append(True)
        time.sleep(0.1)
        return ["<|挂号|>"]

    async with serving() as server:
        engine = VllmEngine("remote", server.url, "m", None, ["zh"], "", 2048, words)
        asked: list[Message] = [{"role": "user", "content": "<|挂号|>费？"}]

        async def ask() -> str:
            return "".join([delta.text async for delta in engine.chat(asked, None, Sampling())])

        assert set(await asyncio.gather(*(ask() for _ in range(6)))) == {"普通门诊\u2028二十元。"}
        await engine.close()
    assert finding == [True]
    assert {request["messages"][0]["content"] for request in server.requests} == {"< |挂号|>费？"}
