"""Adapters on running engines: loaded and tried before they answer, unloaded once nobody needs them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import sqlalchemy as sa

from appliance.adapters import canary
from appliance.adapters.registry import VERSION_NAME, AdapterVersion, Registry
from appliance.engines.base import Engine, EngineBusy, EngineDown, Message, Sampling
from appliance.engines.guard import Guarded
from appliance.engines.pool import EnginePool
from appliance.engines.replicas import Replicas
from appliance.engines.vllm import VllmEngine
from appliance.engines.vllm_started import StartedVllm
from appliance.errors import ApplianceError
from appliance.store import schema

logger = logging.getLogger("appliance.adapters.registry")

# Seconds between two looks at the aliases, and until what went wrong is tried or told again.
_LOOK, _AGAIN = 0.5, 30.0
# Seconds for which a version stays loaded after its last answer: whoever was sent to it just before an alias moved still finds it.
_DRAIN = 10.0
# Seconds until a version that another process brought onto a shared server, for a gate or an evaluation, leaves it; who still wants it
# loads it again.
_STRAY = 600.0


async def load(registry: Registry, engine: Engine, version: AdapterVersion) -> None:
    """Load the version, after checking its files. Requests that it already answers go on with it.

    Raises ApplianceError where the files are not what was registered, EngineError where the engine cannot use them.
    """
    if version.name not in await engine.adapters():
        await asyncio.to_thread(registry.check, version)
        await engine.load(version.ref)


async def rehearse(registry: Registry, engine: Engine, version: AdapterVersion) -> None:
    """Load the version and have it answer one prompt, before anybody is sent to it. Raises as `load`, and EngineError if it fails."""
    await warn(registry, engine, version)
    await load(registry, engine, version)
    await smoke(engine, version.name)


async def smoke(engine: Engine, adapter: str | None) -> None:
    """Have the engine answer with a few tokens. Raises EngineError."""
    async for _ in engine.chat([Message(role="user", content="Hello. 你好。")], adapter, Sampling(max_tokens=4)):
        pass


async def warn(registry: Registry, engine: Engine, version: AdapterVersion) -> None:
    """Say in the log what overflows on the engine with this version beside those it has or should have; what drains still counts."""
    started = engine.engine if isinstance(engine, Guarded) else engine
    if isinstance(started, StartedVllm):
        there = (await asyncio.to_thread(wanted, registry)).get(engine.name, {})
        for warning in started.warnings(len({version.name, *there, *await engine.adapters()})):
            logger.warning("%s", warning)


def wanted(registry: Registry) -> dict[str, dict[str, AdapterVersion]]:
    """The engines in use, each with the versions that it should have: the live ones of its domains, and those on trial."""
    workspace = registry.workspace
    candidates = canary.candidates(workspace.db)
    found: dict[str, dict[str, AdapterVersion]] = {}
    for domain in workspace.domains():
        versions = found.setdefault(workspace.config.engine_of(domain)[0], {})
        for name in {*candidates, workspace.db.pointer(f"adapter:{domain}") or ""}:
            if name.startswith(f"{domain}@") and (version := registry.find(name)) is not None:
                versions[name] = version
    return found


def strays(engine: Engine) -> set[str]:
    """What its servers list beside what this process loaded there."""
    if isinstance(engine, Replicas):
        return set[str]().union(*(strays(one) for one in engine.engines))
    return set(engine.strays) if isinstance(engine, VllmEngine) else set()


class AdapterLife:
    """Keeps what is wanted loaded while a gateway runs: every domain's live version, and the candidates of its canaries.

    A new alias is seen within a second: its version is loaded and tried at once. A version that is not wanted any more leaves some
    seconds after its last answer. An engine that was started anew gets its adapters back as soon as it is well. Engines are tended beside
    each other: one that hangs holds no other up.
    """

    def __init__(self, registry: Registry, engines: EnginePool) -> None:
        self._registry, self._engines = registry, engines
        self._tried: dict[tuple[str, str], float] = {}
        self._told: dict[str, float] = {}
        # Since when a version that is loaded has not been wanted: by engine, by name.
        self._spare: dict[str, dict[str, float]] = {}
        self._tending: dict[str, asyncio.Task[None]] = {}
        self._domains: list[str] = []
        self._state: object = None
        self._wanted: dict[str, dict[str, AdapterVersion]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                with self._telling("adapters"):
                    await self._begin()
                await asyncio.sleep(_LOOK)
        finally:
            for task in self._tending.values():
                task.cancel()
            await asyncio.gather(*self._tending.values(), return_exceptions=True)

    async def tick(self) -> None:
        """Look once, and do all that is to be done. Raises ApplianceError where the database or the configuration cannot be read."""
        await self._begin()
        await asyncio.gather(*self._tending.values())

    async def _begin(self) -> None:
        """Look once, and tend every engine that is not still being tended."""
        for name, versions in (await asyncio.to_thread(self._look)).items():
            task = self._tending.get(name)
            if task is None or task.done():
                if task is not None:
                    # What was not foreseen is not swallowed.
                    task.result()
                self._tending[name] = asyncio.create_task(self._tend(name, versions))

    async def _tend(self, name: str, versions: Mapping[str, AdapterVersion]) -> None:
        with self._telling(name):
            engine = await self._engines.named(name)
            # Somebody else's endpoint, in which nothing is to be loaded, is only asked when it was in trouble.
            if not isinstance(engine, Guarded) or not (engine.serves_adapters or engine.state != "closed"):
                return
            # The question is also what has a local engine whose thread has ended start it again.
            if not (await engine.health()).ok and engine.state != "half-open":
                return
            if engine.state == "half-open":
                # The request that the engine is tried with need not be somebody's question.
                await smoke(engine, None)
            if engine.serves_adapters:
                await self._bring(engine, versions)
                await self._drop(engine, versions)

    def _look(self) -> dict[str, dict[str, AdapterVersion]]:
        """What is wanted; worked out anew only when an alias or a canary moved, or a domain was made."""
        workspace, table = self._registry.workspace, schema.pointer
        with workspace.db.read() as connection:
            moved = connection.execute(sa.select(table.c.name, table.c.value).where(table.c.name.startswith("adapter:"))).all()
        self._domains = workspace.domains()
        state = ({row.name: row.value for row in moved}, self._domains, canary.candidates(workspace.db))
        if state != self._state:
            self._wanted, self._state = wanted(self._registry), state
        return self._wanted

    async def _bring(self, engine: Guarded, versions: Mapping[str, AdapterVersion]) -> None:
        loaded = set(await engine.adapters())
        # One that could be loaded and did not answer is there, and still to be tried.
        lacking = {*(versions.keys() - loaded), *engine.refused}
        missing = [version for name, version in versions.items() if name in lacking and version.base_hash == engine.base_hash]
        for version in missing:
            key = (engine.name, version.name)
            if time.monotonic() - self._tried.get(key, float("-inf")) < _AGAIN:
                continue
            self._tried[key] = time.monotonic()
            with self._telling(version.name):
                try:
                    await rehearse(self._registry, engine, version)
                except (EngineBusy, EngineDown):
                    # That says nothing about the version.
                    del self._tried[key]
                    raise
                except ApplianceError:
                    # Until it can be used, its domain answers without.
                    engine.refused.add(version.name)
                    raise
                engine.refused.discard(version.name)
                logger.info("engine %s: %s is loaded", engine.name, version.name)
                del self._tried[key]

    async def _drop(self, engine: Guarded, versions: Mapping[str, AdapterVersion]) -> None:
        now, before = time.monotonic(), self._spare.get(engine.name, {})
        own = set(await engine.adapters())
        # A server may be shared: what is named as no version of this workspace's domains is somebody else's.
        others = {name for name in strays(engine.engine) if VERSION_NAME.fullmatch(name) and name.split("@")[0] in self._domains}
        self._spare[engine.name] = {name: before.get(name, now) for name in (own | others) - versions.keys()}
        for name, since in self._spare[engine.name].items():
            # Also one that nobody asked for lately: somebody may be on the way to it, sent just before the alias moved.
            if min(now - since, engine.unused(name)) > (_DRAIN if name in own else _STRAY):
                with self._telling(name):
                    await engine.unload(name)
                    logger.info("engine %s: %s is unloaded", engine.name, name)

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """What goes wrong is logged, not more often than every half a minute, and holds nothing else up."""
        try:
            yield
        except (EngineBusy, EngineDown) as error:
            logger.debug("%s: %s", what, error)
        except (ApplianceError, sa.exc.SQLAlchemyError, OSError) as error:
            if time.monotonic() - self._told.get(what, float("-inf")) >= _AGAIN:
                self._told[what] = time.monotonic()
                logger.error("%s: %s", what, error)
