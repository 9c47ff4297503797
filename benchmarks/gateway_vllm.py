"""vLLM asked directly and through the gateway in front of it: the same prompts in turns (see gateway_overhead.py)."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from multi_lora import START_SECONDS

from appliance import prompts
from appliance.engines.vllm_server import VllmServer
from appliance.engines.vllm_started import key_of, launch
from appliance.models.store import ModelStore
from appliance.workspace import Workspace

STREAMS, TOKENS = 8, 32
FLAGS = {"engines.default.kind": "vllm", "engines.default.kv_cache_gib": "1"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One answer: milliseconds to its first token and to its end, and what it says."""

    first: float
    total: float
    text: str


@contextmanager
def server(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """Address and key of the workspace's vLLM; a gateway of the same workspace finds and uses it too."""
    settings = workspace.config.engines["default"]
    with closing(VllmServer("default", lambda: launch(workspace, ModelStore.default(), "default", settings), workspace.db)) as started:
        until = time.monotonic() + START_SECONDS
        while started.running is None:
            if time.monotonic() > until:
                raise RuntimeError(f"vLLM did not start: {started.detail}")
            time.sleep(0.2)
        yield started.running.url, key_of(workspace, "default")


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Asked:
    started, first, text = time.perf_counter(), None, ""
    async with client.stream("POST", "chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if (
                line.startswith("data: {")
                and (choices := json.loads(line[6:])["choices"])
                and (piece := choices[0]["delta"].get("content"))
            ):
                first, text = first or time.perf_counter(), text + piece
    if first is None:
        raise RuntimeError("an answer without a token")
    return Asked((first - started) * 1000, (time.perf_counter() - started) * 1000, text)


async def compare(
    direct: tuple[str, str], through: tuple[str, str], domain: str, questions: Sequence[str], turns: int
) -> list[dict[str, Any]]:
    """Both ways (an address ending in ``/v1`` and a key) in turns, `STREAMS` at once; a row each. Raises RuntimeError where one way's
    answers are not the other's: then they were not asked the same."""
    found: dict[str, list[Asked]] = {"vllm": [], "vllm through the gateway": []}
    common = {"max_tokens": TOKENS, "temperature": 0, "stream": True}

    async def round_of(name: str, number: int) -> list[Asked]:
        asked = [f"{questions[stream % len(questions)]} Case {number * STREAMS + stream}." for stream in range(STREAMS)]
        bodies = [
            {"model": "base", "messages": prompts.direct(domain, "en", question), **common}
            if name == "vllm"
            else {"model": f"{domain}/base", "messages": [{"role": "user", "content": question}], **common}
            for question in asked
        ]
        return await asyncio.gather(*(ask(clients[name], body) for body in bodies))

    def client(way: tuple[str, str]) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=way[0], headers={"Authorization": f"Bearer {way[1]}"}, timeout=300)

    async with client(direct) as one, client(through) as other:
        clients = dict(zip(found, (one, other), strict=True))
        for name in found:
            await round_of(name, 0)
        for turn in range(1, turns + 1):
            made = {name: await round_of(name, turn) for name in (found if turn % 2 else reversed(found))}
            if (said := [[answer.text for answer in answers] for answers in made.values()]) and said[0] != said[1]:
                raise RuntimeError(f"the two ways were answered differently: {said}")
            for name, answers in made.items():
                found[name] += answers
    return [
        {
            "way": name,
            "answers": len(answers),
            "first_p50_ms": round(statistics.median(answer.first for answer in answers), 1),
            "total_p50_ms": round(statistics.median(answer.total for answer in answers), 1),
            "tokens": TOKENS,
        }
        for name, answers in found.items()
    ]
