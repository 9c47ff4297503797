"""`appliance demo`: the main job on the sample knowledge base, through the functions behind the commands."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.adapters.gates import Promotion, promote
from appliance.adapters.registry import AdapterVersion
from appliance.datasets.registry import DatasetInfo, Datasets
from appliance.engines.base import Message
from appliance.evaluation.runs import MEASURED, evaluate, finished_run
from appliance.service import Service
from appliance.settings import GateConfig
from appliance.training.tuning import tune
from appliance.types import Answer, Request
from appliance.workspace import Workspace
from finetune.config_file import load_settings
from finetune.types import Pair

SAMPLE = Path(__file__).parent / "sample"
DOMAINS = ("medical", "legal", "finance")
TUNED = ("medical", "legal")
QUESTIONS_A_DOMAIN = 6
ANSWER_TOKENS = 40
# The gate's share of the time stays small: short answers, and two questions asked one at a time.
GATE = GateConfig(questions=QUESTIONS_A_DOMAIN, latency_questions=2, max_tokens=24)
Say = Callable[[str], None]
Progress = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of the demo, what was expected, and what came back."""

    question: str
    expected: str
    answer: Answer


def open_workspace(folder: Path) -> Workspace:
    """The demo's workspace, created the first time."""
    return Workspace(folder.resolve()) if (folder / "appliance.toml").is_file() else Workspace.create(folder)


def pull_models(service: Service, progress: Progress) -> None:
    """`appliance model pull`"""
    config = service.workspace.config
    for reference in (config.models.embedding, *(engine.base for engine in config.engines.values() if engine.has_base)):
        service.models.pull(service.workspace.model(reference), progress)


def ingest(service: Service, progress: Progress) -> dict[str, Any]:
    """`appliance ingest SAMPLE/DOMAIN/documents --domain DOMAIN --prune`, for each domain."""
    return {
        domain: service.knowledge.ingest([SAMPLE / domain / "documents"], domain=domain, prune=True, progress=progress).to_json()
        for domain in DOMAINS
    }


def register(service: Service) -> dict[str, DatasetInfo]:
    """`appliance dataset add SAMPLE/DOMAIN/qa.jsonl --name DOMAIN-qa --domain DOMAIN`, for each domain."""
    datasets = Datasets(service.workspace)
    return {domain: datasets.add(SAMPLE / domain / "qa.jsonl", name=f"{domain}-qa", domain=domain).info for domain in DOMAINS}


async def train(
    service: Service, infos: dict[str, DatasetInfo], progress: Progress, show: Callable[[Promotion], None]
) -> dict[str, AdapterVersion]:
    """`appliance tune --domain DOMAIN --dataset DOMAIN-qa --config SAMPLE/tune.toml --promote`, with a short gate.

    Only where no live adapter was trained on this data and base. `show` gets what the gate made of each new version.
    """
    trained = {}
    settings = load_settings(SAMPLE / "tune.toml")
    for domain in TUNED:
        _, engine = service.workspace.config.engine_of(domain)
        base_hash = service.models.model_hash(service.workspace.model(engine.base))
        live = service.registry.live(domain)
        if live is None or (live.dataset_version, live.base_hash) != (infos[domain].version, base_hash):

            def report(event: dict[str, Any], domain: str = domain) -> None:
                progress(f"training {domain}", event["step"], event["steps"], loss=event.get("loss"))

            live, _ = tune(service, domain, infos[domain].name, settings, report)
            show(await promote(service, live.name, settings=GATE, progress=progress))
        trained[domain] = live
    return trained


async def measure(service: Service, infos: dict[str, DatasetInfo], progress: Progress) -> dict[str, dict[str, Any]]:
    """`appliance eval run --dataset DOMAIN-qa --limit N`, where no finished run measured this very state."""
    results = {}
    for domain, info in infos.items():
        options: dict[str, Any] = {"split": "test", "limit": QUESTIONS_A_DOMAIN, "max_tokens": ANSWER_TOKENS}
        known = finished_run(service, info, MEASURED, **options)
        results[domain] = known or await evaluate(service, info, MEASURED, **options, progress=progress)
    return results


async def ask(service: Service, infos: dict[str, DatasetInfo], show: Callable[[Asked], None]) -> list[Asked]:
    """`appliance ask QUESTION --domain DOMAIN`, for questions of every kind."""
    datasets = Datasets(service.workspace)
    _approve_one(service)
    asked = []
    for domain in DOMAINS:
        for pair in _mixture(datasets.pairs(infos[domain])):
            request = Request(
                question=pair.question,
                history=tuple(Message(role=turn.role, content=turn.content) for turn in pair.history),
                domain=domain,
            )
            answer = await service.answering.ask(request)
            asked.append(Asked(pair.question, pair.answer if pair.answerable else "(the documents do not say)", answer))
            show(asked[-1])
    return asked


def _approve_one(service: Service) -> None:
    """`appliance verified add`: one expert-approved answer, so that this arm is seen too."""
    pair = _approved(Datasets(service.workspace).pairs(Datasets(service.workspace).get("medical-qa")))
    if not any(known.question == pair.question for known in service.verified.all("medical")):
        service.verified.add("medical", pair.question, pair.answer, pair.doc_ids, "demo expert", support=0.3)


def _approved(pairs: Sequence[Pair]) -> Pair:
    return next(pair for pair in pairs if pair.split == "train" and pair.answerable and pair.lang == "en" and not pair.history)


def _mixture(pairs: Sequence[Pair]) -> list[Pair]:
    """One test question of each kind: English, Chinese, a follow-up, one without an answer; and the approved one in medicine."""
    test = [pair for pair in pairs if pair.split == "test"]
    kinds: list[Callable[[Pair], bool]] = [
        lambda pair: pair.answerable and pair.lang == "en" and not pair.history,
        lambda pair: pair.answerable and pair.lang == "zh" and not pair.history,
        lambda pair: pair.answerable and bool(pair.history),
        lambda pair: not pair.answerable,
    ]
    chosen = [next(pair for pair in test if fits(pair)) for fits in kinds]
    return [_approved(pairs), *chosen] if pairs[0].domain == "medical" else chosen


@dataclass(slots=True)
class Stopwatch:
    """Says what begins and how long it took."""

    say: Say
    begun: float = 0.0
    what: str = ""

    def start(self, what: str) -> None:
        self.stop()
        self.say(f"\n== {what}")
        self.what, self.begun = what, time.monotonic()

    def stop(self) -> None:
        if self.what:
            self.say(f"   {time.monotonic() - self.begun:.1f} s")
        self.what = ""
