"""Time limits, one retry and a circuit breaker around any engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from appliance.engines.base import (
    AdapterRef,
    Delta,
    Engine,
    EngineBusy,
    EngineDown,
    EngineError,
    EngineLate,
    Health,
    Message,
    PromptTooLong,
    Sampling,
)
from appliance.engines.breaker import Breaker, Faults, State
from appliance.engines.replicas import Replicas
from appliance.errors import ApplianceError

T = TypeVar("T")

logger = logging.getLogger("appliance.engines")

# Seconds for which a sign of life spares the engine the question whether it is well.
_FRESH = 1.0
# So many questions in a row that it does not answer well show it to be ill; a single one may be late on a busy machine.
_ILL = 3
# Seconds until the files of an adapter that cannot be served are looked at again.
_LOOK_AGAIN = 30.0
# Of the problems of an adapter, which may be as many as it has tensors.
_TOLD = 3


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds: to say that it is well, to the first token, from one token to the next, for a whole answer."""

    connect: float = 1.5
    first_token: float = 120.0
    between_tokens: float = 30.0
    total: float = 600.0


class _LeftAlone(EngineDown):
    """Not another failure: what came of the failures before."""


class Guarded:
    """`engine` under `limits` and `breaker`; an `Engine` itself.

    A request that fails before its first token, not by being late, is sent once more, unless replicas have seen to that. An engine that
    failed too often in a row, or was not well several times in a row, is left alone: EngineDown says so at once, also to those that wait
    for their first token.

    No adapter is loaded unless `lint` finds nothing that keeps the files in its folder from being served by the engine as it is configured.
    """

    def __init__(
        self, engine: Engine, limits: TimeLimits, breaker: Breaker, lint: Callable[[Path], Sequence[str]] = lambda folder: ()
    ) -> None:
        self.engine, self.limits, self.breaker = engine, limits, breaker
        self.name, self.base_hash, self.languages = engine.name, engine.base_hash, engine.languages
        self.serves_adapters, self.context_window = engine.serves_adapters, engine.context_window
        # Replicas send what failed once more themselves, each question to two of them at most: what they count is told here.
        self._retries = not isinstance(engine, Replicas)
        self.faults = engine.faults if isinstance(engine, Replicas) else Faults()
        self._alive_at = float("-inf")
        self._last = Health(True)
        self._probing = False
        self._ill = 0
        # Adapters that it cannot use: whoever loads them says so here.
        self.refused: set[str] = set()
        # What `lint` said of each version it has looked at, '' for nothing, and when.
        self.problems: dict[str, str] = {}
        self._lint = lint
        self._linted: dict[str, float] = {}
        # Requests under way, and when the last one ended, by adapter.
        self._using: Counter[str] = Counter()
        # The time limits of those that wait for their first token, or for the count of what they are to send.
        self._unbegun: set[asyncio.Timeout] = set()
        self._used: dict[str, float] = {}

    @property
    def state(self) -> State:
        """The breaker's state."""
        return self.breaker.state

    async def chat(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling) -> AsyncGenerator[Delta]:
        """See the contract; also raises EngineDown (left alone for now, or failed) and EngineLate."""
        if not self.breaker.allows():
            raise self._left_alone()
        trial = self.breaker.enter()
        if adapter is not None:
            self._using[adapter] += 1
        deadline = asyncio.get_running_loop().time() + self.limits.total
        try:
            for again in (self._retries, False):
                begun = False
                try:
                    async with aclosing(self._timed(messages, adapter, sampling, deadline)) as deltas:
                        async for delta in deltas:
                            if trial:
                                self.breaker.succeed()
                                trial = False
                            begun = True
                            yield delta
                except (EngineBusy, PromptTooLong):
                    # It answers, if not what was hoped for.
                    self.breaker.succeed()
                    raise
                except _LeftAlone:
                    raise
                except EngineDown as error:
                    self._count(error)
                    if begun or not again or isinstance(error, EngineLate) or not self.breaker.allows():
                        raise
                    self.faults.retried += 1
                else:
                    self.breaker.succeed()
                    return
        finally:
            if trial:
                self.breaker.leave()
            if adapter is not None:
                self._using[adapter] -= 1
                self._used[adapter] = time.monotonic()

    async def _timed(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling, deadline: float) -> AsyncGenerator[Delta]:
        patience, what, waiting = self.limits.first_token, "no first token", True
        async with aclosing(self.engine.chat(messages, adapter, sampling)) as deltas:
            while (delta := await self._in_time(anext(deltas, None), patience, what, deadline, waiting)) is not None:
                self._alive_at = time.monotonic()
                yield delta
                patience, what, waiting = self.limits.between_tokens, "nothing more", False

    async def _in_time(self, work: Awaitable[T], patience: float, what: str, deadline: float, waiting: bool) -> T:
        """What comes of `work`. Raises EngineLate where that takes too long and, for who has nothing of the engine yet (`waiting`),
        EngineDown as soon as it is left alone."""
        loop = asyncio.get_running_loop()
        timeout = asyncio.timeout_at(min(deadline, loop.time() + patience))
        try:
            async with timeout:
                if waiting:
                    self._unbegun.add(timeout)
                return await work
        except TimeoutError as error:
            if not timeout.expired():
                raise
            if waiting and timeout not in self._unbegun:
                raise self._left_alone() from error
            if loop.time() >= deadline:
                raise EngineLate(f"engine {self.name} did not complete the answer within {self.limits.total:g} s") from error
            raise EngineLate(f"engine {self.name} sent {what} within {patience:g} s") from error
        finally:
            self._unbegun.discard(timeout)

    def _left_alone(self) -> _LeftAlone:
        self.faults.refused += 1
        wait = self.breaker.wait()
        return _LeftAlone(f"engine {self.name} keeps failing and is left alone; try again in {max(1, round(wait))} s", retry_after=wait)

    def _give_up(self) -> None:
        """End what waits for its first token of an engine that is left alone from now on."""
        now = asyncio.get_running_loop().time()
        for timeout in [limit for limit in self._unbegun if not limit.expired()]:
            self._unbegun.discard(timeout)
            timeout.reschedule(now)

    def _count(self, error: EngineDown) -> None:
        if isinstance(error, EngineLate):
            self.faults.late += 1
        else:
            self.faults.failed += 1
        self._alive_at = float("-inf")
        before = self.breaker.state
        self.breaker.fail()
        logger.warning("%s", error)
        if before != "open" and self.breaker.state == "open":
            logger.error("engine %s keeps failing and is left alone for %g s", self.name, self.breaker.wait())
            self._give_up()

    async def health(self) -> Health:
        """What the engine says of itself, unless it has just shown it by answering or failing; takes no longer than `limits.connect`.

        One bad answer is only told; several in a row open the breaker.
        """
        if not self.breaker.allows():
            return Health(False, "it keeps failing and is left alone for now" if self.breaker.wait() else "it is being tried again")
        if self._probing:
            return self._last
        if time.monotonic() - self._alive_at < _FRESH:
            self._ill, self._last = 0, Health(True)
            return self._last
        self._probing = True
        try:
            found = await self._asked()
        finally:
            self._probing = False
        if found.ok:
            self._alive_at, self._ill = time.monotonic(), 0
        else:
            self._ill += 1
            if self._ill >= _ILL or self.breaker.state != "closed":
                self.breaker.open()
                self._give_up()
        if found != self._last and not found.ok:
            logger.error("engine %s is not available: %s", self.name, found.detail)
        self._last = found
        return found

    async def _asked(self) -> Health:
        loop, limit = asyncio.get_running_loop(), self.limits.connect
        asked = asyncio.ensure_future(self.engine.health())
        try:
            started = loop.time()
            await asyncio.wait({asked}, timeout=limit)
            # For as long as this process was too busy to look, the engine was not late.
            behind = loop.time() - started - limit
            if not asked.done() and behind > 0:
                await asyncio.wait({asked}, timeout=min(behind, limit))
            return asked.result() if asked.done() else Health(False, f"it did not answer within {limit:g} s")
        finally:
            if not asked.done():
                asked.cancel()
                await asyncio.gather(asked, return_exceptions=True)

    def unused(self, adapter: str) -> float:
        """Seconds since the last request for an adapter ended; 0 while one is under way, infinite if there was none."""
        return 0.0 if self._using[adapter] else time.monotonic() - self._used.get(adapter, float("-inf"))

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """See the contract; raises EngineDown and EngineLate as `chat` does: every answer begins with it, and a server may do it."""
        if not self.breaker.allows():
            raise self._left_alone()
        trial = self.breaker.enter()
        deadline = asyncio.get_running_loop().time() + self.limits.total
        try:
            counted = self.engine.count_tokens(messages)
            return await self._in_time(counted, self.limits.first_token, "no count of tokens", deadline, waiting=True)
        except _LeftAlone:
            raise
        except EngineDown as error:
            self._count(error)
            raise
        finally:
            # One that counts has not yet shown that it answers.
            if trial:
                self.breaker.leave()

    async def adapters(self) -> list[str]:
        return await self.engine.adapters()

    async def unfit(self, adapter: AdapterRef) -> str:
        """What keeps the adapter's files from being served by this engine, in plain words; '' if nothing.

        Looked at once for each version, as neither it nor the engine's settings change; files with a problem may be restored.
        """
        since = time.monotonic() - self._linted.get(adapter.name, float("-inf"))
        if self.problems.get(adapter.name, "unknown") and since > _LOOK_AGAIN:
            try:
                found = await asyncio.to_thread(self._lint, adapter.path)
            except ApplianceError as error:
                logger.error("engine %s: %s", self.name, error)
                return "its base model cannot be read; the log says why"
            # Clients see it: it names no folder of this machine.
            told = [*found[:_TOLD], *([f"and {len(found) - _TOLD} more (appliance adapter lint)"] if len(found) > _TOLD else [])]
            self.problems[adapter.name] = "; ".join(told).replace(str(adapter.path), adapter.name)
            self._linted[adapter.name] = time.monotonic()
        return self.problems[adapter.name]

    async def rejects(self, adapter: AdapterRef) -> bool:
        """Whether this very version is of no use here: its files do not fit, or it could not be loaded, or did not answer."""
        await self.unfit(adapter)
        return adapter.name in self.refused or bool(self.problems.get(adapter.name))

    async def load(self, adapter: AdapterRef) -> None:
        """See the contract; also raises EngineError for files that cannot be served."""
        if self.serves_adapters and (problem := await self.unfit(adapter)):
            raise EngineError(f"engine {self.name} cannot serve {adapter.name}: {problem}")
        await self.engine.load(adapter)

    async def unload(self, name: str) -> None:
        self._used.pop(name, None)
        await self.engine.unload(name)

    async def close(self) -> None:
        await self.engine.close()
