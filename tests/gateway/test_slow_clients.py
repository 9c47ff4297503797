"""Clients that keep their connection and do nothing, those that are only slow, and those whose head has no end."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from gateway_fake import FakeAnswering
from gateway_server import Served

from appliance.gateway.connection import Connection

LONG = ["药" * 30_000] * 300
PATIENCE = 1.0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "patience", PATIENCE)


@contextmanager
def connected(served: Served) -> Iterator[socket.socket]:
    with socket.socket() as client:
        # The system would take megabytes for a client that does not read; with much less than this it sends in fits and starts.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.settimeout(20)
        host, port = served.url.removeprefix("http://").split(":")
        client.connect((host, int(port)))
        yield client


def request(served: Served, length: int | None = None) -> tuple[bytes, bytes]:
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "剂量？"}], "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {served.key}\r\nContent-Type: application/json\r\n"
    return f"{head}Connection: close\r\nContent-Length: {length or len(body)}\r\n\r\n".encode(), body


def ended(client: socket.socket) -> float:
    """Seconds until the server ends the connection."""
    started = time.monotonic()
    with suppress(ConnectionError):
        while client.recv(65_536):
            pass
    return time.monotonic() - started


def test_who_does_not_read_loses_the_turn(start: Callable[..., Served]) -> None:
    served = start(FakeAnswering(pieces=LONG))
    with connected(served) as client:
        client.sendall(b"".join(request(served)))
        deadline = time.monotonic() + 20
        while not served.answering.abandoned.is_set():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert served.metric("appliance_answers_running") == 0


def test_who_reads_slowly_gets_everything(start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine adds to the rests; together they are longer than the patience, none of them is by far.
    monkeypatch.setattr(Connection, "patience", 5.0)
    served = start(FakeAnswering(pieces=LONG[:60]))
    with connected(served) as client:
        client.sendall(b"".join(request(served)))
        pieces, resting = [], 0
        while piece := client.recv(1 << 20):
            pieces.append(piece)
            if resting < 8 and sum(map(len, pieces)) > resting * 500_000:
                resting += 1
                time.sleep(0.75)
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("sent", ["nothing", "half a head", "half a body", "a second request"])
def test_who_does_not_send_is_not_waited_for(start: Callable[..., Served], sent: str) -> None:
    served = start(FakeAnswering())
    head, body = request(served)
    with connected(served) as client:
        if sent == "half a head":
            client.sendall(head[:50])
        elif sent == "half a body":
            client.sendall(head + body[:20])
        elif sent == "a second request":
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.1 200 OK"
            client.sendall(head[:50])
        assert ended(client) > PATIENCE / 2
    assert not served.answering.asked


def test_a_body_may_come_slowly(start: Callable[..., Served]) -> None:
    served = start(FakeAnswering())
    head, body = request(served)
    with connected(served) as client:
        client.sendall(head)
        step = len(body) // 6
        for place in range(0, len(body), step):
            time.sleep(PATIENCE / 4)
            client.sendall(body[place : place + step])
        assert client.recv(15) == b"HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    "piece",
    [b"GET /livez HTTP/1.1\r\nX-A: ", b"GET /livez HTTP/1.1\r\nHost: a\r\n", b"GET /livez?", b"GET /livez HTTP/1.1\r\n\r\nGET /"],
    ids=["one field", "many fields", "the address", "the second request"],
)
def test_a_head_without_end_is_refused(start: Callable[..., Served], piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "patience", 60.0)
    served = start()
    more = b"X-A: 1\r\n" * 1000 if piece.endswith(b"a\r\n") else b"a" * 8000
    with connected(served) as client:
        sent = 0
        with suppress(ConnectionError):
            client.sendall(piece)
            while sent < 50 << 20:
                client.sendall(more)
                sent += len(more)
        # What the system takes in between, and no more.
        assert sent < 20 << 20
    assert served.http("").get("/livez").status_code == 200


def test_the_refusal_of_a_head_can_be_read(start: Callable[..., Served]) -> None:
    served = start()
    with connected(served) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nX-A: " + b"a" * Connection.head_bytes)
        answer = client.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 431 ") and b"connection: close" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "head_too_large"
    assert served.http("").get("/livez", headers={"X-A": "a" * (Connection.head_bytes - 500)}).status_code == 200


def test_nor_has_what_follows_a_body(start: Callable[..., Served], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields after the last chunk are gathered like those before the first; a body of many small chunks is none of them."""
    monkeypatch.setattr(Connection, "patience", 60.0)
    served = start(FakeAnswering())
    head, body = request(served)
    head = head.replace(f"Content-Length: {len(body)}".encode(), b"Transfer-Encoding: chunked")
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body + b" " * 15_000)
    with connected(served) as client:
        client.sendall(head + chunks + b"0\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
    with connected(served) as client:
        client.sendall(head + chunks + b"0\r\n")
        sent = 0
        with suppress(ConnectionError):
            while sent < 50 << 20:
                client.sendall(b"X-A: 1\r\n" * 1000)
                sent += 8000
        assert sent < 20 << 20
