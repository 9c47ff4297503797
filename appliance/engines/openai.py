"""Any OpenAI-compatible endpoint as an engine: streamed chat completions, no adapters."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast

from appliance.engines.base import (
    AdapterRef,
    Delta,
    EngineBusy,
    EngineDown,
    EngineError,
    EngineLate,
    FinishReason,
    Health,
    Message,
    PromptTooLong,
    Sampling,
    Usage,
)

if TYPE_CHECKING:
    import httpx

# A line of a stream that grows beyond this is not a stream of deltas.
_MAX_LINE_BYTES = 4 << 20
# Idle connections that are kept for the next requests.
_IDLE_CONNECTIONS = 100
# Seconds that a response may take to end after its last event; one that has ended leaves its connection for the next request.
_ENDING = 0.1


class UnknownModel(EngineError):
    """The server has no model of this name."""


@dataclass(slots=True)
class _Stream:
    """What has arrived so far of one answer."""

    text: list[str] = field(default_factory=list)
    reason: FinishReason | None = None
    usage: Usage | None = None
    # The first half of a character whose second half is to come with the next piece.
    half: str = ""

    def whole(self, text: str) -> str:
        """`text` in whole characters: JSON can bring one outside the basic plane in two halves, which no encoding takes by themselves."""
        text = self.half + text
        self.half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        text = text.removesuffix(self.half) if self.half else text
        return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class OpenAIEngine:
    """A model behind ``{url}/chat/completions``; `url` normally ends in ``/v1``. See `appliance.engines.base.Engine` for the contract.

    `connect_timeout` is in seconds; tokens are waited for without end (see `appliance.engines.guard`). `base_hash` is unknown. May be used
    from one event loop at a time. Raises EngineError for a bad `url`.

    Messages are sent as they are: the control tokens of a model elsewhere are known to its server only, which must keep them out of
    messages itself. Those of the common chat templates are broken up in every prompt (`appliance.prompts`).
    """

    serves_adapters = False
    base_hash = ""

    def __init__(
        self,
        name: str,
        url: str,
        model: str,
        api_key: str | None,
        languages: Iterable[str],
        context_window: int = 8192,
        connect_timeout: float = 1.5,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise EngineError(f"engine {name}: url is {url!r}, expected http://HOST:PORT/v1 or https://HOST/v1")
        self.name, self.languages, self.context_window = name, frozenset(languages), context_window
        self._url, self._model, self._key = url.rstrip("/"), model, api_key
        self._connect = connect_timeout
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def chat(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """See the contract. A busy server (429, 503) is EngineBusy with its Retry-After, one that fails EngineDown, a prompt it finds too
        long PromptTooLong; what it refuses for another reason is a plain EngineError."""
        import httpx

        if adapter is not None and not self.serves_adapters:
            raise EngineError(f"engine {self.name} serves no adapters, {adapter!r} was asked for")
        if not messages:
            raise EngineError("there are no messages to answer; send at least one user message")
        sampling = await self._within_window(messages, sampling)
        request = self._http().build_request(
            "POST", f"{self._url}/chat/completions", json=self._body(messages, adapter or self._model, sampling)
        )
        try:
            response = await self._http().send(request, stream=True)
            try:
                await self._check(response, messages, sampling)
                stream = _Stream()
                async for arrived in _events(response):
                    before = len(stream.text)
                    try:
                        for data in arrived:
                            _absorb(json.loads(data), stream)
                    finally:
                        # Also what came right before a fault.
                        if text := "".join(stream.text[before:]):
                            yield Delta(text)
            finally:
                await response.aclose()
        except httpx.ConnectTimeout as error:
            raise EngineLate(f"{self._url} did not accept the connection within {self._connect:g} s; is the server running?") from error
        except httpx.ConnectError as error:
            raise EngineDown(f"{self._url} cannot be reached ({error}); is the server running?") from error
        except httpx.HTTPError as error:
            raise EngineDown(f"the connection to {self._url} broke during the answer ({type(error).__name__}: {error})") from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise EngineDown(f"{self._url} sent something that is not a stream of chat completions: {error}") from error
        if stream.reason is None:
            raise EngineDown(f"{self._url} ended the answer without a finish_reason")
        yield Delta("", stream.reason, stream.usage or Usage(_estimate(messages), _tokens("".join(stream.text))))

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """An estimate, the server's tokenizer being unknown, with a quarter to spare: a Chinese character is one token, four other
        characters are one."""
        return math.ceil(_estimate(messages) * 1.25)

    async def adapters(self) -> list[str]:
        return []

    async def load(self, adapter: AdapterRef) -> None:
        raise EngineError(f"engine {self.name} serves no adapters; use a local or vllm engine for {adapter.name}")

    async def unload(self, name: str) -> None:
        """Nothing is ever loaded."""

    async def health(self) -> Health:
        """Asks the server for its models, and waits for the answer without end. The detail names no address: clients see it."""
        import httpx

        if self._closed:
            return Health(False, "the engine is closed")
        try:
            response = await self._http().get(f"{self._url}/models")
        except httpx.HTTPError as error:
            return Health(False, f"its server cannot be reached ({type(error).__name__}); is it running?")
        if response.status_code in (401, 403):
            return Health(False, f"its server refuses the API key ({response.status_code})")
        # Some servers have no list of models; that they answer is enough.
        return Health(response.status_code < 500, "" if response.status_code < 500 else f"its server answers {response.status_code}")

    async def close(self) -> None:
        self._closed = True
        client, self._client = self._client, None
        if client is not None and self._loop is asyncio.get_running_loop():
            await client.aclose()

    def _http(self) -> httpx.AsyncClient:
        import httpx

        from appliance.engines.plain_http import mounts

        if self._closed:
            raise EngineError("the engine is closed")
        loop = asyncio.get_running_loop()
        # Pooled connections belong to the loop that opened them.
        if self._client is None or self._loop is not loop:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            timeout = httpx.Timeout(None, connect=self._connect)
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=_IDLE_CONNECTIONS)
            direct = mounts(self._url, _IDLE_CONNECTIONS)
            self._client, self._loop = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits, mounts=direct), loop
        return self._client

    async def _within_window(self, messages: Sequence[Message], sampling: Sampling) -> Sampling:
        """`sampling` with no more tokens than the prompt leaves of the window: servers refuse what is to end there."""
        # Counting may be a call; most prompts are far from the end. A character is hardly ever more than two tokens.
        if sum(2 * len(message["content"]) + 64 for message in messages) + sampling.max_tokens <= self.context_window:
            return sampling
        left = self.context_window - await self.count_tokens(messages)
        # Whether a prompt fits that seems to leave nothing, the server knows; an answer of one token would be none.
        return replace(sampling, max_tokens=min(sampling.max_tokens, left)) if left > 0 else sampling

    def _body(self, messages: Sequence[Message], model: str, sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": model,
            "messages": list(messages),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        return body

    async def _check(self, response: httpx.Response, messages: Sequence[Message], sampling: Sampling) -> None:
        """Raise unless the response is a stream of events."""
        status, kind = response.status_code, response.headers.get("content-type", "")
        if status == 200 and kind.startswith("text/event-stream"):
            return
        said = message_of((await response.aread())[:100_000])
        if status in (429, 503):
            wait = _retry_after(response.headers.get("retry-after"))
            raise EngineBusy(f"{self._url} is busy ({status}{said and ': ' + said}); try again in {wait:g} s", retry_after=wait)
        if status in (401, 403):
            raise EngineError(f"{self._url} refuses the API key ({status}{said and ': ' + said}); check api_key_env of engine {self.name}")
        if status == 404:
            raise UnknownModel(f"{self._url} has no chat completions or no model {self._model!r} (404{said and ': ' + said})")
        if status in (400, 413) and ("context_length" in said or "maximum context" in said or "maximum model length" in said):
            raise PromptTooLong(_estimate(messages), self.context_window, sampling.max_tokens)
        if status != 200:
            kind_of = EngineDown if status >= 500 else EngineError
            raise kind_of(f"{self._url} answers {status}{said and ': ' + said}")
        raise EngineError(f"{self._url} answers {kind or 'something without a type'}, expected text/event-stream; is this the right url?")


async def _events(response: httpx.Response) -> AsyncIterator[list[bytes]]:
    """The data of the server-sent events that have arrived together, until ``[DONE]``.

    Splits bytes at newlines only: JSON may hold other line separators as text.
    """
    rest = b""
    # As they come: what httpx does to each piece costs more than all that is done with it here.
    pieces = response.aiter_bytes() if "content-encoding" in response.headers else aiter(cast("httpx.AsyncByteStream", response.stream))
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_LINE_BYTES:
            raise ValueError(f"a line of more than {_MAX_LINE_BYTES} bytes")
        arrived: list[bytes] = []
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                yield arrived
                with suppress(TimeoutError):
                    async with asyncio.timeout(_ENDING):
                        async for _ in pieces:
                            pass
                return
            arrived.append(data)
        yield arrived
    raise ValueError("it ended without [DONE]" + (f", in the middle of {rest[:80]!r}" if rest.strip() else ""))


def _absorb(chunk: dict[str, Any], stream: _Stream) -> None:
    """Take one chunk in. Raises EngineError if the server reports a failure inside the stream."""
    if "error" in chunk:
        error = chunk["error"]
        raise EngineDown(f"the server failed during the answer: {error.get('message', error) if isinstance(error, dict) else error}")
    if usage := chunk.get("usage"):
        stream.usage = Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
    if not chunk["choices"]:
        return
    choice = chunk["choices"][0]
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        raise EngineError("the server's content filter stopped the answer")
    if reason is not None:
        stream.reason = "length" if reason == "length" else "stop"
    if text := (choice.get("delta") or {}).get("content"):
        stream.text.append(stream.whole(str(text)))


def message_of(body: bytes) -> str:
    """What an error page says, in at most 300 characters; '' for HTML, which says nothing to a reader."""
    text = body.decode("utf-8", "replace").strip()
    try:
        error = json.loads(text)
    except ValueError:
        return "" if text.startswith("<") else text[:300]
    error = error.get("error", error) if isinstance(error, dict) else error
    said = f"{error.get('message', '')} {error.get('code') or ''}".strip() if isinstance(error, dict) else str(error)
    return said[:300]


def _retry_after(header: str | None) -> float:
    """Seconds from a Retry-After header, which holds seconds or a date (RFC 9110); 1 if there is none."""
    if not header:
        return 1.0
    if header.strip().isdigit():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return 1.0
    return max(0.0, (moment.astimezone(UTC) - datetime.now(UTC)).total_seconds())


def _estimate(messages: Sequence[Message]) -> int:
    # Four tokens around each message are what common chat templates add.
    return sum(_tokens(message["content"]) + 4 for message in messages)


def _tokens(text: str) -> int:
    wide = sum(1 for char in text if ord(char) >= 0x2E80)
    return wide + -(-(len(text) - wide) // 4)
