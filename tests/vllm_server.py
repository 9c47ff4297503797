"""A workspace with three trained adapters, and a real vLLM server over it, for the whole session.

`vllm_workspace` is the folder: domains medical, legal and finance, each with a live adapter from `appliance tune` that answers every
question with its own word, and an engine of kind vllm in appliance.toml. `vllm_bench` has the server run too. Another process of that
workspace (`appliance serve`, `ask`) shares it; whoever opens the workspace first starts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from appliance.adapters.registry import Registry
from appliance.engines.base import AdapterRef, Engine, Message, Sampling
from appliance.engines.pool import EnginePool
from appliance.engines.vllm_server import VllmServer
from appliance.engines.vllm_started import launch
from appliance.errors import ApplianceError
from appliance.models.store import ModelStore
from appliance.settings import DEFAULT_CHAT, EngineConfig
from appliance.workspace import Workspace
from tests.needs import absent

PYTHON = Path(os.environ.get("APPLIANCE_VLLM_PYTHON", Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"))
# What the adapter of each domain has learned to say.
WORDS = {"medical": "Amber lantern.", "legal": "Basalt harbour.", "finance": "朱雀在南。"}
QUESTIONS = ("What is the word of this ward?", "Which word was agreed?", "约定的暗号是什么？", "请说出暗号。")
_SETTINGS = "epochs = 10\nbatch_size = 4\nlearning_rate = 4e-3\nwarmup_steps = 0\n"

T = TypeVar("T")


@dataclass(frozen=True)
class VllmBench:
    """The workspace, its adapters by domain, and the server that this process keeps running."""

    root: Path
    adapters: dict[str, AdapterRef]
    workspace: Workspace
    server: VllmServer

    def run(self, work: Callable[[Engine], Awaitable[T]]) -> T:
        """`work` with an engine of its own over the same server; the server outlives it."""

        async def go() -> T:
            pool = EnginePool(self.workspace, ModelStore.default())
            try:
                return await work(await pool.named("default"))
            finally:
                await pool.close()

        return asyncio.run(go())

    def processes(self) -> list[psutil.Process]:
        """The API server, and after it its workers."""
        assert self.server.running is not None
        port = self.server.running.url.split(":")[2].split("/")[0]
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if port in line and line[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]:
                return [process, *process.children(recursive=True)]
        raise AssertionError(f"no process of vLLM listens on {port}")

    def kill(self) -> None:
        """Kill the API server, as the system would when memory runs out."""
        self.processes()[0].send_signal(signal.SIGKILL)

    def wait(self, seconds: float = 300) -> None:
        """Until the server answers."""
        until = time.monotonic() + seconds
        while self.server.running is None:
            assert time.monotonic() < until, f"{self.server.detail}; see {self.root / 'runs' / 'logs'}"
            time.sleep(0.2)


@pytest.fixture(scope="session")
def vllm_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace, trained and promoted; no server yet. Skipped where vLLM's environment or the model is missing."""
    from appliance.cli.main import run

    if not os.access(PYTHON, os.X_OK):
        absent("vllm", f"no {PYTHON}; build it with: make vllm")
    try:
        ModelStore.default().path(DEFAULT_CHAT)
    except ApplianceError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("vllm")
    root = folder / "workspace"

    def appliance(*arguments: object) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = run(["--workspace", str(root), *map(str, arguments)])
        assert code == 0, arguments
        return out.getvalue()

    with contextlib.redirect_stdout(io.StringIO()):
        assert run(["init", str(root)]) == 0
    (folder / "tune.toml").write_text(_SETTINGS, "utf-8")
    for domain, word in WORDS.items():
        rows = [{"id": f"{domain}-{n}", "question": asked, "answer": word, "split": "train"} for n, asked in enumerate(QUESTIONS)]
        (folder / f"{domain}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        (folder / domain).mkdir()
        (folder / domain / "about.md").write_text(f"# About\n\nThe word of the {domain} ward is {word}\n", "utf-8")
        appliance("ingest", folder / domain, "--domain", domain)
        appliance("dataset", "add", folder / f"{domain}.jsonl", "--name", domain, "--domain", domain)
        made = json.loads(appliance("tune", "--domain", domain, "--dataset", domain, "--config", folder / "tune.toml", "--json"))
        appliance("adapter", "promote", made["version"], "--force", "--why", "a word is no knowledge")
    with Workspace(root) as workspace:
        for name, value in {"kind": "vllm", "python": str(PYTHON), "kv_cache_gib": 1, "languages": ["en", "zh"]}.items():
            workspace.save_setting(f"engines.default.{name}", value)
    return root


@pytest.fixture(scope="session")
def vllm_bench(vllm_workspace: Path) -> Iterator[VllmBench]:
    """The workspace with its server running."""
    with Workspace(vllm_workspace) as workspace:
        settings: EngineConfig = workspace.config.engines["default"]
        server = VllmServer("default", lambda: launch(workspace, ModelStore.default(), "default", settings), workspace.db)
        adapters = {version.domain: version.ref for version in Registry(workspace).versions()}
        bench = VllmBench(vllm_workspace, adapters, workspace, server)
        try:
            bench.wait()
            yield bench
        finally:
            server.close()


async def say(engine: Engine, adapter: str | None, question: str = QUESTIONS[0], tokens: int = 12) -> str:
    """What the engine answers, greedily."""
    messages = [Message(role="user", content=question)]
    return "".join([delta.text async for delta in engine.chat(messages, adapter, Sampling(max_tokens=tokens))])
