"""The transport for servers that stream over plain HTTP, against a socket that answers byte by byte as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from appliance.engines.plain_http import PlainTransport, mounts

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def served(*answers: Sequence[bytes | float]) -> AsyncIterator[tuple[httpx.AsyncClient, list[bytes]]]:
    """A client of a server that gives each request the next answer: pieces, seconds to wait, and then the end of the connection if the
    last piece is empty. The list is of what was asked, with an empty entry for every new connection."""
    seen: list[bytes] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(b"")
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while left:
                seen.append(await reader.readuntil(b"\r\n\r\n"))
                pieces = left.pop(0)
                for piece in pieces:
                    if isinstance(piece, float):
                        await asyncio.sleep(piece)
                        continue
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                if pieces[-1] == b"":
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with httpx.AsyncClient(base_url=url, mounts=mounts(url, 5), timeout=5) as client:
        yield client, seen
    server.close()


@pytest.mark.parametrize(
    "answer",
    [
        [HEAD + b"Content-Length: 6\r\n\r\n", b"\xe8\x8d", b"\xaf\xe7\x89\x87"],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\n\xe8\x8d\xaf\r\n3\r", b"\n\xe7\x89\x87\r\n0\r\n", b"\r\n"],
        [HEAD + b"Connection: close\r\n\r\n\xe8\x8d\xaf", b"\xe7\x89\x87", b""],
        [b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", HEAD + b"Content-Length: 6\r\n\r\n\xe8\x8d\xaf\xe7\x89\x87"],
        [bytes([byte]) for byte in HEAD + b"Content-Length: 6\r\n\r\n\xe8\x8d\xaf\xe7\x89\x87"],
    ],
)
async def test_a_body_is_read_however_it_is_sent(answer: list[bytes]) -> None:
    async with served(answer) as (client, _):
        found = await client.get("/")
    assert (found.status_code, found.content.decode(), found.headers["content-type"]) == (200, "药片", "text/plain")


async def test_a_connection_is_used_again_only_after_a_whole_answer() -> None:
    whole = [HEAD + b"Content-Length: 2\r\n\r\nok"]
    async with served(whole, whole, [HEAD + b"Content-Length: 9\r\n\r\nhal"], whole) as (client, seen):
        for _ in range(2):
            assert (await client.post("/", json={"药": 1})).text == "ok"
        assert seen.count(b"") == 1
        async with client.stream("GET", "/") as answer:
            assert await anext(answer.aiter_raw()) == b"hal"
        assert (await client.get("/")).text == "ok" and seen.count(b"") == 2


async def test_a_kept_connection_that_ends_as_it_is_used_again_is_replaced() -> None:
    whole, nothing = [HEAD + b"Content-Length: 2\r\n\r\nok"], [b""]
    async with served(whole, nothing, whole, nothing, nothing) as (client, seen):
        for _ in range(2):
            assert (await client.post("/", json={"药": 1})).text == "ok"
        # A new one that ends the same way is a fault.
        with pytest.raises(httpx.RemoteProtocolError, match="closed the connection without an answer"):
            await client.get("/")
        assert seen.count(b"") == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ([b""], httpx.RemoteProtocolError),
        ([b"SSH-2.0-nonsense\r\n\r\n", b""], httpx.RemoteProtocolError),
        ([HEAD + b"Content-Length: 9\r\n\r\nhal", b""], httpx.ReadError),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b""], httpx.ReadError),
        ([1.0, b""], httpx.ReadTimeout),
        ([HEAD + b"Content-Length: 9\r\n\r\nhal", 1.0, b""], httpx.ReadTimeout),
    ],
)
async def test_what_goes_wrong_is_an_error_of_httpx(answer: list[bytes], error: type[Exception]) -> None:
    async with served(answer) as (client, _):
        with pytest.raises(error):
            await client.get("/", timeout=httpx.Timeout(5, read=0.2))


async def test_nobody_listens() -> None:
    async with httpx.AsyncClient(mounts=mounts("http://127.0.0.1:9", 1)) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:9/")


async def test_a_server_that_sends_faster_than_is_read_waits() -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"\r\n")
        with suppress(ConnectionError):
            for _ in range(400):
                writer.write(b"x" * (1 << 16))
                await writer.drain()
                sent += 1 << 16
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with httpx.AsyncClient(mounts=mounts(url, 1)) as client, client.stream("GET", url) as answer:
        await asyncio.sleep(0.3)
        assert sent < 400 << 16
        total = 0
        async for piece in answer.aiter_raw():
            total += len(piece)
        assert total == 400 << 16
    server.close()


def test_https_and_proxies_are_left_to_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mounts("https://models.example/v1", 1) == {}
    (transport,) = mounts("http://models.example:8000/v1", 1).values()
    assert isinstance(transport, PlainTransport)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert mounts("http://models.example:8000/v1", 1) == {}
    monkeypatch.setenv("no_proxy", "models.example")
    assert list(mounts("http://models.example:8000/v1", 1)) == ["http://models.example:8000"]
