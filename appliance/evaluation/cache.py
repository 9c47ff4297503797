"""Which outcomes of earlier runs still stand: those for which everything that decided them is the same.

The runs are the cache: nothing is stored twice, and what a deletion takes out of a run is not found again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import retrieval
import router
from appliance.engines.base import Sampling
from appliance.errors import ApplianceError
from appliance.knowledge.forgetting import forget
from appliance.routing.routers import Routers
from appliance.service import Service
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.workspace import Workspace
from eval import grounded, numeric
from eval.run import kept
from eval.types import EvalError, Item, Outcome
from finetune import chat_templates
from router.features import VERSION as FEATURE_VERSION
from router.types import TUNED

# The code that makes an answer out of a question, beside the settings: whole packages, and modules of others and of this one.
_PACKAGES = (retrieval, router)
_OTHERS = (chat_templates,)
_MODULES = (
    "prompts",
    "engines/chat_format",
    "answers/rewrite",
    "answers/citations",
    "answers/refusals",
    "answers/availability",
    "answers/situation",
    "answers/verified",
    "answers/same_question",
    "answers/answering",
    "routing/routers",
    "evaluation/runs",
)
# What is measured of an answer when it is given, and kept with it.
_MEASURING = (grounded, numeric)
# What does not change an engine's answers: limits, waiting times, and where it runs.
_ENGINE_LIMITS = frozenset(
    {"max_batch", "max_queue", "threads", "api_key_env", "prompt_cache_mb", "kv_cache_gib", "python", "max_loras", "start_seconds"}
    | {"connect_seconds", "first_token_seconds", "between_tokens_seconds", "total_seconds", "breaker_failures", "breaker_seconds"}
)
_RUNS = 50


def state_of_arm(service: Service, arm: str, domains: list[str]) -> dict[str, Any]:
    """What decides the answers of `arm` in `domains`, beside the question: only that, so that documents may change without asking the
    plain model again.
    """
    config = service.workspace.config
    engines = {name: config.engine_of(name) for name in domains}
    state: dict[str, Any] = {
        "engines": {name: _engine(service, engine.model_dump(mode="json")) for name, engine in engines.values()},
        "answering": config.answering.model_dump(mode="json", exclude={"cache_mb"}),
        "labels": sorted(service.knowledge.documents.labels() | service.registry.labels()),
    }
    if arm != "base":
        state |= {"generation": service.knowledge.store.live_generation(), "retrieval": config.retrieval.model_dump(mode="json")}
        state |= {"fusion": service.knowledge.rankings.tuned(), "words": _words(service.workspace, domains)}
    if arm in (*TUNED, "auto"):
        live = {name: service.registry.live(name) for name in domains}
        state["adapters"] = {name: (version.name, version.sha256) for name, version in live.items() if version is not None}
    if arm in ("verified", "auto"):
        state |= {"router": service.answering.router.version, "features": FEATURE_VERSION, "verified": _verified(service.workspace)}
        state |= {"routing": config.router.model_dump(mode="json"), "scenarios": {name: config.domain(name).scenario for name in domains}}
    if arm == "auto" and any(Routers(service.workspace.db).live(name) is not None for name in domains):
        # A learned router looks at how old the documents are, and at what the arms cost.
        state["day"] = utcnow().date().isoformat()
        state["costs"] = {name: {arm: asdict(cost) for arm, cost in service.answering.costs.start(name).items()} for name in domains}
    return state


def keys(service: Service, domain: str | None, sampling: Sampling) -> Callable[[Item, str], str | None]:
    """The key of an item and an arm: equal keys, equal answers. None for what is drawn by chance without a seed, and so never reused."""
    every = service.workspace.domains()
    code = _code()
    states: dict[tuple[str, str | None], str] = {}

    def key(item: Item, arm: str) -> str | None:
        if sampling.temperature > 0 and sampling.seed is None:
            return None
        asked = item.domain or domain
        if (arm, asked) not in states:
            states[arm, asked] = _hash(state_of_arm(service, arm, every if asked is None else [asked]))
        question = (item.question, item.history, item.system, item.task, item.doc_ids, asked)
        return _hash([code, states[arm, asked], arm, question, asdict(sampling)])

    return key


def known(service: Service, dataset: str) -> dict[str, Outcome]:
    """The outcomes of the newest runs over the states of a data set, by key; the newest of each."""
    # What was deleted must be gone from the runs before they are read.
    forget(service.workspace.db, service.workspace.root)
    table = schema.run
    with service.workspace.db.read() as connection:
        rows = connection.execute(
            sa.select(table.c.path).where(table.c.dataset == dataset).order_by(table.c.created_at.desc(), table.c.id.desc()).limit(_RUNS)
        ).all()
    found: dict[str, Outcome] = {}
    for row in rows:
        try:
            for key, outcome in dict(kept(service.workspace.root / row.path)).items():
                found.setdefault(key, outcome)
        except EvalError:
            # A damaged run is repaired or deleted by whoever looks at it; here it only has nothing to give.
            continue
    return found


def _engine(service: Service, settings: dict[str, Any]) -> dict[str, Any]:
    """What makes an engine's answers."""
    found = {name: value for name, value in settings.items() if name not in _ENGINE_LIMITS}
    if settings["kind"] != "openai":
        try:
            found["hash"] = service.models.model_hash(service.workspace.model(settings["base"]))
        except ApplianceError:
            found["hash"] = "not there yet"
    return found


def _words(workspace: Workspace, domains: list[str]) -> dict[str, str]:
    """The team's own words and synonyms, by file."""
    files = [workspace.root / folder / f"{name}.txt" for folder in ("dictionaries", "synonyms") for name in domains]
    return {f"{file.parent.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}


def _verified(workspace: Workspace) -> list[str]:
    with workspace.db.read() as connection:
        return sorted(connection.execute(sa.select(schema.verified.c.id)).scalars())


def _code() -> str:
    files = [Path(__file__).parent.parent / f"{name}.py" for name in _MODULES]
    files += [Path(module.__file__ or "") for module in (*_OTHERS, *_MEASURING)]
    files += [file for package in _PACKAGES for folder in package.__path__ for file in sorted(Path(folder).rglob("*.py"))]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True, default=str).encode()).hexdigest()[:32]
