"""Several servers that serve the same, as one engine."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from appliance.engines.base import AdapterRef, Delta, Engine, EngineBusy, EngineDown, EngineError, Health, Message, Sampling
from appliance.engines.breaker import Faults

logger = logging.getLogger("appliance.engines")

# Seconds between two questions whether a replica is well that is out, or that is waited for and has shown no life for as long.
_AGAIN = 1.0
# So many questions in a row that it leaves unanswered show that it hangs; a single one may be late on a busy machine.
_HANGS = 3


@dataclass(eq=False, slots=True)
class _Replica:
    number: int
    engine: Engine
    running: int = 0
    out: bool = False
    # When it last showed life, and how often in a row it was too late to say that it is well.
    alive: float = float("-inf")
    late: int = 0
    asking: asyncio.Task[None] | None = field(default=None, repr=False)
    # What ends the waiting of those that have nothing from it yet.
    waiting: set[asyncio.Timeout] = field(default_factory=set, repr=False)


class Replicas:
    """`engines`, all of one base model, as one `Engine`; `connect` and `first_token` are the whole engine's limits, in seconds.

    A request goes to the replica with the fewest requests under way, one for an adapter to those that have it. One that fails is out until
    it says that it is well. A request that fails before its first token is sent once more, to another replica, and so is one that waits
    for the first token of a replica that turns out to hang. One that sends no first token in time is out too. The loss of one is a
    warning in the log; the engine is well as long as one replica is.
    May be used from one event loop at a time.
    """

    def __init__(self, engines: Sequence[Engine], connect: float, first_token: float) -> None:
        one = engines[0]
        self.name, self.base_hash, self.languages = one.name, one.base_hash, one.languages
        self.serves_adapters, self.context_window = one.serves_adapters, one.context_window
        self._replicas = [_Replica(number, engine) for number, engine in enumerate(engines, 1)]
        # A replica that does not answer must not make the whole engine late.
        self._connect, self._first_token = connect * 0.7, first_token
        self._closed = False
        # Of these it counts what it sends once more; a failure that another replica makes good is none of the engine's.
        self.faults = Faults()

    @property
    def engines(self) -> list[Engine]:
        """The replicas."""
        return [replica.engine for replica in self._replicas]

    async def chat(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling) -> AsyncGenerator[Delta]:
        """See the contract."""
        tried: list[_Replica] = []
        while True:
            # A server that was started anew has its adapters a little later.
            lacking = [one for one in self._replicas if adapter is not None and adapter not in await one.engine.adapters()]
            replica = self._least_busy([*tried, *lacking]) or self._least_busy(tried)
            if replica is None:
                raise self._none_left()
            tried.append(replica)
            begun = False
            replica.running += 1
            try:
                async with aclosing(replica.engine.chat(messages, adapter, sampling)) as deltas:
                    async with self._waiting_for(replica):
                        delta = await anext(deltas, None)
                    while delta is not None:
                        begun, replica.alive = True, time.monotonic()
                        yield delta
                        delta = await anext(deltas, None)
                return
            except EngineBusy:
                if begun or len(tried) == 2 or self._least_busy(tried) is None:
                    raise
            except EngineDown as error:
                self._eject(replica, str(error))
                if begun or len(tried) == 2 or self._least_busy(tried) is None:
                    raise
                self.faults.retried += 1
            finally:
                replica.running -= 1

    def _none_left(self) -> EngineDown:
        return EngineDown(f"none of the {len(self._replicas)} replicas of engine {self.name} is available")

    def _least_busy(self, but: Collection[_Replica]) -> _Replica | None:
        left = [replica for replica in self._replicas if not replica.out and replica not in but]
        return min(left, key=lambda replica: replica.running, default=None)

    def _eject(self, replica: _Replica, why: str) -> None:
        if not replica.out:
            logger.warning("engine %s: replica %d is out: %s", self.name, replica.number, why)
        replica.out = True
        self._look_after(replica)

    @asynccontextmanager
    async def _waiting_for(self, replica: _Replica) -> AsyncIterator[None]:
        """Raises EngineDown once the replica turns out to hang; one that is out already has as long as for a question about its health."""
        since = time.monotonic()
        limit = asyncio.timeout(self._connect if replica.out else None)
        replica.waiting.add(limit)
        self._look_after(replica)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise EngineDown(f"replica {replica.number} of engine {self.name} does not answer") from error
        except asyncio.CancelledError:
            # Whoever waited gave up: the client left, or it was too late.
            if time.monotonic() - since >= self._first_token * 0.95:
                self._eject(replica, f"nothing came within {self._first_token:g} s")
            raise
        finally:
            replica.waiting.discard(limit)

    def _look_after(self, replica: _Replica) -> None:
        """See to it that the replica is asked whether it is well, beside what is being served."""
        if not self._closed and (replica.asking is None or replica.asking.done()):
            replica.asking = asyncio.get_running_loop().create_task(self._ask_on(replica))

    async def _ask_on(self, replica: _Replica) -> None:
        """For as long as it is out, or waited for."""
        while replica.out or replica.waiting:
            await asyncio.sleep(_AGAIN)
            if replica.out or (replica.waiting and time.monotonic() - replica.alive >= _AGAIN):
                await self._ask(replica)

    async def _ask(self, replica: _Replica) -> None:
        since = time.monotonic()
        try:
            async with asyncio.timeout(self._connect):
                found = await replica.engine.health()
        except TimeoutError:
            replica.late = 0 if replica.alive >= since else replica.late + 1
            if replica.late >= _HANGS:
                self._eject(replica, f"it did not answer within {self._connect:g} s, {_HANGS} times in a row")
                for limit in [limit for limit in replica.waiting if not limit.expired()]:
                    limit.reschedule(asyncio.get_running_loop().time())
            return
        replica.late = 0
        if not found.ok:
            self._eject(replica, found.detail)
            return
        replica.alive = time.monotonic()
        if replica.out:
            logger.warning("engine %s: replica %d is back", self.name, replica.number)
            replica.out = False

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        """Of the first replica that can tell; like a question it is asked of two at most."""
        failure = self._none_left()
        for replica in [replica for replica in self._replicas if not replica.out][:2]:
            try:
                async with self._waiting_for(replica):
                    return await replica.engine.count_tokens(messages)
            except EngineDown as error:
                self._eject(replica, str(error))
                failure = error
        raise failure

    async def adapters(self) -> list[str]:
        """Those that every replica in use has."""
        have = [set(await replica.engine.adapters()) for replica in self._replicas if not replica.out]
        return sorted(set.intersection(*have)) if have else []

    async def load(self, adapter: AdapterRef) -> None:
        """Load it everywhere; a replica that is down lacks it when it is back, until it is loaded again. Raises EngineError where one
        refuses it."""
        found = await asyncio.gather(*(self._load(replica, adapter) for replica in self._replicas), return_exceptions=True)
        for replica, error in zip(self._replicas, found, strict=True):
            if isinstance(error, EngineDown):
                self._eject(replica, str(error))
            elif isinstance(error, BaseException):
                await self.unload(adapter.name)
                raise error
        if all(isinstance(error, EngineDown) for error in found):
            raise EngineDown(f"none of the {len(self._replicas)} replicas of engine {self.name} is available, so none loads {adapter.name}")

    async def _load(self, replica: _Replica, adapter: AdapterRef) -> None:
        async with self._waiting_for(replica):
            await replica.engine.load(adapter)

    async def _unload(self, replica: _Replica, name: str) -> None:
        async with self._waiting_for(replica):
            await replica.engine.unload(name)

    async def unload(self, name: str) -> None:
        found = await asyncio.gather(*(self._unload(replica, name) for replica in self._replicas), return_exceptions=True)
        for replica, error in zip(self._replicas, found, strict=True):
            if isinstance(error, EngineError):
                self._eject(replica, str(error))
            elif isinstance(error, BaseException):
                raise error

    async def health(self) -> Health:
        """Well as long as one replica is. Those that are out are asked beside this: one that hangs holds no question up."""
        for replica in self._replicas:
            if replica.out:
                self._look_after(replica)
        asked = [replica for replica in self._replicas if not replica.out] or self._replicas
        await asyncio.gather(*(self._ask(replica) for replica in asked))
        out = sum(replica.out for replica in self._replicas)
        if out == len(self._replicas):
            return Health(False, f"none of its {out} replicas is available")
        return Health(True, f"{out} of its {len(self._replicas)} replicas are out" if out else "")

    async def close(self) -> None:
        self._closed = True
        tasks = [replica.asking for replica in self._replicas if replica.asking is not None and not replica.asking.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for replica in self._replicas:
            await replica.engine.close()
