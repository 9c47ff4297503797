"""The server for longer: its memory stays where it is, a locked database costs no answer, and SIGTERM under load loses none."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import psutil
import pytest
from e2e_support import make_handbook

from appliance.answers.verified import VerifiedAnswers
from appliance.bench import Asked, ask
from appliance.cli.main import run

sys.path.append(str(Path(__file__).parent.parent / "gateway"))
from gateway_real import APPROVED
from lying_engine import LyingEngine, lying

ASKED = [
    ("medical/rag", "When may visitors come?"),
    ("medical/rag", "探视时间是几点到几点？"),
    ("medical/quote", "What does parking cost?"),
    ("medical/quote", "重症监护室最多几人探视？"),
    ("medical/verified", APPROVED[0]),
    ("medical/base", "What is a ward?"),
]


@dataclass
class Running:
    """A server of its own process over a handbook, and the engine behind it."""

    url: str
    process: subprocess.Popen[str]
    engine: LyingEngine
    root: Path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    from appliance.service import open_service
    from appliance.workspace import Workspace

    folder = tmp_path_factory.mktemp("soak")
    root, handbook = folder / "workspace", make_handbook(folder / "handbook")
    assert run(["init", str(root)]) == 0
    assert run(["--workspace", str(root), "ingest", str(handbook), "--domain", "medical"]) == 0
    with Workspace(root) as workspace:
        verified: VerifiedAnswers = open_service(workspace).verified
        verified.add("medical", *APPROVED, [], "王医生", 0.7)
    with lying(words=12, pause=0.01) as engine:
        settings = {"kind": "openai", "url": engine.url, "model": "m", "languages": '["en", "zh"]'}
        flags = [part for name, value in settings.items() for part in ("--set", f"engines.default.{name}={value}")]
        log = (folder / "log").open("w+", encoding="utf-8")
        program = [sys.executable, "-c", "from appliance.cli.main import main; main()", *flags, "-w", str(root)]
        process = subprocess.Popen([*program, "serve", "--port", "0"], stderr=log, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            address = None
            while address is None:
                assert process.poll() is None, (folder / "log").read_text("utf-8")
                time.sleep(0.1)
                address = re.search(r"http://127\.0\.0\.1:\d+", (folder / "log").read_text("utf-8"))
            until = time.monotonic() + 120
            while httpx.get(f"{address[0]}/readyz").json()["status"] != "ready" and time.monotonic() < until:
                time.sleep(0.2)
            # The first answers wait for the embedding model.
            asyncio.run(_load(address[0], 0.5, len(ASKED)))
            yield Running(address[0], process, engine, root)
        finally:
            process.kill()
            process.wait(30)
            log.close()


async def _load(url: str, seconds: float, streams: int) -> list[Asked]:
    """Ask everything again and again, in several streams."""
    until = time.monotonic() + seconds

    async def stream(number: int) -> list[Asked]:
        found: list[Asked] = []
        while time.monotonic() < until:
            model, question = ASKED[(number + len(found)) % len(ASKED)]
            # A temperature keeps the answer cache out of it.
            body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": True, "temperature": 0.5}
            found.append(await ask(client, url, body))
        return found

    async with httpx.AsyncClient(timeout=60) as client:
        return [asked for found in await asyncio.gather(*(stream(number) for number in range(streams))) for asked in found]


@pytest.mark.parametrize(
    ("warm", "seconds"), [pytest.param(30, 60, id="1m", marks=pytest.mark.slow), pytest.param(120, 600, id="10m", marks=pytest.mark.full)]
)
def test_memory_stays_where_it_is(running: Running, warm: float, seconds: float) -> None:
    watched = psutil.Process(running.process.pid)

    def settled() -> float:
        readings = []
        for _ in range(5):
            asyncio.run(_load(running.url, 1, 2))
            readings.append(watched.memory_info().rss)
        return median(readings)

    assert not [asked.error for asked in asyncio.run(_load(running.url, warm, 6)) if asked.error]
    before = settled()
    found = asyncio.run(_load(running.url, seconds, 6))
    growth = settled() / before - 1
    assert found and not [asked.error for asked in found if asked.error]
    assert growth < 0.02, f"{growth:.1%} after {len(found)} answers, from {before / 2**20:.0f} MiB"


@pytest.mark.slow
def test_a_locked_database_costs_no_answer(running: Running) -> None:
    other = sqlite3.connect(running.root / "appliance.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        found = asyncio.run(_load(running.url, 3, 4))
    finally:
        other.execute("ROLLBACK")
        other.close()
    assert found and not [asked.error for asked in found if asked.error]


@pytest.mark.slow
def test_sigterm_under_load_loses_no_answer_that_has_begun(running: Running) -> None:
    # The last of them: the server ends with it.
    running.engine.words, running.engine.pause = 100, 0.02
    before = running.engine.sent
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(lambda: asyncio.run(_load(running.url, 3, 12)))
        while running.engine.sent < before + 20 and not load.done():
            time.sleep(0.05)
        running.process.terminate()
        found = load.result(120)
    assert running.process.wait(60) == 0
    # Who came too late was not let in, or hung up on before a word was said; nobody who was in was broken off.
    assert {asked.error for asked in found if asked.error} <= {"ConnectError", "ReadError", "RemoteProtocolError", "shutting_down"}
    assert sum(not asked.error for asked in found) >= 4
    assert not [asked.error for asked in found if asked.error == "broken off"]
