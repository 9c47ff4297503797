"""An engine under the test's control, for faults and for exact words; real engines are tested elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from appliance.engines.base import AdapterRef, Delta, Health, Message, Sampling, Usage


class ScriptedEngine:
    """Says `reply`, piece by piece; records what it was asked."""

    serves_adapters = True

    def __init__(self, reply: str = "", languages: Sequence[str] = ("en", "zh"), base_hash: str = "base", window: int = 4096) -> None:
        self.name = "default"
        self.base_hash = base_hash
        self.languages = frozenset(languages)
        self.context_window = window
        self.reply = reply
        self.asked: list[tuple[list[Message], str | None, Sampling]] = []
        self.error: Exception | None = None
        self.state = Health(True)
        self.loaded: list[str] = []
        self.cancelled = 0

    async def chat(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling) -> AsyncGenerator[Delta]:
        self.asked.append((list(messages), adapter, sampling))
        pieces = self.reply.split(" ")
        try:
            for number, piece in enumerate(pieces):
                yield Delta(piece if number == 0 else " " + piece)
                if self.error is not None:
                    raise self.error
            yield Delta("", "stop", Usage(10, len(pieces)))
        except GeneratorExit:
            self.cancelled += 1
            raise

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    async def adapters(self) -> list[str]:
        return self.loaded

    async def load(self, adapter: AdapterRef) -> None:
        self.loaded.append(adapter.name)

    async def unload(self, name: str) -> None:
        self.loaded.remove(name)

    async def health(self) -> Health:
        return self.state

    async def close(self) -> None:
        self.loaded.clear()
