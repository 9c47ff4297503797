"""Time limits, the retry and the circuit breaker, over a real engine client and a server that lies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from lying_engine import LyingEngine, lying

from appliance.engines.base import EngineBusy, EngineDown, EngineError, EngineLate, Health, Message, Sampling
from appliance.engines.breaker import Breaker
from appliance.engines.guard import Guarded, TimeLimits
from appliance.engines.openai import OpenAIEngine

pytestmark = pytest.mark.anyio
ASK: list[Message] = [{"role": "user", "content": "挂号费是多少？"}]
QUICK = TimeLimits(connect=0.3, first_token=0.3, between_tokens=0.3, total=5.0)
# Where nothing is to be late, also on a busy machine.
PATIENT = TimeLimits(connect=10.0, first_token=10.0, between_tokens=10.0, total=60.0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def guarded(server: LyingEngine, limits: TimeLimits = QUICK, failures: int = 3, pause: float = 0.2) -> AsyncIterator[Guarded]:
    engine = OpenAIEngine("remote", server.url, "m", None, ["zh"], connect_timeout=limits.connect)
    guard = Guarded(engine, limits, Breaker(failures, pause))
    yield guard
    await guard.close()


async def left(server: LyingEngine) -> None:
    for _ in range(100):
        if server.left:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the client has not gone")


async def ask(guard: Guarded) -> str:
    return "".join([delta.text async for delta in guard.chat(ASK, None, Sampling())])


@pytest.mark.parametrize("fault", ["reset", "500", "garbage"])
async def test_one_fault_before_the_first_token_is_never_seen(fault: str) -> None:
    with lying(fault=fault, faults_left=1) as server:
        async with guarded(server, PATIENT) as guard:
            assert (await ask(guard)).split() == ["第0词", "第1词", "第2词", "第3词", "第4词"]
    assert server.chats == 2 and (guard.faults.failed, guard.faults.retried) == (1, 1) and guard.state == "closed"


@pytest.mark.parametrize("fault", ["reset_later", "half_chunk", "no_done", "error_event"])
async def test_a_fault_after_the_first_token_is_an_error_and_not_retried(fault: str) -> None:
    with lying(fault=fault) as server:
        async with guarded(server, PATIENT) as guard:
            seen = []
            with pytest.raises(EngineDown):
                async for delta in guard.chat(ASK, None, Sampling()):
                    seen.append(delta.text)
    assert "".join(seen) == "第0词 第1词 " and server.chats == 1


async def test_each_time_limit_is_kept_and_lateness_is_not_retried() -> None:
    for fault, words, limits, said in [
        ("hang", 5, replace(PATIENT, first_token=0.3), "no first token within 0.3 s"),
        ("hang_later", 5, replace(PATIENT, between_tokens=0.3), "nothing more within 0.3 s"),
        ("", 200, replace(PATIENT, total=0.4), "did not complete the answer within 0.4 s"),
    ]:
        with lying(fault=fault, words=words, pause=0.02) as server:
            async with guarded(server, limits) as guard:
                with pytest.raises(EngineLate, match=said):
                    await ask(guard)
                # The server learns that nobody waits any more.
                await left(server)
        assert server.chats == 1 and guard.faults.late == 1


async def test_the_breaker_opens_tries_once_and_closes() -> None:
    with lying(fault="reset") as server:
        async with guarded(server, PATIENT, failures=2) as guard:
            with pytest.raises(EngineDown):
                await ask(guard)
            assert guard.state == "open" and not (await guard.health()).ok
            asked = server.chats
            with pytest.raises(EngineDown, match="is left alone; try again in 1 s") as refused:
                await ask(guard)
            assert server.chats == asked and 0 < refused.value.retry_after <= 0.2 and guard.faults.refused == 1
            await asyncio.sleep(0.25)
            assert guard.state == "half-open"
            with pytest.raises(EngineDown):
                await ask(guard)
            assert guard.state == "open" and server.chats == asked + 1
            server.fault = ""
            await asyncio.sleep(0.25)
            assert (await guard.health()).ok
            assert await ask(guard) and guard.state == "closed"


async def test_while_one_request_tries_the_engine_others_are_refused_until_its_first_token() -> None:
    with lying(fault="reset", pause=0.1) as server:
        async with guarded(server, PATIENT, failures=1) as guard:
            with pytest.raises(EngineDown):
                await ask(guard)
            server.fault = ""
            await asyncio.sleep(0.25)
            trial = guard.chat(ASK, None, Sampling())
            waiting = asyncio.ensure_future(anext(trial))
            await asyncio.sleep(0)
            with pytest.raises(EngineDown):
                await ask(guard)
            await waiting
            assert guard.state == "closed" and await ask(guard)
            await trial.aclose()


async def test_a_trial_that_is_given_up_leaves_the_breaker_half_open() -> None:
    with lying(fault="hang", pause=0.0) as server:
        async with guarded(server, failures=1) as guard:
            with pytest.raises(EngineLate):
                await ask(guard)
            await asyncio.sleep(0.25)
            trial = asyncio.ensure_future(ask(guard))
            await asyncio.sleep(0.05)
            trial.cancel()
            await asyncio.gather(trial, return_exceptions=True)
            assert guard.state == "half-open" and guard.breaker.allows()


async def test_a_hanging_engine_is_known_to_be_ill_within_its_limit_and_back_by_itself() -> None:
    with lying(sick=True) as server:
        async with guarded(server) as guard:
            for asked in (1, 2, 3):
                health = await guard.health()
                assert not health.ok and "did not answer within 0.3 s" in health.detail and server.probes == asked
            assert guard.state == "open" and not (await guard.health()).ok and server.probes == 3
            server.sick = False
            await asyncio.sleep(0.25)
            assert (await guard.health()).ok and await ask(guard)


async def test_who_waits_for_an_engine_that_turns_out_to_be_ill_is_told_at_once() -> None:
    with lying(fault="hang") as server:
        async with guarded(server, replace(PATIENT, connect=0.1), pause=5.0) as guard:
            waiting = [asyncio.ensure_future(ask(guard)) for _ in range(3)]
            for _ in range(1000):
                if server.chats == 3:
                    break
                await asyncio.sleep(0.01)
            server.fault, server.words, server.pause = "", 20, 0.1
            begun = guard.chat(ASK, None, Sampling())
            await anext(begun)
            server.sick, guard._alive_at = True, float("-inf")
            for _ in range(3):
                guard._alive_at = float("-inf")
                await guard.health()
            found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), PATIENT.first_token / 2)
            assert all(isinstance(error, EngineDown) and not isinstance(error, EngineLate) for error in found)
            assert "is left alone" in str(found[0]) and (guard.faults.failed, guard.faults.late, guard.faults.refused) == (0, 0, 3)
            # An answer that has begun shows that not everything is lost.
            assert (await anext(begun)).text.startswith("第1词 ")
            await begun.aclose()


async def test_all_that_are_late_at_the_same_moment_are_late() -> None:
    with lying(fault="hang") as server:
        async with guarded(server, replace(PATIENT, first_token=0.3), failures=2) as guard:
            found = await asyncio.gather(*(ask(guard) for _ in range(6)), return_exceptions=True)
            assert all(isinstance(error, EngineDown) for error in found) and guard.state == "open"
            assert guard.faults.late >= 2 and guard.faults.late + guard.faults.refused == 6


async def test_one_late_answer_to_how_it_is_keeps_no_request_away() -> None:
    with lying(sick=True) as server:
        async with guarded(server) as guard:
            for _ in range(3):
                server.sick = True
                guard._alive_at = float("-inf")
                assert not (await guard.health()).ok and guard.state == "closed"
                server.sick = False
                assert (await guard.health()).ok and await ask(guard)
    assert guard.faults.refused == 0


async def test_an_engine_is_not_late_while_this_process_is_too_busy_to_look() -> None:
    class Slow(OpenAIEngine):
        async def health(self) -> Health:
            asyncio.get_running_loop().call_soon(time.sleep, 0.4)
            await asyncio.sleep(0.01)
            return Health(True)

    guard = Guarded(Slow("slow", "http://127.0.0.1:9/v1", "m", None, ["zh"]), QUICK, Breaker(1, 5))
    assert (await guard.health()).ok


async def test_the_end_of_the_trial_is_its_first_token() -> None:
    with lying(fault="reset") as server:
        async with guarded(server, PATIENT, failures=1) as guard:
            with pytest.raises(EngineDown):
                await ask(guard)
            server.fault, server.words, server.pause = "", 10_000, 0.01
            await asyncio.sleep(0.25)
            trial = guard.chat(ASK, None, Sampling())
            await anext(trial)
            guard.breaker.open()
            await asyncio.sleep(0.25)
            assert guard.breaker.enter()
            await trial.aclose()
            assert not guard.breaker.allows()


async def test_an_engine_that_has_just_answered_is_not_asked_whether_it_is_well() -> None:
    with lying() as server:
        async with guarded(server, PATIENT) as guard:
            await ask(guard)
            assert (await guard.health()).ok and server.probes == 0


async def test_bad_moments_between_good_answers_are_not_in_a_row() -> None:
    with lying() as server:
        async with guarded(server, PATIENT) as guard:

            async def unwell() -> Health:
                return Health(False, "不可用")

            guard.engine.health = unwell  # type: ignore[method-assign]
            for _ in range(4):
                guard._alive_at = float("-inf")
                assert not (await guard.health()).ok
                assert await ask(guard)
                assert (await guard.health()).ok
    assert guard.state == "closed"


async def test_a_busy_engine_is_no_broken_one() -> None:
    class Busy(OpenAIEngine):
        async def chat(self, *_: object):  # type: ignore[no-untyped-def, override]
            raise EngineBusy("full", 3.0)
            yield

    guard = Guarded(Busy("busy", "http://127.0.0.1:9/v1", "m", None, ["zh"]), QUICK, Breaker(1, 5))
    for _ in range(3):
        with pytest.raises(EngineBusy):
            await ask(guard)
    assert guard.state == "closed"


class Counting(OpenAIEngine):
    """One whose server counts the tokens, which hangs while `hangs`, as does the question whether it is well; chats always fail."""

    def __init__(self, hangs: bool = True) -> None:
        super().__init__("counting", "http://127.0.0.1:9/v1", "m", None, ["zh"])
        self.hangs, self.counts = hangs, 0

    async def chat(self, *_: object):  # type: ignore[no-untyped-def, override]
        raise EngineDown("500")
        yield

    async def count_tokens(self, messages: Sequence[Message]) -> int:
        self.counts += 1
        await asyncio.sleep(3600 if self.hangs else 0)
        return 3

    async def health(self) -> Health:
        await asyncio.sleep(3600 if self.hangs else 0)
        return Health(True)


async def test_a_server_that_hangs_while_it_counts_is_late_and_then_left_alone() -> None:
    engine = Counting()
    guard = Guarded(engine, replace(PATIENT, first_token=0.2), Breaker(2, 60.0))
    for late in (1, 2):
        async with asyncio.timeout(30):
            with pytest.raises(EngineLate, match=r"engine counting sent no count of tokens within 0\.2 s"):
                await guard.count_tokens(ASK)
        assert guard.faults.late == late
    assert guard.state == "open"
    with pytest.raises(EngineDown, match="is left alone"):
        await guard.count_tokens(ASK)
    assert engine.counts == 2 and guard.faults.refused == 1


async def test_who_waits_for_the_count_of_an_engine_that_turns_out_to_be_ill_is_told_at_once() -> None:
    guard = Guarded(Counting(), replace(PATIENT, connect=0.1), Breaker(3, 60.0))
    waiting = [asyncio.ensure_future(guard.count_tokens(ASK)) for _ in range(3)]
    for _ in range(3):
        await guard.health()
    found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), PATIENT.first_token / 2)
    assert all("is left alone" in str(error) for error in found) and (guard.faults.late, guard.faults.refused) == (0, 3)


async def test_counting_does_not_show_that_an_engine_answers() -> None:
    engine = Counting(hangs=False)
    guard = Guarded(engine, PATIENT, Breaker(4, 0.2))
    for _ in range(2):
        assert await guard.count_tokens(ASK) == 3 and guard.state == "closed"
        with pytest.raises(EngineDown, match="500"):
            await ask(guard)
    assert guard.state == "open"
    await asyncio.sleep(0.25)
    assert await guard.count_tokens(ASK) == 3 and guard.state == "half-open"
    # The engine is tried with one request at a time, be it a count.
    engine.hangs = True
    trial = asyncio.ensure_future(guard.count_tokens(ASK))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        with pytest.raises(EngineDown, match="is left alone"):
            await guard.count_tokens(ASK)
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)
    assert guard.breaker.allows()


async def test_closing_the_iterator_reaches_the_server() -> None:
    with lying(words=10_000, pause=0.01) as server:
        async with guarded(server) as guard:
            stream = guard.chat(ASK, None, Sampling())
            assert (await anext(stream)).text == "第0词 "
            await stream.aclose()
            await left(server)
            assert server.sent < server.words


def test_errors_know_their_kind() -> None:
    assert issubclass(EngineLate, EngineDown) and issubclass(EngineDown, EngineError)
