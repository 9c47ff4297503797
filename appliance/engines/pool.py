"""The engines of a workspace by name, each started on first use."""

from __future__ import annotations

import asyncio
from typing import Any

from appliance.engines.base import Engine
from appliance.engines.build import build
from appliance.models.store import ModelStore
from appliance.workspace import Workspace


class EnginePool:
    """Engines by the name they have in the configuration."""

    def __init__(self, workspace: Workspace, models: ModelStore) -> None:
        self._workspace = workspace
        self._models = models
        self._engines: dict[str, Engine] = {}
        self._lock = asyncio.Lock()

    async def of(self, domain: str) -> Engine:
        """The engine that answers for `domain`."""
        return await self.named(self._workspace.config.engine_of(domain)[0])

    async def named(self, name: str) -> Engine:
        """The engine called `name` in the configuration."""
        settings = self._workspace.config.engines[name]
        async with self._lock:
            if name not in self._engines:
                self._engines[name] = await asyncio.to_thread(build, name, settings, self._models, self._workspace.root)
            return self._engines[name]

    async def health(self) -> dict[str, Any]:
        """State of every engine started so far."""
        states = {name: await engine.health() for name, engine in self._engines.items()}
        return {name: {"ok": state.ok, "detail": state.detail} for name, state in states.items()}

    async def close(self) -> None:
        for engine in self._engines.values():
            await engine.close()
        self._engines.clear()
