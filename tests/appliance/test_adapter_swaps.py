"""A hundred changes of the live adapter under twenty concurrent requests: no answer is lost, and none comes from the wrong version.

Each change is a whole one: the files are linted, the version is loaded and tried, the alias moves, the old version drains and is unloaded.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from fake_vllm import write_python
from gate_support import Bench, right, rows

from appliance.adapters import gates
from appliance.adapters import life as adapter_life
from appliance.adapters.life import AdapterLife
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.engines.guard import Guarded
from appliance.engines.pool import EnginePool
from appliance.engines.vllm_started import StartedVllm
from appliance.knowledge.knowledge import Knowledge
from appliance.service import Service, open_service
from appliance.types import Answer, Request
from appliance.workspace import Workspace
from tests.vllm_server import QUESTIONS, WORDS, VllmBench

SWAPS, ASKERS = 100, 20


@pytest.fixture
def drains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon enough for a version to come and go several times."""
    monkeypatch.setattr(adapter_life, "_DRAIN", 0.5)


async def swap_under_load(
    service: Service, domain: str, versions: Mapping[str, str], questions: tuple[str, ...], swaps: int, askers: int, unloads: list[str]
) -> None:
    """Promote `versions` (by name, each with how its answers begin) in turn while `askers` ask; `unloads` is what left the server."""
    names = list(versions)
    live: list[str] = []
    answers: list[tuple[int, int, Answer]] = []
    answered, done = asyncio.Event(), asyncio.Event()

    async def ask(number: int) -> None:
        while not done.is_set():
            since = len(live) - 1
            request = Request(questions[number % len(questions)], domain=domain, arm="finetuned")
            answer = await service.answering.ask(request)
            answers.append((since, len(live), answer))
            if answer.adapter == live[-1]:
                answered.set()

    async def promote() -> None:
        name = names[len(live) % len(names)]
        # It is live from some moment in here on.
        live.append(name)
        assert (await gates.promote(service, name, force="a swap")).promoted

    async def swap() -> None:
        while len(live) < swaps:
            await promote()
            # It answers twice before the next one comes, however slow the machine is.
            async with asyncio.timeout(600):
                for _ in range(2):
                    answered.clear()
                    await answered.wait()
        done.set()

    await promote()
    life = AdapterLife(service.registry, service.engines)
    running = asyncio.create_task(life.run())
    engine = await service.engines.of(domain)
    assert isinstance(engine, Guarded)
    try:
        await asyncio.gather(swap(), *(ask(number) for number in range(askers)))
        async with asyncio.timeout(60):
            # The last one stays alone, but for the live ones of other domains.
            while versions.keys() & await engine.adapters() != {live[-1]}:  # noqa: ASYNC110 - the life changes it
                await asyncio.sleep(0.1)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(live) == swaps and len(answers) >= 2 * (swaps - 1)
    for since, until, answer in answers:
        # One that was live at some moment of the question, and in its own words.
        assert answer.adapter is not None and answer.adapter in live[max(0, since - 1) : until]
        assert answer.text.startswith(versions[answer.adapter]), answer
    assert engine.faults.failed == engine.faults.late == engine.faults.retried == 0 and engine.refused == set()
    assert {answer.adapter for _, _, answer in answers} == set(versions)
    assert set(unloads) >= versions.keys() - {live[-1]}


@pytest.fixture
def unloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were unloaded."""
    found: list[str] = []
    unload = StartedVllm.unload

    async def noting(engine: StartedVllm, name: str) -> None:
        found.append(name)
        await unload(engine, name)

    monkeypatch.setattr(StartedVllm, "unload", noting)
    return found


def test_a_hundred_swaps_under_load(light: Knowledge, tmp_path: Path, drains: None, unloads: list[str]) -> None:
    bench = Bench(light, tmp_path)
    # This process does the asking as well, and may be too busy to connect in the usual time.
    for name, value in {"kind": "vllm", "python": str(write_python(tmp_path / "python")), "connect_seconds": 30}.items():
        bench.workspace.save_setting(f"engines.default.{name}", value)
    info = bench.dataset("pairs", rows(0, 4, "train") + rows(4, 4, "train", "zh"))
    # So many that each has left by the time its turn comes again.
    versions = [bench.adapter(info, right, number).name for number in range(1, 13)]

    async def run() -> None:
        service = replace(bench.service(), engines=EnginePool(bench.workspace, bench.models))
        service.answering.engines = service.engines
        try:
            questions = ("When may visitors come?", "探视时间是几点？")
            await swap_under_load(service, "medical", {name: f"{name}: " for name in versions}, questions, SWAPS, ASKERS, unloads)
        finally:
            await service.engines.close()

    asyncio.run(run())


@pytest.fixture
def in_one_domain(vllm_bench: VllmBench) -> Iterator[dict[str, str]]:
    """The three trained adapters as versions of one domain, `ward`, each with the words it learned."""
    with Workspace(vllm_bench.root) as workspace:
        registry = Registry(workspace)
        workspace.create_domain("ward")
        made: dict[str, str] = {}
        for domain, word in WORDS.items():
            version: AdapterVersion = registry.get(vllm_bench.adapters[domain].name)
            name = version.name.replace(f"{domain}@", "ward@")
            folder = shutil.copytree(version.path, version.path.with_name(name))
            facts = json.loads((folder / "version.json").read_text("utf-8"))
            (folder / "version.json").write_text(json.dumps({**facts, "name": name, "domain": "ward"}), "utf-8")
            registry.register(replace(version, name=name, domain="ward", path=folder), [])
            made[name] = word
        yield made
        for name in made:
            registry.remove(name, force=True)


@pytest.mark.slow
@pytest.mark.parametrize(("swaps", "askers"), [(4, 8), pytest.param(SWAPS, ASKERS, marks=pytest.mark.full)])
def test_swaps_on_real_vllm(
    in_one_domain: dict[str, str],
    vllm_bench: VllmBench,
    drains: None,
    unloads: list[str],
    monkeypatch: pytest.MonkeyPatch,
    swaps: int,
    askers: int,
) -> None:
    # On few cores one step over so many prompts, each with an adapter, takes long: whoever is in the middle of an answer waits for it,
    # and this process may be too busy to connect in the usual time.
    for name, seconds in {"BETWEEN_TOKENS": "600", "FIRST_TOKEN": "600", "CONNECT": "30"}.items():
        monkeypatch.setenv(f"APPLIANCE_ENGINES__DEFAULT__{name}_SECONDS", seconds)

    async def run() -> None:
        with Workspace(vllm_bench.root) as workspace:
            service = open_service(workspace)
            try:
                await swap_under_load(service, "ward", in_one_domain, QUESTIONS, swaps, askers, unloads)
            finally:
                await service.answering.close()

    asyncio.run(run())
