"""A stand-in for a model server that costs next to nothing: OpenAI's streaming chat completions, the tokens at fixed times.

`python benchmarks/paced_engine.py FIRST_MS TOKEN_MS TOKENS` prints its address and serves until it is killed. Token k leaves
FIRST_MS + k * TOKEN_MS after the request; 0 and 0 sends as fast as the connection takes it.
"""

from __future__ import annotations

import asyncio
import json
import sys

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _framed(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _event(delta: dict[str, str], reason: str | None = None) -> bytes:
    chunk = {
        "id": "chatcmpl-paced",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "paced",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}],
    }
    return _framed(b"data: " + json.dumps(chunk).encode() + b"\n\n")


class Engine:
    def __init__(self, first: float, between: float, tokens: int) -> None:
        self.first, self.between = first, between
        self.pieces = [_event({"content": f"token{number} "}) for number in range(tokens)]
        usage = {"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": tokens, "total_tokens": 20 + tokens}}
        self.end = (
            _event({}, "stop") + _framed(b"data: " + json.dumps(usage).encode() + b"\n\n") + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                asked = loop.time()
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                if lengths:
                    await reader.readexactly(int(lengths[0].split(b":")[1]))
                if head.startswith(b"GET"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
                    continue
                writer.write(_HEAD)
                for number, piece in enumerate(self.pieces):
                    wait = asked + self.first + number * self.between - loop.time()
                    if wait > 0:
                        await asyncio.sleep(wait)
                    writer.write(piece)
                    await writer.drain()
                writer.write(self.end)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()


async def main() -> None:
    first, between, tokens = float(sys.argv[1]) / 1000, float(sys.argv[2]) / 1000, int(sys.argv[3])
    server = await asyncio.start_server(Engine(first, between, tokens).serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
