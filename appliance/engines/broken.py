"""What stands in for an engine that cannot be started, so that everything that needs no engine goes on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence

from appliance.engines.base import AdapterRef, Delta, EngineDown, Health, Message, Sampling


class BrokenEngine:
    """An `Engine` that is not well and answers nothing."""

    serves_adapters = False
    base_hash = ""

    def __init__(self, name: str, languages: Iterable[str], context_window: int) -> None:
        self.name, self.languages, self.context_window = name, frozenset(languages), context_window

    async def chat(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling) -> AsyncGenerator[Delta]:
        raise EngineDown(f"engine {self.name} cannot be started; the log says why")
        yield  # what makes this a generator

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        return 0

    async def adapters(self) -> list[str]:
        return []

    async def load(self, adapter: AdapterRef) -> None:
        raise EngineDown(f"engine {self.name} cannot be started, so it cannot load {adapter.name}; the log says why")

    async def unload(self, name: str) -> None:
        """Nothing is ever loaded."""

    async def health(self) -> Health:
        return Health(False, "it cannot be started; the log says why")

    async def close(self) -> None:
        """There is nothing to close."""
