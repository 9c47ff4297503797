"""Engines by name: one that cannot be started holds nobody up, and comes back by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from fake_engine import ScriptedEngine

from appliance.engines import pool
from appliance.engines.base import EngineDown, EngineError
from appliance.errors import UsageError
from appliance.models.store import ModelStore
from appliance.workspace import Workspace


def starting(monkeypatch: pytest.MonkeyPatch, steps: Sequence[Any]) -> None:
    """What each attempt to start the engine does: raise an error, or wait for an event and give an engine."""
    left = iter(steps)

    def build(*_: object) -> ScriptedEngine:
        step = next(left)
        if isinstance(step, Exception):
            raise step
        step.wait(20)
        return ScriptedEngine("是的")

    monkeypatch.setattr(pool, "build", build)
    monkeypatch.setattr(pool, "_AGAIN", 0.0)


def test_another_try_holds_nobody_up(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = threading.Event()
    starting(monkeypatch, [EngineError("no model"), EngineError("still none"), fetched])

    async def run() -> None:
        engines = pool.EnginePool(workspace, ModelStore.default())
        for _ in range(20):
            engine = await engines.named("default")
            assert not (await engine.health()).ok and not (await engines.health())["default"]["ok"]
            with pytest.raises(EngineDown, match="cannot be started"):
                await anext(engine.chat([], None, None))  # type: ignore[arg-type]
            await asyncio.sleep(0.01)
        fetched.set()
        for _ in range(1000):
            if (await (await engines.named("default")).health()).ok:
                break
            await asyncio.sleep(0.01)
        assert list(engines.started()) == ["default"]
        await engines.close()

    asyncio.run(run())


def test_an_engine_that_is_being_started_holds_up_no_other(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.save_setting("engines.other.kind", "local")
    begun, go, built = threading.Event(), threading.Event(), []

    def build(name: str, *_: object) -> ScriptedEngine:
        built.append(name)
        if name == "default":
            begun.set()
            assert go.wait(20)
        return ScriptedEngine(name)

    monkeypatch.setattr(pool, "build", build)

    async def run() -> None:
        engines = pool.EnginePool(workspace, ModelStore.default())
        slow = [asyncio.create_task(engines.named("default")) for _ in range(2)]
        await asyncio.to_thread(begun.wait, 20)
        try:
            async with asyncio.timeout(10):
                await engines.named("other")
            assert not any(task.done() for task in slow)
        finally:
            go.set()
        one, same = await asyncio.gather(*slow)
        assert one is same and built == ["default", "other"]
        await engines.close()

    asyncio.run(run())


def test_settings_that_do_not_go_together_are_told_at_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    starting(monkeypatch, [UsageError("url is missing")] * 2)

    async def run() -> None:
        engines = pool.EnginePool(workspace, ModelStore.default())
        for _ in range(2):
            with pytest.raises(UsageError, match="url is missing"):
                await engines.named("default")

    asyncio.run(run())
