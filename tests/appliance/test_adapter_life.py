"""Adapters on a running engine: loaded before they answer, kept while they do, gone when nobody wants them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fake_engine import ScriptedEngine
from fake_vllm import write_python
from gate_support import Bench, right, rows

from appliance.adapters import canary, gates, trial
from appliance.adapters import life as adapter_life
from appliance.adapters.life import AdapterLife
from appliance.adapters.registry import AdapterVersion
from appliance.answers.availability import adapter_trouble
from appliance.engines.base import AdapterRef, Delta, EngineError, Health, Sampling
from appliance.engines.breaker import Breaker
from appliance.engines.guard import Guarded, TimeLimits
from appliance.engines.pool import EnginePool
from appliance.engines.vllm import VllmEngine
from appliance.errors import ApplianceError, GateMissed, UsageError
from appliance.knowledge.knowledge import Knowledge
from appliance.types import Caller


class Pool:
    """The one engine, guarded."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.guard = Guarded(engine, TimeLimits(), Breaker(1, 0.0))

    async def named(self, name: str) -> Guarded:
        return self.guard


class Refusing(ScriptedEngine):
    """Refuses to load what is named `bad`, and answers with an error for what is named `mute`."""

    bad: str = ""
    mute: str = ""

    async def load(self, adapter: AdapterRef) -> None:
        if adapter.name == self.bad:
            raise EngineError("the adapter does not fit")
        await super().load(adapter)

    def chat(self, messages, adapter, sampling):  # type: ignore[no-untyped-def]
        self.error = EngineError("无法生成") if adapter == self.mute and adapter else None
        return super().chat(messages, adapter, sampling)


class Hanging(ScriptedEngine):
    """Says that it is well, and never answers."""

    asking = 0

    async def chat(self, messages, adapter, sampling):  # type: ignore[no-untyped-def]
        self.asking += 1
        try:
            await asyncio.Event().wait()
            yield
        finally:
            self.asking -= 1


class Shared(VllmEngine):
    """Over a server that serves what is in `has`."""

    has: set[str]

    async def health(self) -> Health:
        self._served, self._loaded = set(self.has), self.has & self._wanted.keys()
        return Health(True)

    async def chat(self, messages, adapter, sampling):  # type: ignore[no-untyped-def]
        yield Delta("好", "stop")

    async def _post(self, url: str, body: dict[str, Any], **_: object) -> bytes:
        (self.has.discard if "/unload" in url else self.has.add)(body["lora_name"])
        return b""


@pytest.fixture
def bench(light: Knowledge, tmp_path: Path) -> Bench:
    return Bench(light, tmp_path)


@pytest.fixture
def versions(bench: Bench) -> list[AdapterVersion]:
    info = bench.dataset("pairs", rows(0, 4, "train") + rows(4, 4, "train", "zh"))
    return [bench.adapter(info, right, number) for number in (1, 2, 3)]


def life(bench: Bench, engine: ScriptedEngine) -> tuple[AdapterLife, Guarded]:
    pool = Pool(engine)
    return AdapterLife(bench.registry, pool), pool.guard  # type: ignore[arg-type]


def test_an_alias_that_moves_is_followed(bench: Bench, versions: list[AdapterVersion], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_life, "_DRAIN", 0.0)
    engine = Refusing("好 的", base_hash=bench.base_hash)
    one, two, three = versions
    found, guard = life(bench, engine)

    async def run() -> None:
        await found.tick()
        assert engine.loaded == [] and engine.asked == []
        bench.registry.promote(one.name)
        await found.tick()
        await found.tick()
        # Tried once, with its own words, before anybody was sent to it.
        assert engine.loaded == [one.name] and [adapter for _, adapter, _ in engine.asked] == [one.name]
        held = guard.chat([{"role": "user", "content": "还开放吗？"}], one.name, Sampling())
        await anext(held)
        bench.registry.promote(two.name)
        await found.tick()
        # What it answers goes on with it.
        assert engine.loaded == [one.name, two.name]
        await held.aclose()
        await found.tick()
        assert engine.loaded == [two.name]
        # A candidate of a canary is wanted beside the live one.
        canary.start(bench.registry, three.name, 0.5, "a test")
        await found.tick()
        assert engine.loaded == [two.name, three.name]
        canary.stop(bench.workspace.db, "medical")
        bench.registry.rollback("medical")
        await found.tick()
        await found.tick()
        assert engine.loaded == [one.name]

    asyncio.run(run())


def test_a_version_that_was_just_asked_stays_for_a_while(bench: Bench, versions: list[AdapterVersion]) -> None:
    engine = Refusing("好", base_hash=bench.base_hash)
    one, two, _ = versions
    found, _ = life(bench, engine)

    async def run() -> None:
        for version in (one, two):
            bench.registry.promote(version.name)
            await found.tick()
        await found.tick()

    asyncio.run(run())
    assert engine.loaded == [one.name, two.name]


def test_trouble_with_one_version_holds_no_other_up(bench: Bench, versions: list[AdapterVersion], caplog: pytest.LogCaptureFixture) -> None:
    engine = Refusing("好", base_hash=bench.base_hash)
    one, two, _ = versions
    engine.bad = one.name
    bench.registry.promote(one.name)
    canary.start(bench.registry, two.name, 0.5, "a test")
    found, guard = life(bench, engine)

    async def run() -> None:
        for _ in range(5):
            await found.tick()

    asyncio.run(run())
    assert engine.loaded == [two.name]
    # Nobody is sent to it, and the reason is told.
    assert asyncio.run(adapter_trouble(one, guard, Caller(), "en")) == f"engine default cannot use {one.name}; the log says why"
    assert asyncio.run(adapter_trouble(two, guard, Caller(), "en")) == ""
    said = [one.getMessage() for one in caplog.records if one.levelname == "ERROR" and one.name.startswith("appliance.adapters")]
    assert said == [f"{one.name}: the adapter does not fit"]


def test_a_version_that_nobody_asked_for_lately_stays_for_whoever_is_on_the_way(bench: Bench, versions: list[AdapterVersion]) -> None:
    engine = Refusing("好", base_hash=bench.base_hash)
    one, two, _ = versions
    found, guard = life(bench, engine)

    async def run() -> None:
        bench.registry.promote(one.name)
        await found.tick()
        # Its trial was its last answer, long ago.
        guard._used[one.name] = float("-inf")
        bench.registry.promote(two.name)
        await found.tick()
        await found.tick()

    asyncio.run(run())
    assert engine.loaded == [one.name, two.name]


def test_a_loaded_version_that_did_not_answer_is_tried_again(
    bench: Bench, versions: list[AdapterVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_life, "_AGAIN", 0.0)
    engine = Refusing("好", base_hash=bench.base_hash)
    engine.mute = versions[0].name
    bench.registry.promote(versions[0].name)
    found, guard = life(bench, engine)

    async def run() -> None:
        await found.tick()
        assert engine.loaded == [versions[0].name] and guard.refused == {versions[0].name}
        engine.mute = ""
        await found.tick()

    asyncio.run(run())
    assert guard.refused == set()


def test_an_engine_with_bad_settings_and_a_database_in_trouble_hold_nothing_up(
    bench: Bench, versions: list[AdapterVersion], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Refusing("好", base_hash=bench.base_hash)
    bench.registry.promote(versions[0].name)
    found, guard = life(bench, engine)
    seen = found._look()

    async def named(name: str) -> Guarded:
        if name == "bad":
            raise UsageError("[engines.bad] has an address and no model")
        return guard

    def broken() -> None:
        raise sa.exc.OperationalError("SELECT", {}, Exception("数据库坏了"))

    async def run() -> None:
        monkeypatch.setattr(found._engines, "named", named)
        monkeypatch.setattr(found, "_look", lambda: {"bad": {}, **seen})
        await found.tick()
        assert engine.loaded == [versions[0].name]
        monkeypatch.setattr(found, "_look", broken)
        monkeypatch.setattr(adapter_life, "_LOOK", 0.0)
        running = asyncio.create_task(found.run())
        await asyncio.sleep(0.2)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
    assert "has an address and no model" in caplog.text and "数据库坏了" in caplog.text


def test_an_engine_that_hangs_holds_no_other_up(bench: Bench, versions: list[AdapterVersion], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_life, "_LOOK", 0.01)
    monkeypatch.setattr(adapter_life, "_DRAIN", 0.0)
    engine, hung = Refusing("好", base_hash=bench.base_hash), Hanging(base_hash=bench.base_hash)
    one, two, _ = versions
    found, guard = life(bench, engine)
    trying = Guarded(hung, TimeLimits(), Breaker(1, 0.0))
    trying.breaker.open()

    async def named(name: str) -> Guarded:
        return trying if name == "hung" else guard

    async def loaded(*names: str) -> None:
        async with asyncio.timeout(10):
            while engine.loaded != list(names):  # noqa: ASYNC110 - the life changes it
                await asyncio.sleep(0.01)

    async def run() -> None:
        monkeypatch.setattr(found._engines, "named", named)
        monkeypatch.setattr(adapter_life, "wanted", lambda registry: {"hung": {}, **work_out(registry)})
        bench.registry.promote(one.name)
        running = asyncio.create_task(found.run())
        await loaded(one.name)
        # Not only in the first round.
        bench.registry.promote(two.name)
        await loaded(two.name)
        assert hung.asking == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert hung.asking == 0

    work_out = adapter_life.wanted
    asyncio.run(run())


def test_what_others_left_on_a_shared_server_leaves_it(
    bench: Bench, versions: list[AdapterVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_life, "_DRAIN", 0.0)
    server = Shared("default", "http://127.0.0.1:9/v1", "base", None, ["zh"], bench.base_hash, 2048, tuple)
    one, two, _ = versions
    found, _ = life(bench, server)  # type: ignore[arg-type]
    bench.registry.promote(one.name)
    # Brought by a gate, removed since, and what is no version of this workspace.
    others = {"law@1a2b3c4d", "qwen", "medical@latest"}
    server.has = {"base", one.name, two.name, "medical@0badc0de", *others}

    async def run() -> None:
        await found.tick()
        await found.tick()
        assert server.has == {"base", one.name, two.name, "medical@0badc0de", *others}
        monkeypatch.setattr(adapter_life, "_STRAY", 0.0)
        await found.tick()

    asyncio.run(run())
    assert server.has == {"base", one.name, *others}


def test_an_engine_that_is_back_is_tried_before_a_question_is(bench: Bench, versions: list[AdapterVersion]) -> None:
    engine = Refusing("好", base_hash=bench.base_hash)
    found, guard = life(bench, engine)
    bench.registry.promote(versions[0].name)
    engine.state = Health(False, "its server is being started")

    async def run() -> None:
        await found.tick()
        assert engine.loaded == []
        guard.breaker.open()
        assert guard.state == "half-open"
        engine.state = Health(True)
        await found.tick()
        assert guard.state == "closed" and engine.loaded == [versions[0].name]
        assert [adapter for _, adapter, _ in engine.asked] == [None, versions[0].name]

    asyncio.run(run())


def test_what_cannot_be_loaded_or_does_not_answer_never_goes_live(bench: Bench, versions: list[AdapterVersion]) -> None:
    one, two, three = versions
    engine = Refusing("好", base_hash=bench.base_hash)
    service = bench.service()
    service.answering.engines.engine = engine  # type: ignore[attr-defined]
    engine.bad, engine.mute = one.name, two.name
    for version, said in ((one, "does not fit"), (two, "无法生成")):
        with pytest.raises(EngineError, match=said):
            asyncio.run(gates.promote(service, version.name, force="a test"))
        assert bench.registry.live("medical") is None
    assert asyncio.run(gates.promote(service, three.name, force="a test")).promoted
    assert bench.registry.live("medical") == bench.registry.current(three.name)
    (three.path / "adapter_config.json").write_text("{}", "utf-8")
    engine.loaded.clear()
    with pytest.raises(ApplianceError, match="were altered"):
        asyncio.run(adapter_life.load(bench.registry, engine, three))


def test_what_vllm_does_not_serve_is_refused_with_the_remedy(bench: Bench, versions: list[AdapterVersion]) -> None:
    import json

    from finetune.version import version_hash

    version = versions[0]
    file = version.path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "use_dora": True}), "utf-8")
    with bench.workspace.db.write() as connection:
        connection.exec_driver_sql("UPDATE adapter SET sha256 = ? WHERE name = ?", (version_hash(version.path), version.name))
    bench.workspace.save_setting("engines.default.kind", "vllm")
    with pytest.raises(GateMissed, match="DoRA adapters are not served by vllm; use an engine of kind local, or train with method lora"):
        asyncio.run(gates.promote(bench.service(), version.name, force="a test"))
    assert bench.registry.live("medical") is None


def test_what_overflows_is_said_before_the_alias_moves_or_a_trial_begins(
    bench: Bench, versions: list[AdapterVersion], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"kind": "vllm", "python": str(write_python(tmp_path / "python")), "max_loras": 1, "connect_seconds": 30}
    for name, value in settings.items():
        bench.workspace.save_setting(f"engines.default.{name}", value)
    one, two, three = versions
    service = replace(bench.service(), engines=EnginePool(bench.workspace, bench.models))

    async def run() -> None:
        await gates.promote(service, one.name, force="a test")
        assert "are wanted" not in caplog.text
        engine = await service.engines.of("medical")
        load = engine.load

        async def loading(version: AdapterRef) -> None:
            assert "2 adapters are wanted and 1 fit into one batch" in caplog.text
            assert bench.registry.live("medical") == bench.registry.current(one.name)
            await load(version)

        engine.load = loading  # type: ignore[method-assign]
        await gates.promote(service, two.name, force="a test")
        await trial.begin(service, three.name, force="a test", progress=lambda *_: None)
        # The live one, the one before it, which is still loaded, and the candidate.
        assert "3 adapters are wanted and 1 fit into one batch" in caplog.text
        await service.engines.close()

    asyncio.run(run())
