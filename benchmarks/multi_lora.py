"""What many adapters on one engine cost: tokens a second with 1 to 8 of them in use, on vLLM and on the engine of the appliance itself.

    python benchmarks/multi_lora.py [--quick] [--engines vllm,local] --json benchmarks/results/multi_lora.json

The same prompts, 8 at a time, are answered by the base model (for vLLM also by a server without LoRA), then by 1, 2, 4 and 8 adapters,
each equally often or, skewed, the k-th 1/k as often as the first (Zipf). The adapters have rank 16 on every linear layer; their weights are
so small that all of them answer with the words of the base, so that what is measured differs in nothing but the adapters. All cases of a
round are measured one after the other; a ratio is the median over the rounds. A case's first round is not counted.
With --engines, FILE keeps what it has of the engines that are not measured.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import harness

from appliance.cli.main import prepare_libraries
from appliance.engines.base import AdapterRef, Engine, Message, Sampling
from appliance.engines.local import LocalEngine
from appliance.engines.team import stay_awake
from appliance.engines.vllm import words_of
from appliance.engines.vllm_server import Launch, VllmServer
from appliance.engines.vllm_started import StartedVllm, context_window, key_of, launch
from appliance.models.store import ModelStore
from appliance.settings import DEFAULT_CHAT, EngineConfig
from appliance.workspace import Workspace

RANK, CONCURRENT = 16, 8
BARE = "base, a server without LoRA"
# Seconds for a server to answer.
START_SECONDS = 600.0
TOPICS = ("photosynthesis", "the moon", "bread", "a violin", "glaciers", "the printing press", "honey bees", "a suspension bridge")


@dataclass(frozen=True, slots=True)
class Case:
    """Requests of one kind: with how many adapters, and how often each is used."""

    name: str
    adapters: int
    skewed: bool = False

    def order(self, names: Sequence[str], requests: int, turn: int = 0) -> list[str | None]:
        """The adapter of each request in a round, the same in each run."""
        if self.adapters == 0:
            return [None] * requests
        used = names[: self.adapters]
        if not self.skewed:
            return [used[number % len(used)] for number in range(requests)]
        weights = [1 / place for place in range(1, len(used) + 1)]
        return list(random.Random(turn).choices(used, weights, k=requests))


def make_adapters(base: Path, folder: Path, count: int) -> list[AdapterRef]:
    """LoRA adapters of rank `RANK` on every linear layer of `base`, all of them next to nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = []
    for number in range(count):
        torch.manual_seed(number)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 1e-7)
        model.save_pretrained(folder / f"bench@{number:08d}")
        made.append(AdapterRef(f"bench@{number:08d}", folder / f"bench@{number:08d}"))
    return made


async def measure(engine: Engine, order: Sequence[str | None], tokens: int, what: str) -> dict[str, float]:
    """Ask `CONCURRENT` requests at a time: tokens a second over all, and the median ms to a first token.

    No two measurements (`what`) ask the same, or they would find each other's prompts in a cache.
    """
    left = list(enumerate(order))[::-1]
    first: list[float] = []
    produced = 0

    async def stream() -> None:
        nonlocal produced
        while left:
            number, adapter = left.pop()
            asked, begun = time.perf_counter(), False
            messages = [Message(role="user", content=f"{what}, {number}: write a long essay about {TOPICS[number % len(TOPICS)]}.")]
            async for delta in engine.chat(messages, adapter, Sampling(max_tokens=tokens)):
                if not begun:
                    first.append((time.perf_counter() - asked) * 1000)
                    begun = True
                produced += delta.usage.completion_tokens if delta.usage is not None else 0

    began = time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(CONCURRENT)))
    seconds = time.perf_counter() - began
    return {"tokens": produced, "tokens_a_s": produced / seconds, "first_token_ms": statistics.median(first)}


async def rounds(runs: Sequence[tuple[Case, Engine]], adapters: Sequence[AdapterRef], size: Sizes) -> dict[str, list[dict[str, float]]]:
    """Every case in each round, one after the other, forwards and backwards in turn."""
    names = [ref.name for ref in adapters]
    for case, engine in runs:
        for ref in adapters[: case.adapters]:
            await engine.load(ref)
        await measure(engine, case.order(names, CONCURRENT), 4, f"Warm-up of {case.name}")
    found: dict[str, list[dict[str, float]]] = {case.name: [] for case, _ in runs}
    for turn in range(size.rounds):
        for case, engine in runs if turn % 2 == 0 else reversed(runs):
            found[case.name].append(
                await measure(engine, case.order(names, size.requests, turn), size.tokens, f"Round {turn} of {case.name}")
            )
            print(f"{case.name}: {found[case.name][-1]['tokens_a_s']:.1f} tokens a second", file=sys.stderr, flush=True)
    return found


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is asked: rounds, requests a case in each, tokens a request."""

    rounds: int
    requests: int
    tokens: int


def without_lora(given: Launch) -> Launch:
    """The same server, unable to load adapters."""
    command = list(given.command)
    at = command.index("--enable-lora")
    # --enable-lora and its three limits.
    del command[at : at + 7]
    return replace(
        given, command=tuple(command), environment={**given.environment, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0"}, settings="bare"
    )


@asynccontextmanager
async def vllm(workspace: Workspace, models: ModelStore, bare: bool) -> AsyncIterator[Engine]:
    settings: EngineConfig = workspace.config.engines["default"]
    given = launch(workspace, models, "default", settings)
    server = VllmServer("default", lambda: without_lora(given) if bare else given, workspace.db)
    reference = workspace.model(settings.base)
    window = context_window(models.path(reference), settings)
    words = partial(words_of, models.path(reference), settings.template(workspace.root))
    engine = StartedVllm("default", server, key_of(workspace, "default"), ["en"], models.model_hash(reference), window, words, 1.5)
    try:
        await engine.start(START_SECONDS)
        state = await engine.health()
        if not state.ok:
            raise RuntimeError(f"{state.detail}; its log is {given.log}")
        yield engine
    finally:
        await engine.close()


async def on_vllm(
    models: ModelStore, adapters: Sequence[AdapterRef], cases: Sequence[Case], size: Sizes, folder: Path
) -> list[dict[str, Any]]:
    Workspace.create(folder / "workspace").close()
    flags = {"engines.default.kind": "vllm", "engines.default.max_loras": str(len(adapters)), "engines.default.kv_cache_gib": "1"}
    with Workspace(folder / "workspace", flags) as workspace:
        async with vllm(workspace, models, bare=True) as engine:
            without = await rounds([(Case(BARE, 0), engine)], [], size)
        async with vllm(workspace, models, bare=False) as engine:
            found = await rounds([(case, engine) for case in cases], adapters, size)
    return rows("vllm", {**without, **found})


async def on_local(models: ModelStore, adapters: Sequence[AdapterRef], cases: Sequence[Case], size: Sizes) -> list[dict[str, Any]]:
    def engine(merge: bool) -> LocalEngine:
        path, model_hash = models.path(DEFAULT_CHAT), models.model_hash(DEFAULT_CHAT)
        return LocalEngine("default", path, model_hash, ["en"], max_batch=CONCURRENT, merge=merge)

    plain, alone = engine(False), engine(True)
    found = await rounds([*((case, plain) for case in cases), (Case("1 adapter, merged", 1), alone)], adapters, size)
    await plain.close()
    await alone.close()
    return rows("local", found)


def rows(engine: str, found: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    """One row a case; `over_1` is the median over the rounds of its rate over that of one adapter, where both were measured together."""
    one = found["1 adapter"]
    made = []
    for name, values in found.items():
        rates = [value["tokens_a_s"] for value in values]
        ratios = [value["tokens_a_s"] / reference["tokens_a_s"] for value, reference in zip(values, one, strict=True)]
        made.append(
            {
                "engine": engine,
                "case": name,
                "tokens_a_s": round(statistics.median(rates), 2),
                "lowest": round(min(rates), 2),
                "highest": round(max(rates), 2),
                "first_token_ms": round(statistics.median(value["first_token_ms"] for value in values), 1),
                "over_1": round(statistics.median(ratios), 4) if name != BARE else None,
            }
        )
    return made


def kept(file: Path | None, settings: dict[str, Any], measured: str) -> list[dict[str, Any]]:
    """The rows that an earlier run with the same settings left in `file` of engines that were not measured now."""
    if file is None or not file.is_file():
        return []
    found = json.loads(file.read_text("utf-8"))
    return [row for row in found["rows"] if found["settings"] == settings and row["engine"] not in measured.split(",")]


def main() -> None:
    parser = harness.options(__doc__ or "")
    parser.add_argument("--engines", default="vllm,local", help="of vllm and local (default: both)")
    options = parser.parse_args()
    # As `serve` does, and before anything imports torch.
    prepare_libraries()
    stay_awake()
    size = Sizes(2, 8, 24) if options.quick else Sizes(3, 16, 24)
    skewed = (8,) if options.quick else (2, 4, 8)
    cases = [Case("base", 0), *(Case("1 adapter" if n == 1 else f"{n} adapters", n) for n in (1, 2, 4, 8))]
    cases += [Case(f"{n} adapters, skewed", n, True) for n in skewed]
    models = ModelStore.default()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="multi-lora-") as name:
        adapters = make_adapters(models.path(DEFAULT_CHAT), Path(name), 8)
        if "vllm" in options.engines:
            found += asyncio.run(on_vllm(models, adapters, cases, size, Path(name)))
        if "local" in options.engines:
            found += asyncio.run(on_local(models, adapters, cases, size))
    settings = {
        "quick": options.quick,
        "model": DEFAULT_CHAT,
        "rank": RANK,
        "concurrent": CONCURRENT,
        "rounds": size.rounds,
        "requests": size.requests,
        "tokens": size.tokens,
    }
    found += kept(options.json, settings, options.engines)
    harness.print_table("tokens a second, 8 requests at a time", found)
    ratio = {row["engine"]: row["over_1"] for row in found if row["case"] == "8 adapters"}
    names = {"vllm": "lora8_over_lora1", "local": "lora8_over_lora1.local"}
    claims = [harness.at_least(names[engine], value, 0.95, "ratio") for engine, value in ratio.items()]
    harness.finish(options.json, settings, found, claims)


if __name__ == "__main__":
    main()
