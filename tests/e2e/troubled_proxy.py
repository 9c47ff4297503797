"""What lies between the gateway and a real vLLM, and does to its answers what networks and overloaded servers do."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class TroubledProxy:
    """Hands requests to the server at `upstream` and its answers back, but does to the next `left` chats what `fault` names.

    ``500`` and ``reset`` instead of an answer; ``reset_later`` and ``half`` (of an event) after some words; ``bytes``:
    whole, but byte by byte, with characters torn apart and a pause after each event.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.fault, self.left, self.done = "", 0, 0
        self.loop = asyncio.new_event_loop()
        self.url = ""

    async def open(self) -> None:
        server = await asyncio.start_server(self.handle, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"(?i)\r\ncontent-length: (\d+)", head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            fault = ""
            if "/chat/completions" in head and self.left > 0:
                fault, self.left, self.done = self.fault, self.left - 1, self.done + 1
            if fault == "500":
                writer.write(b"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            elif fault == "reset":
                writer.transport.abort()
                return
            else:
                head = re.sub(r"(?i)\r\nconnection: [^\r]*", "", head).replace("\r\n", "\r\nConnection: close\r\n", 1)
                await self.relay(head.encode() + body, reader, writer, fault)
        writer.close()

    async def relay(self, request: bytes, client: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: str) -> None:
        answer, server = await asyncio.open_connection(self.upstream.hostname, self.upstream.port)
        # Who goes is gone for the server as well.
        gone = asyncio.ensure_future(client.read())
        gone.add_done_callback(lambda _: server.close())
        try:
            server.write(request)
            texts = 0
            while piece := await answer.read(65_536):
                texts += piece.count(b'"content":"') if fault else 0
                if texts > 4 and fault == "reset_later":
                    writer.transport.abort()
                    return
                if texts > 4 and fault == "half":
                    writer.write(piece[: len(piece) // 2])
                    return
                for part in [piece[at : at + 1] for at in range(len(piece))] if fault == "bytes" else [piece]:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
                if fault == "bytes":
                    await asyncio.sleep(0.3)
        finally:
            gone.cancel()
            server.close()


@contextmanager
def troubled(upstream: str) -> Iterator[TroubledProxy]:
    """A proxy before `upstream`, in a thread of its own."""
    proxy = TroubledProxy(upstream)
    thread = threading.Thread(target=proxy.loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(proxy.open(), proxy.loop).result(10)
        yield proxy
    finally:
        proxy.loop.call_soon_threadsafe(proxy.loop.stop)
        thread.join(10)
