"""Adapters on running engines: loaded and tried before they answer, unloaded once nobody needs them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import sqlalchemy as sa

from appliance.adapters import canary
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.engines.base import Engine, EngineBusy, EngineDown, Message, Sampling
from appliance.engines.guard import Guarded
from appliance.engines.pool import EnginePool
from appliance.engines.vllm_started import StartedVllm
from appliance.errors import ApplianceError
from appliance.store import schema

logger = logging.getLogger("appliance.adapters.registry")

# Seconds between two looks at the aliases, and until what went wrong is tried or told again.
_LOOK, _AGAIN = 0.5, 30.0
# Seconds for which a version stays loaded after its last answer: whoever was sent to it just before an alias moved still finds it.
_DRAIN = 10.0


async def load(registry: Registry, engine: Engine, version: AdapterVersion) -> None:
    """Load the version, after checking its files. Requests that it already answers go on with it.

    Raises ApplianceError where the files are not what was registered, EngineError where the engine cannot use them.
    """
    if version.name not in await engine.adapters():
        await asyncio.to_thread(registry.check, version)
        await engine.load(version.ref)


async def rehearse(registry: Registry, engine: Engine, version: AdapterVersion) -> None:
    """Load the version and have it answer one prompt, before anybody is sent to it. Raises as `load`, and EngineError if it fails."""
    await load(registry, engine, version)
    await smoke(engine, version.name)


async def smoke(engine: Engine, adapter: str | None) -> None:
    """Have the engine answer with a few tokens. Raises EngineError."""
    async for _ in engine.chat([Message(role="user", content="Hello. 你好。")], adapter, Sampling(max_tokens=4)):
        pass


class AdapterLife:
    """Keeps what is wanted loaded while a gateway runs: every domain's live version, and the candidates of its canaries.

    A new alias is seen within a second: its version is loaded and tried at once. A version that is not wanted any more leaves some
    seconds after its last answer. An engine that was started anew gets its adapters back as soon as it is well.
    """

    def __init__(self, registry: Registry, engines: EnginePool) -> None:
        self._registry, self._engines = registry, engines
        self._tried: dict[tuple[str, str], float] = {}
        self._told: dict[str, float] = {}
        # Since when a version that is loaded has not been wanted: by engine, by name.
        self._spare: dict[str, dict[str, float]] = {}
        self._state: object = None
        self._wanted: dict[str, dict[str, AdapterVersion]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with self._telling("adapters"):
                await self.tick()
            await asyncio.sleep(_LOOK)

    async def tick(self) -> None:
        """Look once. Raises ApplianceError where the database or the configuration cannot be read."""
        wanted = await asyncio.to_thread(self._look)
        for name, versions in wanted.items():
            with self._telling(name):
                engine = await self._engines.named(name)
                # Somebody else's endpoint, in which nothing is to be loaded, is only asked when it was in trouble.
                if isinstance(engine, Guarded) and (engine.serves_adapters or engine.state != "closed"):
                    await self._tend(engine, versions)

    async def _tend(self, engine: Guarded, versions: Mapping[str, AdapterVersion]) -> None:
        if not (await engine.health()).ok and engine.state != "half-open":
            return
        if engine.state == "half-open":
            # The request that the engine is tried with need not be somebody's question.
            await smoke(engine, None)
        if engine.serves_adapters:
            await self._bring(engine, versions)
            await self._drop(engine, versions)

    def _look(self) -> dict[str, dict[str, AdapterVersion]]:
        """The engines in use, each with the versions that it should have; worked out anew only when an alias or a canary moved."""
        workspace, table = self._registry.workspace, schema.pointer
        with workspace.db.read() as connection:
            moved = connection.execute(sa.select(table.c.name, table.c.value).where(table.c.name.startswith("adapter:"))).all()
        live = {row.name.removeprefix("adapter:"): row.value for row in moved}
        state = (live, workspace.domains(), canary.candidates(workspace.db))
        if state != self._state:
            self._wanted, self._state = self._work_out(*state), state
        return self._wanted

    def _work_out(
        self, live: Mapping[str, str], domains: Sequence[str], candidates: Collection[str]
    ) -> dict[str, dict[str, AdapterVersion]]:
        found: dict[str, dict[str, AdapterVersion]] = {}
        for domain in domains:
            engine = found.setdefault(self._registry.workspace.config.engine_of(domain)[0], {})
            for name in {*candidates, live.get(domain, "")}:
                if name.startswith(f"{domain}@") and (version := self._registry.find(name)) is not None:
                    engine[name] = version
        return found

    async def _bring(self, engine: Guarded, versions: Mapping[str, AdapterVersion]) -> None:
        loaded = set(await engine.adapters())
        # One that could be loaded and did not answer is there, and still to be tried.
        lacking = {*(versions.keys() - loaded), *engine.refused}
        missing = [version for name, version in versions.items() if name in lacking and version.base_hash == engine.base_hash]
        brought = False
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
                brought = True
                engine.refused.discard(version.name)
                logger.info("engine %s: %s is loaded", engine.name, version.name)
                del self._tried[key]
        if brought and isinstance(engine.engine, StartedVllm):
            for warning in engine.engine.warnings(len(versions)):
                logger.warning("%s", warning)

    async def _drop(self, engine: Guarded, versions: Mapping[str, AdapterVersion]) -> None:
        now, before = time.monotonic(), self._spare.get(engine.name, {})
        self._spare[engine.name] = {name: before.get(name, now) for name in await engine.adapters() if name not in versions}
        for name, since in self._spare[engine.name].items():
            # Also one that nobody asked for lately: somebody may be on the way to it, sent just before the alias moved.
            if min(now - since, engine.unused(name)) > _DRAIN:
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
