"""Several servers as one engine, over servers that lie."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from lying_engine import LyingEngine, lying

from appliance.engines import replicas
from appliance.engines.base import AdapterRef, Delta, Engine, EngineDown, EngineError, EngineLate, Health, Message, Sampling
from appliance.engines.breaker import Breaker
from appliance.engines.guard import Guarded, TimeLimits
from appliance.engines.openai import OpenAIEngine
from appliance.engines.replicas import Replicas

pytestmark = pytest.mark.anyio
ASK: list[Message] = [{"role": "user", "content": "挂号费是多少？"}]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def over(servers: Sequence[LyingEngine], connect: float = 15.0, first_token: float = 60.0) -> AsyncIterator[Replicas]:
    engines = [OpenAIEngine("remote", server.url, "m", None, ["zh"], connect_timeout=connect) for server in servers]
    engine = Replicas(engines, connect, first_token)
    yield engine
    await engine.close()


async def ask(engine: Engine) -> str:
    return "".join([delta.text async for delta in engine.chat(ASK, None, Sampling())])


async def test_requests_go_where_the_fewest_are_under_way() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(lying(words=4, pause=0.05)) for _ in range(3)]
        async with over(servers) as engine:
            assert all(await asyncio.gather(*(ask(engine) for _ in range(9))))
            assert [server.chats for server in servers] == [3, 3, 3]
            # One is kept busy: the others take what comes.
            held = engine.chat(ASK, None, Sampling())
            await anext(held)
            busy = next(number for number, server in enumerate(servers) if server.chats == 4)
            await asyncio.gather(ask(engine), ask(engine))
            assert servers[busy].chats == 4
            await held.aclose()


@pytest.mark.parametrize("fault", ["reset", "500", "garbage"])
async def test_a_failure_before_the_first_token_is_made_good_by_another(fault: str) -> None:
    with lying(fault=fault) as bad, lying() as good:
        async with over([bad, good]) as engine:
            for _ in range(3):
                assert (await ask(engine)).startswith("第0词")
            assert (bad.chats, good.chats) == (1, 3)
            assert await engine.count_tokens(ASK) > 0


async def test_one_that_failed_is_back_once_it_says_that_it_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_AGAIN", 0.05)
    with lying() as one, lying() as two:
        one.down()
        async with over([one, two]) as engine:
            assert await ask(engine) and two.chats == 1
            state = await engine.health()
            assert state.ok and state.detail == "1 of its 2 replicas are out"
            one.up()
            while one.chats == 0:
                assert await ask(engine)
                await asyncio.sleep(0.02)
            assert await engine.health() == Health(True)


async def test_a_failure_after_the_first_token_is_told_and_not_repeated() -> None:
    with lying(fault="reset_later") as bad, lying() as good:
        async with over([bad, good]) as engine:
            with pytest.raises(EngineDown):
                await ask(engine)
            assert (bad.chats, good.chats) == (1, 0)
            assert await ask(engine) and good.chats == 1


async def test_two_that_fail_are_enough_and_none_is_an_error() -> None:
    with lying(fault="500") as one, lying(fault="500") as two, lying(fault="500") as three:
        async with over([one, two, three]) as engine:
            with pytest.raises(EngineDown, match="500"):
                await ask(engine)
            assert sum(server.chats for server in (one, two, three)) == 2
            with pytest.raises(EngineDown):
                await ask(engine)
            with pytest.raises(EngineDown, match="none of the 3 replicas of engine remote is available"):
                await ask(engine)
            for server in (one, two, three):
                server.down()
            assert await engine.health() == Health(False, "none of its 3 replicas is available")


async def test_one_that_hangs_is_out_when_its_time_is_over_and_holds_no_question_about_health_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with lying(fault="hang", sick=True) as bad, lying() as good:
        async with over([bad, good], connect=1.0, first_token=3.0) as engine:
            guard = Guarded(engine, TimeLimits(1.0, 3.0, 3.0, 30.0), Breaker(3, 0.2))
            # Nobody finds out before the time is over.
            monkeypatch.setattr(replicas, "_HANGS", 1000)
            with pytest.raises(EngineLate):
                await ask(guard)
            assert (bad.chats, good.chats) == (1, 0)
            assert await ask(guard) and (await engine.health()).ok
            guard._alive_at = float("-inf")
            assert (await guard.health()).ok
            # A client that goes early tells nothing about the server.
            leaving = engine.chat(ASK, None, Sampling())
            await anext(leaving)
            await leaving.aclose()
            assert not engine._replicas[1].out


class Loads(OpenAIEngine):
    """One that notes its adapters; `error` is what loading raises."""

    serves_adapters = True

    def __init__(self, error: EngineError | None = None) -> None:
        super().__init__("remote", "http://127.0.0.1:9/v1", "m", None, ["zh"])
        self.error, self.have, self.chats = error, set[str](), 0

    async def chat(self, messages: Sequence[Message], adapter: str | None, sampling: Sampling) -> AsyncGenerator[Delta]:
        self.chats += 1
        yield Delta("好", "stop")

    async def adapters(self) -> list[str]:
        return sorted(self.have)

    async def load(self, adapter: AdapterRef) -> None:
        if self.error is not None:
            raise self.error
        self.have.add(adapter.name)

    async def unload(self, name: str) -> None:
        self.have.discard(name)

    async def health(self) -> Health:
        return Health(True)


async def test_an_adapter_is_asked_for_where_it_is() -> None:
    started_anew, other = Loads(), Loads()
    engine = Replicas([started_anew, other], 1.0, 1.0)
    await engine.load(AdapterRef("medical@1", Path("/a")))
    started_anew.have.clear()
    held = engine.chat(ASK, "medical@1", Sampling())
    assert (await anext(held)).text == "好"
    async for _ in engine.chat(ASK, "medical@1", Sampling()):
        pass
    assert (started_anew.chats, other.chats) == (0, 2)
    # What needs none goes where the fewest are under way, and where none has it, one is as good as another.
    await ask(engine)
    other.have.clear()
    async for _ in engine.chat(ASK, "medical@1", Sampling()):
        pass
    assert (started_anew.chats, other.chats) == (2, 2)
    await held.aclose()
    await engine.close()


async def test_adapters_are_loaded_on_all() -> None:
    ref = AdapterRef("medical@1", Path("/a"))
    one, two = Loads(), Loads()
    engine = Replicas([one, two], 1.0, 1.0)
    await engine.load(ref)
    assert one.have == two.have == {"medical@1"} and await engine.adapters() == ["medical@1"]
    two.have.clear()
    assert await engine.adapters() == []
    await engine.unload("medical@1")
    assert one.have == set()
    # One that is down gets it later, one that refuses it refuses for all.
    two.error = EngineDown("gone")
    await engine.load(ref)
    assert one.have == {"medical@1"} and await engine.adapters() == ["medical@1"] and engine._replicas[1].out
    two.error = EngineError("rank 128 is above the limit")
    with pytest.raises(EngineError, match="rank 128"):
        await engine.load(ref)
    assert one.have == set()
    one.error = two.error = EngineDown("gone")
    with pytest.raises(EngineDown, match="so none loads medical@1"):
        await engine.load(ref)
    await engine.close()


async def test_a_question_does_not_wait_for_a_replica_that_turns_out_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_AGAIN", 0.05)
    with lying(fault="hang", sick=True) as bad, lying(words=400, pause=0.02) as good:
        async with over([bad, good], connect=0.3, first_token=60.0) as engine:
            # The other one answers all the time, so that nobody else has reason to ask about health.
            engine._replicas[0].running = 1
            talking = engine.chat(ASK, None, Sampling())
            await anext(talking)
            engine._replicas[0].running = 0
            async with asyncio.timeout(30):
                asked = engine.chat(ASK, None, Sampling())
                assert (await anext(asked)).text.startswith("第0词")
            assert (bad.chats, good.chats) == (1, 2) and engine._replicas[0].out and not engine._replicas[1].out
            await asked.aclose()
            await talking.aclose()


async def test_one_late_answer_about_health_puts_no_replica_out() -> None:
    with lying(sick=True) as slow, lying() as good:
        async with over([slow, good], connect=1.0) as engine:
            assert await engine.health() == Health(True)
            slow.sick = False
            for _ in range(4):
                assert (await engine.health()).ok
            assert not engine._replicas[0].out
            slow.sick = True
            for _ in range(3):
                await engine.health()
            assert engine._replicas[0].out and not engine._replicas[1].out


async def test_the_health_of_the_others_is_told_without_waiting_for_one_that_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_AGAIN", 0.05)
    with lying(sick=True) as hangs, lying() as good:
        async with over([hangs, good], connect=30.0) as engine:
            engine._eject(engine._replicas[0], "it hangs")
            async with asyncio.timeout(15):
                assert await engine.health() == Health(True, "1 of its 2 replicas are out")
            # It is asked all the same.
            async with asyncio.timeout(30):
                while hangs.probes == 0:  # noqa: ASYNC110 - another thread counts them
                    await asyncio.sleep(0.02)


class Hangs(OpenAIEngine):
    """One whose adapters cannot be loaded, nor refused."""

    serves_adapters = True

    def __init__(self) -> None:
        super().__init__("remote", "http://127.0.0.1:9/v1", "m", None, ["zh"])

    async def load(self, adapter: AdapterRef) -> None:
        await asyncio.sleep(3600)

    async def health(self) -> Health:
        await asyncio.sleep(3600)
        return Health(True)


async def test_an_adapter_is_loaded_without_waiting_for_a_replica_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_AGAIN", 0.05)
    ref, good = AdapterRef("medical@1", Path("/a")), Loads()
    engine = Replicas([Hangs(), good], 0.2, 60.0)
    async with asyncio.timeout(30):
        await engine.load(ref)
        assert engine._replicas[0].out and await engine.adapters() == ["medical@1"]
        # It is out already: it is given a moment, in case it is back.
        good.have.clear()
        await engine.load(ref)
    assert await engine.adapters() == ["medical@1"]
    await engine.close()


class Counts(Loads):
    """One that counts, hangs (None) or fails."""

    def __init__(self, count: int | EngineError | None) -> None:
        super().__init__()
        self.count, self.counts = count, 0

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        self.counts += 1
        if self.count is None:
            await asyncio.sleep(3600)
        if isinstance(self.count, EngineError):
            raise self.count
        return self.count or 0

    async def health(self) -> Health:
        if self.count is None:
            await asyncio.sleep(3600)
        return Health(True)


async def test_tokens_are_counted_without_waiting_for_a_replica_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_AGAIN", 0.05)
    bad, good = Counts(None), Counts(7)
    engine = Replicas([bad, good], 0.2, 60.0)
    async with asyncio.timeout(30):
        assert await engine.count_tokens(ASK) == 7 and engine._replicas[0].out
        assert await engine.count_tokens(ASK) == 7
    assert (bad.counts, good.counts) == (1, 2)
    await engine.close()


async def test_one_that_does_not_count_in_time_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_AGAIN", 3600.0)
    engine = Replicas([Counts(None), Counts(7)], 0.2, 0.3)
    guard = Guarded(engine, TimeLimits(0.2, 0.3, 30.0, 60.0), Breaker(3, 60.0))
    async with asyncio.timeout(30):
        with pytest.raises(EngineLate):
            await guard.count_tokens(ASK)
    assert engine._replicas[0].out and guard.faults.late == 1
    assert await guard.count_tokens(ASK) == 7
    await guard.close()


async def test_tokens_that_two_replicas_cannot_count_put_no_third_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "_AGAIN", 3600.0)
    engine = Replicas([Counts(EngineDown("500")) for _ in range(4)], 0.2, 60.0)
    with pytest.raises(EngineDown, match="500"):
        await engine.count_tokens(ASK)
    assert [replica.out for replica in engine._replicas] == [True, True, False, False]
    await engine.close()


async def test_a_question_is_sent_to_two_replicas_at_most_and_fails_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Those that are out stay out.
    monkeypatch.setattr(replicas, "_AGAIN", 3600.0)
    with ExitStack() as stack:
        servers = [stack.enter_context(lying(fault="500")) for _ in range(4)]
        async with over(servers) as engine:
            guard = Guarded(engine, TimeLimits(15.0, 60.0, 60.0, 120.0), Breaker(2, 60.0))
            with pytest.raises(EngineDown, match="500"):
                await ask(guard)
            assert sorted(server.chats for server in servers) == [0, 0, 1, 1]
            assert sum(replica.out for replica in engine._replicas) == 2
            assert (guard.faults.failed, guard.faults.retried) == (1, 1) and guard.state == "closed"
            # What another one makes good is told as retried, and is no failure.
            servers[3].fault = ""
            assert await ask(guard)
            assert (guard.faults.failed, guard.faults.retried) == (1, 2)


async def test_what_only_one_replica_is_left_for_is_sent_once() -> None:
    with lying(fault="500") as one, lying() as two:
        two.down()
        async with over([one, two]) as engine:
            engine._eject(engine._replicas[1], "it is down")
            guard = Guarded(engine, TimeLimits(15.0, 60.0, 60.0, 120.0), Breaker(3, 60.0))
            with pytest.raises(EngineDown, match="500"):
                await ask(guard)
            assert one.chats == 1 and (guard.faults.failed, guard.faults.retried) == (1, 0)
