"""The engines of a workspace by name, each started on first use and guarded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from appliance.engines.base import Engine
from appliance.engines.breaker import Breaker
from appliance.engines.broken import BrokenEngine
from appliance.engines.build import build, lint
from appliance.engines.guard import Guarded, TimeLimits
from appliance.engines.vllm_started import StartedVllm
from appliance.errors import ApplianceError, UsageError
from appliance.models.store import ModelStore
from appliance.settings import EngineConfig
from appliance.workspace import Workspace

logger = logging.getLogger("appliance.engines")

# Seconds until an engine that could not be started is started again.
_AGAIN = 5.0


class EnginePool:
    """Engines by the name they have in the configuration."""

    def __init__(self, workspace: Workspace, models: ModelStore, patient: bool = True) -> None:
        """A `patient` pool gives an engine whose server is being started once it answers; else the engine says so, and others answer."""
        self._workspace, self._patient = workspace, patient
        self._models = models
        self._engines: dict[str, Guarded] = {}
        self._broken: dict[str, tuple[float, BrokenEngine]] = {}
        self._again: dict[str, asyncio.Task[Engine]] = {}
        # One for each engine: nobody waits for the start of another.
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def of(self, domain: str) -> Engine:
        """The engine that answers for `domain`."""
        return await self.named(self._workspace.config.engine_of(domain)[0])

    async def named(self, name: str) -> Engine:
        """The engine called `name` in the configuration; one that is not well where it cannot be started now.

        Raises UsageError for settings that do not go together.
        """
        if name in self._engines:
            return self._engines[name]
        settings = self._workspace.config.engines[name]
        async with self._locks[name]:
            if name in self._engines:
                return self._engines[name]
            if name not in self._broken:
                return await self._start(name, settings)
            # Fetching a model may take long: nobody waits for another try of what failed before.
            since, broken = self._broken[name]
            trying = self._again.get(name)
            if time.monotonic() >= since + _AGAIN and (trying is None or trying.done()):
                self._again[name] = asyncio.create_task(self._start(name, settings))
            return broken

    async def _start(self, name: str, settings: EngineConfig) -> Engine:
        try:
            engine = await asyncio.to_thread(build, name, settings, self._models, self._workspace)
        except ApplianceError as error:
            if isinstance(error, UsageError) and name not in self._broken:
                raise
            logger.error("engine %s cannot be started: %s", name, error)
            broken = BrokenEngine(name, settings.languages, settings.context_window)
            self._broken[name] = (time.monotonic(), broken)
            return broken
        self._broken.pop(name, None)
        if self._patient and isinstance(engine, StartedVllm):
            try:
                await engine.start(settings.start_seconds)
            except asyncio.CancelledError:
                await engine.close()
                raise
        self._engines[name] = _guarded(engine, settings, partial(lint, settings, self._models, self._workspace))
        return self._engines[name]

    async def health(self) -> dict[str, Any]:
        """State of every engine that was asked for so far."""
        known: dict[str, Engine] = {**{name: broken for name, (_, broken) in self._broken.items()}, **self._engines}
        states = await asyncio.gather(*(engine.health() for engine in known.values()))
        return {name: {"ok": state.ok, "detail": state.detail} for name, state in zip(known, states, strict=True)}

    def started(self) -> Mapping[str, Guarded]:
        """The engines that run, for the metrics."""
        return dict(self._engines)

    async def close(self) -> None:
        for task in self._again.values():
            task.cancel()
        await asyncio.gather(*self._again.values(), return_exceptions=True)
        # Beside each other: a server takes seconds to end.
        engines, self._engines = list(self._engines.values()), {}
        await asyncio.gather(*(engine.close() for engine in engines))


def _guarded(engine: Engine, settings: EngineConfig, lint: Callable[[Path], Sequence[str]]) -> Guarded:
    limits = TimeLimits(settings.connect_seconds, settings.first_token_seconds, settings.between_tokens_seconds, settings.total_seconds)
    return Guarded(engine, limits, Breaker(settings.breaker_failures, settings.breaker_seconds), lint)
