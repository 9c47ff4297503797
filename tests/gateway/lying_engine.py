"""A model server that lies: OpenAI's chat completions on a real socket, with a fault for every way in which servers fail."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

_HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
_DONE = b"data: [DONE]\n\n"


def _chunk(text: str | None, reason: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    body = {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


@dataclass
class LyingEngine:
    """Answers "第0词 第1词 …" of `words` words, `pause` seconds apart, or fails in the way that `fault` names.

    Before the first word: ``reset``, ``hang``, ``500``, ``garbage``; after `after` words: ``reset_later``, ``hang_later``,
    ``half_chunk``, ``no_done``, ``error_event``; `sick` makes it hang when it is asked whether it is well. `faults_left` heals it after
    so many faults.
    """

    url: str = ""
    words: int = 5
    pause: float = 0.0
    fault: str = ""
    after: int = 2
    faults_left: int = 1 << 30
    sick: bool = False
    chats: int = 0
    probes: int = 0
    sent: int = 0
    left: list[float] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop | None = None
    server: Any = None
    port: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next((int(line.split(":")[1]) for line in head.lower().splitlines() if line.startswith("content-length")), 0)
            await reader.readexactly(length)
            if "/models" in head.splitlines()[0]:
                self.probes += 1
                if self.sick:
                    await asyncio.sleep(3600)
                writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
            else:
                self.chats += 1
                watch = asyncio.create_task(self._watch(reader))
                try:
                    await self._chat(writer)
                finally:
                    watch.cancel()
        writer.close()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            await reader.read()
        self.left.append(time.monotonic())

    async def _chat(self, writer: asyncio.StreamWriter) -> None:
        fault = self.fault if self.faults_left > 0 else ""
        if fault:
            self.faults_left -= 1
        match fault:
            case "reset":
                writer.transport.abort()
                return
            case "hang":
                await asyncio.sleep(3600)
            case "500":
                writer.write(b"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                return
            case "garbage":
                writer.write(_HEAD + b"data: {nonsense\n\n")
                return
        writer.write(_HEAD)
        for number in range(self.words):
            if fault and number == self.after:
                if fault == "reset_later":
                    await writer.drain()
                    await asyncio.sleep(0.05)
                    writer.transport.abort()
                elif fault == "hang_later":
                    await asyncio.sleep(3600)
                elif fault == "half_chunk":
                    writer.write(_chunk("半")[:20])
                elif fault == "error_event":
                    writer.write(b'data: {"error": {"message": "CUDA out of memory at 10.0.0.9"}}\n\n')
                return
            writer.write(_chunk(f"第{number}词 "))
            await writer.drain()
            self.sent += 1
            await asyncio.sleep(self.pause)
        writer.write(_chunk(None, "stop") + b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":5}}\n\n' + _DONE)
        await writer.drain()

    def down(self) -> None:
        """Stop listening: connections are refused."""
        assert self.loop is not None
        asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(10)

    def up(self) -> None:
        """Listen again, on the same port."""
        assert self.loop is not None
        asyncio.run_coroutine_threadsafe(self._open(), self.loop).result(10)

    async def _open(self) -> None:
        self.server = await asyncio.start_server(self.handle, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    async def _close(self) -> None:
        self.server.close()


@contextmanager
def lying(**settings: Any) -> Iterator[LyingEngine]:
    """A lying engine in a thread of its own."""
    engine = LyingEngine(**settings)
    engine.loop = asyncio.new_event_loop()
    thread = threading.Thread(target=engine.loop.run_forever)
    thread.start()
    try:
        engine.up()
        yield engine
    finally:
        engine.down()

        def stop() -> None:
            assert engine.loop is not None
            for task in asyncio.all_tasks(engine.loop):
                task.cancel()
            engine.loop.call_later(0.05, engine.loop.stop)

        engine.loop.call_soon_threadsafe(stop)
        thread.join(10)
        engine.loop.close()
