"""A supervised vLLM server, over a stand-in that runs as vLLM does: started, shared, lost and back, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from fake_vllm import write_python
from gate_support import make_adapter, make_base

from appliance.adapters.registry import Registry
from appliance.engines import vllm, vllm_server
from appliance.engines.base import AdapterRef, EngineDown, EngineError, EngineLate, Message, Sampling
from appliance.engines.breaker import Breaker
from appliance.engines.build import build, check
from appliance.engines.guard import Guarded, TimeLimits
from appliance.engines.pool import EnginePool
from appliance.engines.replicas import Replicas
from appliance.engines.vllm_server import Launch, Running, VllmServer
from appliance.engines.vllm_started import StartedVllm, launch, limits
from appliance.engines.vllm_users import Keeper
from appliance.errors import ApplianceError, DatabaseFailed, UsageError
from appliance.models.store import ModelStore
from appliance.settings import EngineConfig
from appliance.store import locks
from appliance.store.database import Database
from appliance.store.locks import Locked, WriterLock
from appliance.workspace import Workspace
from tests.waiting import until


@pytest.fixture
def models(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


@pytest.fixture
def base(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The base model's folder; the workspace's default engine is a started vLLM of it."""
    folder = make_base(tmp_path / "base")
    python = write_python(tmp_path / "python")
    for name, value in {"kind": "vllm", "base": f"path:{folder}", "python": str(python), "languages": ["en", "zh"]}.items():
        workspace.save_setting(f"engines.default.{name}", value)
    monkeypatch.setattr(vllm_server, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(vllm_server, "_LOOK", 0.02)
    monkeypatch.setattr(vllm_server, "_ASK", 0.05)
    return folder


@pytest.fixture
def server(workspace: Workspace, models: ModelStore, base: Path) -> Iterator[VllmServer]:
    made = VllmServer("default", lambda: launching(workspace, models), workspace.db)
    yield made
    made.close()


def launching(workspace: Workspace, models: ModelStore) -> Launch:
    return launch(workspace, models, "default", workspace.config.engines["default"])


def processes(base: Path) -> list[psutil.Process]:
    """The server, its keeper and its worker."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and str(base) in (process.info["cmdline"] or []):
            found.append(process)
    return found


def over(workspace: Workspace, models: ModelStore) -> StartedVllm:
    engine = build("default", workspace.config.engines["default"], models, workspace)
    assert isinstance(engine, StartedVllm)
    return engine


async def say(engine: StartedVllm, question: str, adapter: str | None = None) -> str:
    return "".join([delta.text async for delta in engine.chat([Message(role="user", content=question)], adapter, Sampling())])


def adapter(folder: Path, name: str, **config: object) -> AdapterRef:
    return AdapterRef(name, make_adapter(folder / name, 1))


def test_it_answers_with_the_adapter_that_is_named_and_leaves_nothing_behind(
    workspace: Workspace, models: ModelStore, base: Path, tmp_path: Path
) -> None:
    async def run() -> None:
        engine = over(workspace, models)
        await engine.start(20)
        assert (await engine.health()).ok
        assert await say(engine, "挂号 费 多少") == "base: 挂号 费 多少 "
        # What the server would read as a control token comes as the text it is, as it does to the local engine.
        assert await say(engine, "“<|im_end|>” 是什么？") == "base: “< |im_end|>” 是什么？ "
        assert await engine.count_tokens([Message(role="user", content="<|im_start|>")]) == 2
        with pytest.raises(EngineError, match=r"no adapter 'medical@1' is loaded \(loaded: none\)"):
            await say(engine, "x", "medical@1")
        ref = adapter(tmp_path, "medical@1")
        await engine.load(ref)
        await engine.load(ref)
        assert await engine.adapters() == ["medical@1"] and await say(engine, "你好", "medical@1") == "medical@1: 你好 "
        assert await engine.count_tokens([Message(role="user", content="one two 三")]) == 3
        await engine.unload("medical@1")
        await engine.unload("medical@1")
        assert await engine.adapters() == []
        assert len(processes(base)) == 3
        await engine.close()
        with pytest.raises(EngineError, match="closed"):
            await say(engine, "x")

    asyncio.run(run())
    assert processes(base) == []


def test_killed_in_the_middle_of_an_answer_it_comes_back_with_its_adapters(
    workspace: Workspace, models: ModelStore, base: Path, tmp_path: Path
) -> None:
    async def run() -> None:
        engine = over(workspace, models)
        await engine.start(20)
        await engine.load(adapter(tmp_path, "medical@1"))
        first = set(processes(base))
        seen = []
        with pytest.raises(EngineDown):
            async for delta in engine.chat([Message(role="user", content="CRASH now")], "medical@1", Sampling()):
                seen.append(delta.text)
        assert seen == ["medical@1: "]
        while not (await engine.health()).ok or engine._server.failures == 0:  # noqa: ASYNC110 - another thread changes it
            await asyncio.sleep(0.02)
        # That it is well waits for no adapter; who asks for one gets it.
        assert await engine.adapters() == [] and await say(engine, "好", "medical@1") == "medical@1: 好 "
        assert await engine.adapters() == ["medical@1"]
        # Not one of the old ones is left, the worker neither.
        assert not first & set(processes(base)) and len(processes(base)) == 3
        await engine.close()

    asyncio.run(run())


@pytest.mark.parametrize("trouble", ["sick", "hung"])
def test_a_server_that_is_not_well_is_started_again(
    workspace: Workspace, models: ModelStore, base: Path, monkeypatch: pytest.MonkeyPatch, server: VllmServer, trouble: str
) -> None:
    monkeypatch.setattr(vllm_server, "_PATIENCE", 0.05)
    until(lambda: server.running)
    (base / trouble).touch()
    until(lambda: server.failures == 1)
    assert server.running is None and "start" in server.detail
    (base / trouble).unlink()
    until(lambda: server.running)


def test_one_that_cannot_start_is_tried_more_and_more_rarely_and_says_so(workspace: Workspace, models: ModelStore, base: Path) -> None:
    (base / "broken").touch()

    async def run() -> None:
        pool = EnginePool(workspace, models)
        engine = await pool.named("default")
        state = await engine.health()
        assert not state.ok and "started again" in state.detail and str(base) not in state.detail
        with pytest.raises(EngineDown):
            await anext(engine.chat([Message(role="user", content="x")], None, Sampling()))
        await pool.close()

    asyncio.run(run())
    assert "this model cannot be loaded" in (workspace.root / "runs" / "logs" / "engine-default.log").read_text("utf-8")
    assert processes(base) == []


def test_processes_of_a_workspace_share_one_server(
    workspace: Workspace, models: ModelStore, base: Path, server: VllmServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "appliance.engines")
    until(lambda: server.running)
    other = VllmServer("default", lambda: launching(workspace, models), workspace.db)
    strange = VllmServer("default", lambda: replace(launching(workspace, models), settings="others"), workspace.db)
    try:
        until(lambda: other.running)
        assert other.running == server.running and len(processes(base)) == 3
        until(lambda: "other settings" in strange.detail)
        assert strange.running is None
        # The owner leaves, and the one that still needs it goes on with the same server.
        before, group = server.running, set(processes(base))
        server.close()
        until(lambda: "goes on without the process that owned it" in caplog.text)
        assert other.running == before and set(processes(base)) == group and strange.running is None
        # It watches over it, too.
        processes(base)[-1].kill()
        processes(base)[0].kill()
        until(lambda: other.failures > 0 and other.running)
        assert len(processes(base)) == 3 and not group & set(processes(base))
        # Nobody who shares it is left: the one with other settings starts its own.
        other.close()
        until(lambda: strange.running)
        assert len(processes(base)) == 3
    finally:
        other.close()
        strange.close()
    assert processes(base) == [] and list((workspace.root / "runs" / "logs").glob("*.users")) == []


def test_a_server_whose_keeper_and_owner_were_killed_is_ended_by_the_next(workspace: Workspace, models: ModelStore, base: Path) -> None:
    killed = VllmServer("default", lambda: launching(workspace, models), workspace.db)
    until(lambda: killed.running)
    group = set(processes(base))
    with pytest.MonkeyPatch.context() as patch:
        # As if this process were gone, too.
        patch.setattr(VllmServer, "_watch", lambda *_: killed._closing.wait() and "closed")
        patch.setattr(Keeper, "end", lambda *_: True)
        patch.setattr(VllmServer, "_publish", lambda *_: None)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        killed.close()
        next(one for one in group if "vllm_keeper.py" in " ".join(one.cmdline())).kill()
        until(lambda: len(processes(base)) == 2)
    server = VllmServer("default", lambda: launching(workspace, models), workspace.db)
    try:
        until(lambda: server.running)
        until(lambda: not group & set(processes(base)))
        assert len(processes(base)) == 3
    finally:
        server.close()
    assert processes(base) == [] and list((workspace.root / "runs" / "logs").glob("*.users")) == []


def test_a_lock_that_is_lost_ends_no_server(workspace: Workspace, models: ModelStore, base: Path, server: VllmServer) -> None:
    until(lambda: server.running)
    before, group, lost = server.running, set(processes(base)), list[str]()

    def beat(lock: WriterLock) -> None:
        if not lost:
            lost.append(lock.resource)
            raise Locked("the lock was lost with its connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WriterLock, "beat", beat)
        until(lambda: lost)
        until(lambda: server.running == before)
    assert set(processes(base)) == group and server.failures == 0
    server.close()
    until(lambda: not processes(base))


def test_connections_that_postgresql_ends_cost_no_server(
    workspace: Workspace, models: ModelStore, base: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.1)
    with closing(Database(postgres_url)) as database:
        server = VllmServer("default", lambda: launching(workspace, models), database)
        try:
            until(lambda: server.running)
            before, group = server.running, set(processes(base))
            with database.session() as session:
                holder = "SELECT max(pid) FROM pg_locks WHERE locktype = 'advisory'"
                first = session.exec_driver_sql(holder).scalar_one()
                session.exec_driver_sql(f"SELECT pg_terminate_backend({first})")
                # Lost, and taken again.
                until(lambda: session.exec_driver_sql(holder).scalar_one() not in (None, first))
            until(lambda: server.running == before)
            assert set(processes(base)) == group and server.failures == 0
        finally:
            server.close()
    until(lambda: not processes(base))


def test_a_database_in_trouble_ends_neither_the_server_nor_those_who_follow_it(
    workspace: Workspace, models: ModelStore, base: Path, server: VllmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: server.running)
    before = server.running
    failed: list[str] = []

    def beat(lock: WriterLock) -> None:
        failed.append("beat")
        raise DatabaseFailed("the database cannot be used: 数据库被锁")

    def follow(own: VllmServer) -> None:
        failed.append("follow")
        raise sa.exc.OperationalError("SELECT", {}, Exception("数据库坏了"))

    other = VllmServer("default", lambda: launching(workspace, models), workspace.db)
    try:
        until(lambda: other.running)
        with monkeypatch.context() as patch:
            patch.setattr(WriterLock, "beat", beat)
            patch.setattr(VllmServer, "_follow", follow)
            until(lambda: {"beat", "follow"} <= set(failed))
            until(lambda: other.running is None)
        until(lambda: other.running == before)
        assert server.running == before and server.failures == 0
    finally:
        other.close()


def test_a_server_that_answers_is_not_given_up_because_nobody_can_be_told(
    workspace: Workspace, models: ModelStore, base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish, busy = VllmServer._publish, threading.Event()

    def publishing(own: VllmServer, running: Running | None) -> None:
        if running is not None and not busy.is_set():
            raise DatabaseFailed("the database cannot be used: 数据库被锁")
        publish(own, running)

    monkeypatch.setattr(VllmServer, "_publish", publishing)
    server = VllmServer("default", lambda: launching(workspace, models), workspace.db)
    other = VllmServer("default", lambda: launching(workspace, models), workspace.db)
    try:
        until(lambda: "cannot be told of its server" in caplog.text)
        assert server.running is not None or other.running is not None
        busy.set()
        until(lambda: server.running is not None and server.running == other.running)
        assert server.failures == other.failures == 0 and len(processes(base)) == 3
    finally:
        server.close()
        other.close()


def test_a_row_of_another_release_ends_no_thread(
    workspace: Workspace, models: ModelStore, base: Path, server: VllmServer, caplog: pytest.LogCaptureFixture
) -> None:
    until(lambda: server.running)
    with workspace.db.write() as connection:
        connection.exec_driver_sql("UPDATE setting SET value = '{\"address\": 1}' WHERE key LIKE 'engine:default@%'")
    other = VllmServer("default", lambda: launching(workspace, models), workspace.db)
    try:
        until(lambda: "KeyError" in caplog.text)
        server._publish(server.running)
        until(lambda: other.running == server.running)
    finally:
        other.close()


def test_a_server_that_is_started_again_has_room_for_what_was_registered_since(
    workspace: Workspace, models: ModelStore, base: Path, server: VllmServer
) -> None:
    until(lambda: server.running)
    assert server.running is not None and server.running.limits.places == 4
    for number in range(4):
        workspace.create_domain(f"ward{number}")
    processes(base)[-1].kill()
    processes(base)[0].kill()
    until(lambda: server.failures > 0 and server.running)
    assert server.running is not None and server.running.limits.places == 8


def test_what_is_no_server_of_the_web_is_not_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as strange:

        def answer() -> None:
            connection, _ = strange.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail at your service\r\n")

        talking = threading.Thread(target=answer)
        talking.start()
        assert vllm_server._is_well(f"http://127.0.0.1:{strange.getsockname()[1]}/v1", 10.0, strict=True) is False
        talking.join()


def test_a_server_that_hangs_holds_no_load_up(
    workspace: Workspace, models: ModelStore, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "_PATIENCE", 0.1)
    monkeypatch.setattr(vllm, "_WELL", 0.1)

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
            engine = vllm.VllmEngine("default", url, "m", None, ["en"], "", 2048, tuple)
            async with asyncio.timeout(20):
                with pytest.raises(EngineLate, match="does the server hang"):
                    await engine.load(adapter(tmp_path, "medical@1"))
                with pytest.raises(EngineLate):
                    await engine.count_tokens([Message(role="user", content="挂号费")])
            await engine.close()

    asyncio.run(run())


def test_a_question_waits_for_no_count_of_a_server_that_hangs_beyond_its_limits() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
            engine = vllm.VllmEngine("default", url, "m", None, ["en"], "", 2048, tuple)
            guard = Guarded(engine, TimeLimits(first_token=0.3), Breaker(1, 60.0))
            async with asyncio.timeout(vllm._PATIENCE / 2):
                with pytest.raises(EngineLate, match=r"no count of tokens within 0\.3 s"):
                    await guard.count_tokens([Message(role="user", content="挂号费")])
            assert guard.state == "open"
            await guard.close()

    asyncio.run(run())


@pytest.mark.parametrize("used", [False, True])
def test_a_killed_owner_takes_its_server_along_unless_somebody_else_uses_it(
    workspace: Workspace, models: ModelStore, base: Path, used: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "appliance.engines")
    code = (
        "import sys, time; from pathlib import Path; from appliance.workspace import Workspace;"
        "from appliance.models.store import ModelStore;"
        "from appliance.engines.vllm_started import launch; from appliance.engines.vllm_server import VllmServer;"
        "w = Workspace(Path(sys.argv[1])); l = lambda: launch(w, ModelStore(Path(sys.argv[2])), 'default', w.config.engines['default']);"
        "VllmServer('default', l, w.db); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(workspace.root), str(models.root)])
    server: VllmServer | None = None
    try:
        until(lambda: len(processes(base)) == 3, 60)
        if used:
            server = VllmServer("default", lambda: launching(workspace, models), workspace.db)
            until(lambda: server.running)
    finally:
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    if server is None:
        until(lambda: not processes(base))
        # Its lock is taken over.
        server = VllmServer("default", lambda: launching(workspace, models), workspace.db)
        until(lambda: server.running)
    else:
        before, group = server.running, set(processes(base))
        until(lambda: "goes on without the process that owned it" in caplog.text)
        assert server.running == before and set(processes(base)) == group and server.failures == 0
    server.close()
    assert processes(base) == []


def test_refused_and_lost_adapters(workspace: Workspace, models: ModelStore, base: Path, tmp_path: Path) -> None:
    async def run() -> None:
        engine = over(workspace, models)
        await engine.start(20)
        bad = adapter(tmp_path, "medical@bad")
        (bad.path / "refuse").touch()
        with pytest.raises(EngineError, match="cannot use adapter medical@bad; its log says why; check it with: appliance adapter lint"):
            await engine.load(bad)
        deep = adapter(tmp_path, "medical@deep")
        (deep.path / "adapter_config.json").write_text('{"r": 8, "rank_pattern": {"q_proj": 128}}', "utf-8")
        with pytest.raises(EngineError, match="has rank 128, engine default was started for ranks up to 16"):
            await engine.load(deep)
        with pytest.raises(EngineError, match=r"adapter_config\.json does not describe a LoRA adapter"):
            await engine.load(AdapterRef("medical@none", tmp_path / "none"))
        assert await engine.adapters() == []
        # Another process of the workspace unloads it: the next answer finds it all the same.
        one, other = adapter(tmp_path, "medical@1"), over(workspace, models)
        await engine.load(one)
        await other.start(20)
        await other.load(one)
        await other.unload("medical@1")
        assert await say(engine, "好", "medical@1") == "medical@1: 好 "
        await other.unload("medical@1")
        # What another process loaded is known, and can be unloaded as well.
        await other.load(adapter(tmp_path, "medical@2"))
        assert (await engine.health()).ok and engine.strays == {"medical@2"} and await engine.adapters() == ["medical@1"]
        await engine.unload("medical@2")
        assert (await engine.health()).ok and engine.strays == set()
        await other.close()
        assert await say(engine, "好", "medical@1") == "medical@1: 好 "
        await engine.close()

    asyncio.run(run())


def test_limits_follow_the_domains_and_their_versions(workspace: Workspace, models: ModelStore, base: Path) -> None:
    settings = workspace.config.engines["default"]
    found = limits(workspace, "default", settings, "hash")
    assert (found.places, found.kept, found.rank) == (4, 4, 16)
    for number in range(20):
        workspace.create_domain(f"d{number}")
    found = limits(workspace, "default", settings, "hash")
    assert (found.places, found.kept) == (32, 40)
    assert limits(workspace, "default", settings.model_copy(update={"max_loras": 3, "max_lora_rank": 33}), "hash") == replace(
        found, places=3, rank=64
    )
    assert Registry(workspace).versions() == []
    line = " ".join(launching(workspace, models).command)
    assert f"--model {base} " in line and "--max-loras 32 --max-cpu-loras 40 --max-lora-rank 16" in line
    assert "VLLM_API_KEY" in launching(workspace, models).environment and "--api-key" not in line


def test_addresses_make_replicas(workspace: Workspace, models: ModelStore, base: Path) -> None:
    both = ("http://127.0.0.1:8001/v1", "http://127.0.0.1:8002/v1")
    for kind, serves in (("openai", False), ("vllm", True)):
        settings = workspace.config.engines["default"].model_copy(update={"kind": kind, "urls": both, "model": "m", "python": None})
        engine = build("default", settings, models, workspace)
        assert isinstance(engine, Replicas) and len(engine._replicas) == 2
        assert engine.serves_adapters is serves and bool(engine.base_hash) is serves
        one = build("default", settings.model_copy(update={"urls": (), "url": both[0]}), models, workspace)
        assert type(one).__name__ == {"openai": "OpenAIEngine", "vllm": "VllmEngine"}[kind]
    # The model's window, which is smaller than what the configuration allows.
    assert engine.context_window == 2048


def test_more_adapters_than_places_are_warned_of(workspace: Workspace, models: ModelStore, base: Path) -> None:
    workspace.save_setting("engines.default.max_loras", 1)
    server = VllmServer("default", lambda: launching(workspace, models), workspace.db)
    until(lambda: server.running)
    engine = StartedVllm("default", server, "", ["en"], "", 2048, tuple, 1.5)
    assert engine.warnings(1) == []
    assert "2 adapters are wanted and 1 fit into one batch" in engine.warnings(2)[0]
    asyncio.run(engine.close())
    assert engine.warnings(2) == []


def test_what_does_not_go_together_is_told(workspace: Workspace, models: ModelStore, base: Path) -> None:
    with pytest.raises(UsageError, match="has an address and no model"):
        check("default", EngineConfig(kind="vllm", url="http://127.0.0.1:1/v1"))
    with pytest.raises(UsageError, match="has url and urls"):
        check("default", EngineConfig(kind="vllm", url="http://a/v1", urls=("http://b/v1",), model="m"))
    workspace.save_setting("engines.default.python", "/nowhere/python")
    with pytest.raises(ApplianceError, match="build vLLM's environment with `make vllm`"):
        launching(workspace, models)
