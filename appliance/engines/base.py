"""The engine contract: one base model that chats, with LoRA adapters chosen per request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypedDict

from appliance.errors import ApplianceError

FinishReason = Literal["stop", "length"]


class Message(TypedDict):
    """One chat message in OpenAI's form."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to generate. `temperature` 0 is greedy; `stop` strings are not part of the output."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of generated text. The last one of a stream carries `finish_reason` and `usage`."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An immutable adapter version and the absolute folder that holds it."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the engine can answer now; `detail` says why not, in plain words."""

    ok: bool
    detail: str = ""


class EngineError(ApplianceError):
    """The engine failed; the message says what happened and what to do."""


class EngineDown(EngineError):
    """The engine itself is at fault: it cannot be reached, broke off, or failed inside. `retry_after` seconds may help."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineLate(EngineDown):
    """The engine took longer than it may."""


class EngineBusy(EngineError):
    """The queue is full; try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class PromptTooLong(EngineError):
    """The prompt of `tokens` does not fit the model's context window, or does not with `max_tokens` after it."""

    def __init__(self, tokens: int, limit: int, max_tokens: int = 0) -> None:
        if tokens < limit and max_tokens:
            message = (
                f"the prompt has about {tokens} tokens and max_tokens is {max_tokens}, the model takes at most {limit} of both together; "
                "ask for fewer max_tokens, or shorten the question or the history"
            )
        else:
            message = f"the prompt has {tokens} tokens, the model takes at most {limit}; shorten the question or the history"
        super().__init__(message)
        self.tokens, self.limit = tokens, limit


class Engine(Protocol):
    """What every engine does. Closing the iterator of `chat` cancels the request.

    `name` is the key in ``[engines.NAME]``, `base_hash` identifies the base model's weights ('' if unknown), `languages` what it declares,
    `serves_adapters` whether adapters can be loaded at all, `context_window` the tokens a prompt and its answer may have together: an
    answer ends there, whatever `max_tokens` says.
    """

    name: str
    base_hash: str
    languages: frozenset[str]
    serves_adapters: bool
    context_window: int

    def chat(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling) -> AsyncGenerator[Delta]:
        """Stream the assistant's next message; raises EngineError, EngineDown, EngineBusy, PromptTooLong."""
        ...

    async def count_tokens(self, messages: Sequence[Message]) -> int: ...

    async def adapters(self) -> list[str]:
        """Names of the adapters loaded now."""
        ...

    async def load(self, adapter: AdapterRef) -> None:
        """Load an adapter under its immutable name; idempotent. Raises EngineError with the reason."""
        ...

    async def unload(self, name: str) -> None: ...

    async def health(self) -> Health: ...

    async def close(self) -> None: ...
