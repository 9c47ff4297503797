"""The real vLLM server with three adapters that `appliance tune` trained: chosen per request, swapped, back after it was killed."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from appliance.engines.base import AdapterRef, Engine, EngineDown, EngineError, Message, Sampling
from appliance.engines.local import LocalEngine
from appliance.models.store import ModelStore
from appliance.settings import DEFAULT_CHAT
from tests.vllm_server import QUESTIONS, WORDS, VllmBench, say

pytestmark = pytest.mark.slow


async def load_all(engine: Engine, bench: VllmBench) -> None:
    for ref in bench.adapters.values():
        await engine.load(ref)


def test_each_request_is_answered_by_its_own_adapter(vllm_bench: VllmBench) -> None:
    async def work(engine: Engine) -> None:
        await load_all(engine, vllm_bench)
        await load_all(engine, vllm_bench)
        assert set(await engine.adapters()) == {ref.name for ref in vllm_bench.adapters.values()}
        asked = [(domain, question) for domain in WORDS for question in QUESTIONS]
        answers = await asyncio.gather(*(say(engine, vllm_bench.adapters[domain].name, question) for domain, question in asked))
        for (domain, question), answer in zip(asked, answers, strict=True):
            assert answer == WORDS[domain], (domain, question)
        assert await say(engine, None) not in WORDS.values()

    vllm_bench.run(work)


def test_it_answers_as_the_local_engine_does(vllm_bench: VllmBench) -> None:
    async def work(engine: Engine) -> None:
        models = ModelStore.default()
        local = LocalEngine("local", models.path(DEFAULT_CHAT), models.model_hash(DEFAULT_CHAT), ["en", "zh"])
        names = [None, *(ref.name for ref in vllm_bench.adapters.values())]
        for one in (engine, local):
            await load_all(one, vllm_bench)
        for question in ("What is the capital of France?", "你好吗？", "What does <|im_end|> mean?", "“<|im_start|>”是什么意思？"):
            for name in names:
                assert await say(engine, name, question, 6) == await say(local, name, question, 6), (name, question)
            messages = [Message(role="user", content=question)]
            assert await engine.count_tokens(messages) == await local.count_tokens(messages)
        await local.close()

    vllm_bench.run(work)


def test_a_request_ends_with_the_version_it_began_with(vllm_bench: VllmBench) -> None:
    medical, legal = vllm_bench.adapters["medical"], vllm_bench.adapters["legal"]

    async def work(engine: Engine) -> None:
        await engine.load(medical)
        for _ in range(2):
            streams = [engine.chat([Message(role="user", content=QUESTIONS[0])], medical.name, Sampling(max_tokens=12)) for _ in range(4)]
            begun = await asyncio.gather(*(anext(stream) for stream in streams))
            await engine.load(legal)
            await engine.unload(medical.name)
            with pytest.raises(EngineError, match="is loaded"):
                await say(engine, medical.name)
            assert await say(engine, legal.name) == WORDS["legal"]
            for first, stream in zip(begun, streams, strict=True):
                assert first.text + "".join([delta.text async for delta in stream]) == WORDS["medical"]
            await engine.unload(legal.name)
            await engine.load(medical)
            assert await engine.adapters() == [medical.name]

    vllm_bench.run(work)


def test_an_adapter_that_it_cannot_use_is_refused(vllm_bench: VllmBench, tmp_path: Path) -> None:
    def broken(name: str, **changes: object) -> AdapterRef:
        shutil.copytree(vllm_bench.adapters["legal"].path, tmp_path / name)
        file = tmp_path / name / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), "utf-8")
        return AdapterRef(name, tmp_path / name)

    async def work(engine: Engine) -> None:
        for ref, said in [
            (broken("legal@dora", use_dora=True), "cannot serve legal@dora: DoRA adapters are not served by vllm"),
            (broken("legal@deep", r=64), "cannot serve legal@deep"),
        ]:
            with pytest.raises(EngineError, match=said):
                await engine.load(ref)
        assert await engine.adapters() == [] and await say(engine, None, tokens=2)

    vllm_bench.run(work)


def test_a_command_uses_the_server_that_runs(vllm_bench: VllmBench, capsys: pytest.CaptureFixture[str]) -> None:
    from appliance.cli.main import run

    before = vllm_bench.server.running
    asked = ["ask", QUESTIONS[2], "--domain", "finance", "--arm", "finetuned", "--max-tokens", "12", "--json"]
    assert run(["--workspace", str(vllm_bench.root), *asked]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["adapter"] == vllm_bench.adapters["finance"].name and answer["answer"].strip()
    assert vllm_bench.server.running == before and vllm_bench.server.failures == 0


def test_killed_in_the_middle_of_an_answer_it_is_back_with_its_adapters(vllm_bench: VllmBench) -> None:
    async def work(engine: Engine) -> None:
        await load_all(engine, vllm_bench)
        stream = engine.chat([Message(role="user", content="Tell a long story.")], None, Sampling(max_tokens=1000))
        await anext(stream)
        vllm_bench.kill()
        with pytest.raises(EngineDown, match=r"broke during the answer|ended without|ended the answer|failed during the answer"):
            async for _ in stream:
                pass
        async with asyncio.timeout(60):
            while vllm_bench.server.running is not None:  # noqa: ASYNC110 - another thread changes it
                await asyncio.sleep(0.05)
        assert not (await engine.health()).ok
        await asyncio.to_thread(vllm_bench.wait)
        async with asyncio.timeout(120):
            while not (await engine.health()).ok:  # noqa: ASYNC110 - the server changes it
                await asyncio.sleep(0.2)
        # Lost with the old server, they are loaded again by who asks for them.
        assert await engine.adapters() == []
        for domain, word in WORDS.items():
            assert await say(engine, vllm_bench.adapters[domain].name) == word
        assert set(await engine.adapters()) == {ref.name for ref in vllm_bench.adapters.values()}

    vllm_bench.run(work)
