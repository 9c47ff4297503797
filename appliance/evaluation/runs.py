"""`appliance eval`: every arm over a question set, through the same function that answers users."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import sqlalchemy as sa

from appliance.answers.availability import ArmUnavailable
from appliance.answers.refusals import declines
from appliance.config import Config
from appliance.datasets.registry import DatasetInfo, Datasets
from appliance.engines.base import EngineError, Message, Sampling
from appliance.errors import UsageError
from appliance.evaluation.cache import keys, known
from appliance.evaluation.patience import while_busy
from appliance.evaluation.timing import Timing
from appliance.experts.tasks import expert_utilities
from appliance.knowledge.forgetting import forget
from appliance.service import Service
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.types import Caller, Decided, Finished, Request
from appliance.workspace import Workspace
from eval.cost import Price
from eval.grounded import grounded
from eval.run import Ask, Key, RunResult, load, run, stands
from eval.tasks import MEASURES
from eval.types import AUTO, UNAVAILABLE, EvalError, Item, Metric, Outcome
from eval.utility import Scoring, UtilitySettings
from finetune.types import Pair
from retrieval.types import Passage, Scope
from router.features import VERSION as FEATURE_VERSION
from router.types import ARMS, Prediction

# Proofs compare ways to answer; `verified` only repeats an expert and `refuse` only declines.
MEASURED = ("base", "quote", "rag", "finetuned", "hybrid")


def items(pairs: Sequence[Pair], split: str | None, limit: int | None, metric: Metric | None = None) -> list[Item]:
    """The questions of `split` (every question if the set has none of it), at most `limit`, in the file's order.

    A row may declare its own metric and its choices, in columns `metric` and `options` (letters and texts, or a list of labels); `metric`
    is that of the others. Raises EvalError naming the row.
    """
    # A question whose passage was withheld for training has its answer in the knowledge base all the same.
    pairs = [pair for pair in pairs if pair.answerable or not pair.passages]
    chosen = [pair for pair in pairs if split is None or pair.split == split]
    if not chosen and not any(pair.split for pair in pairs):
        chosen = list(pairs)
    return [
        Item(
            id=pair.id,
            question=pair.question,
            answer=pair.answer,
            doc_ids=pair.doc_ids,
            lang=pair.lang,
            domain=pair.domain,
            answerable=pair.answerable,
            history=tuple((turn.role, turn.content) for turn in pair.history),
            system=pair.system,
            task=pair.task,
            metric=_declared(pair) or metric,
            choices=_choices(pair),
        )
        for pair in chosen[:limit]
    ]


def _declared(pair: Pair) -> Metric | None:
    said = pair.meta.get("metric")
    if said is not None and said not in get_args(Metric):
        raise EvalError(f"{pair.file} row {pair.row}, metric: {said!r}; expected one of {', '.join(get_args(Metric))}, or no such column")
    return cast("Metric | None", said)


def _choices(pair: Pair) -> tuple[tuple[str, str], ...]:
    said = pair.meta.get("options", ())
    if isinstance(said, Mapping):
        return tuple((str(letter), str(text)) for letter, text in said.items())
    if isinstance(said, str):
        said = [part.strip() for part in said.split("|")]
    if not isinstance(said, Sequence):
        raise EvalError(f"{pair.file} row {pair.row}, options: {said!r}; expected letters with their texts, or a list of labels")
    return tuple(("", str(text)) for text in said)


def scoring_of(config: Config, experts: Mapping[tuple[str, str], float] | None = None) -> Scoring:
    """What the team says answers are worth and cost ([eval]); `experts` are scores in [-1, 1] by (question id, answer)."""
    prices = {name: Price(**price.model_dump()) for name, price in config.eval.prices.items()}
    return Scoring(UtilitySettings(**config.eval.utility.model_dump()), experts or {}, prices)


async def evaluate(
    service: Service,
    info: DatasetInfo,
    arms: Sequence[str],
    *,
    split: str | None = "test",
    limit: int | None = None,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    concurrency: int = 8,
    progress: Callable[..., None] | None = None,
    run_id: str | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Run `arms` and the router over the set; returns the JSON of `eval run --json`. A run id given again is resumed.

    What an earlier run over the set has asked in the same state is not asked again, unless `fresh`. `seed` is for what is drawn with a
    `temperature` above 0.
    """
    chosen = _questions(service, info, split, limit)
    if not chosen:
        raise UsageError(f"data set {info.name} has no questions in split {split!r}; name another with --split")
    settings = state_of(service, arms, split, limit, max_tokens)
    sampling = Sampling(max_tokens=max_tokens)
    if temperature > 0:
        settings |= {"temperature": temperature, "seed": seed}
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)

    timing = Timing(service)

    async def ask(item: Item, arm: str) -> Outcome:
        await timing.begin(arm)
        return await answered(service, item, arm, item.domain or info.domain, sampling)

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(f"evaluating {info.name}", done, total)

    _, summary = await kept_run(
        service,
        info,
        chosen,
        [*arms, AUTO],
        ask,
        settings,
        concurrency=concurrency,
        progress=report,
        run_id=run_id,
        key=keys(service, info.domain, sampling),
        known={} if fresh else known(service, info.name),
    )
    return summary


async def kept_run(
    service: Service,
    info: DatasetInfo,
    chosen: Sequence[Item],
    arms: Sequence[str],
    ask: Ask,
    settings: dict[str, Any],
    *,
    concurrency: int,
    progress: Callable[[int, int], None] | None = None,
    run_id: str | None = None,
    key: Key | None = None,
    known: Mapping[str, Outcome] | None = None,
) -> tuple[RunResult, dict[str, Any]]:
    """Ask `arms` the questions in a registered run, whose answers are kept and forgotten with the documents they rest on.

    Raises Locked while somebody else goes on with the same run.
    """
    identity, folder = _open_run(service, info, settings, run_id)
    # A deletion leaves a run alone while it is held, and looks through one that was broken off.
    with service.workspace.db.lock(f"run:{identity}") as lock:

        def beat(done: int, total: int) -> None:
            lock.beat()
            if progress is not None:
                progress(done, total)

        scoring = scoring_of(service.workspace.config)
        result = await run(chosen, arms, ask, folder, concurrency=concurrency, progress=beat, scoring=scoring, key=key, known=known)
    assert result.summary is not None  # a run that came back is complete
    summary = {"run_id": identity, "dataset": info.name, "task": info.task, "measures": list(MEASURES[info.task]), **result.summary}
    table = schema.run
    with service.workspace.db.write() as connection:
        before = connection.execute(sa.select(table.c.summary).where(table.c.id == identity)).scalar_one()
        # What a gate said of the run holds until it says something else.
        kept = {"gates": before["gates"]} if before and "gates" in before else {}
        connection.execute(table.update().where(table.c.id == identity).values(summary=summary | kept, finished_at=utcnow()))
    # What was deleted while it ran.
    forget(service.workspace.db, service.workspace.root)
    return result, summary


def finished_run(
    service: Service, info: DatasetInfo, arms: Sequence[str], *, split: str | None, limit: int | None, max_tokens: int
) -> dict[str, Any] | None:
    """The summary of a finished run, without failures, in which everything that decides an answer was as it is now."""
    settings = state_of(service, arms, split, limit, max_tokens)
    chosen = _questions(service, info, split, limit)
    key = keys(service, info.domain, Sampling(max_tokens=max_tokens))
    for row in runs(service):
        same = row.finished_at is not None and (row.dataset, row.dataset_version, row.settings) == (info.name, info.version, settings)
        if same and stands(service.workspace.root / row.path, chosen, [*arms, AUTO], key):
            summary: dict[str, Any] = row.summary
            return summary
    return None


def _questions(service: Service, info: DatasetInfo, split: str | None, limit: int | None) -> list[Item]:
    declared = service.workspace.config.eval.metrics.get(info.name)
    return items(Datasets(service.workspace).pairs(info), split, limit, declared)


def state_of(service: Service, arms: Sequence[str], split: str | None, limit: int | None, max_tokens: int) -> dict[str, Any]:
    """What decides a run's answers: what was asked for, and the state it was asked of."""
    live = {name: service.registry.live(name) for name in service.workspace.domains()}
    return {
        "arms": list(arms),
        "split": split,
        "limit": limit,
        "max_tokens": max_tokens,
        "generation": service.knowledge.store.live_generation(),
        "adapters": {name: version.name for name, version in live.items() if version is not None},
        "router": service.answering.router.version,
        # A router can learn from what the same features were found for.
        "feature_version": FEATURE_VERSION,
        # What the answers in the run's folder may rest on.
        "labels": sorted(service.knowledge.documents.labels()),
    }


def check_finished(run: sa.Row[Any]) -> None:
    """Raises UsageError if the run is not finished."""
    if run.summary is None:
        raise UsageError(f"run {run.id} is not finished; go on with: appliance eval run --resume {run.id}")


def finished(workspace: Workspace, run: sa.Row[Any]) -> RunResult:
    """A finished run as stored. Raises UsageError if it is not finished, EvalError on damaged files."""
    check_finished(run)
    return load(workspace.root / run.path)


def scoring_of_run(workspace: Workspace, run: sa.Row[Any], items: Iterable[Item]) -> Scoring:
    """How the answers of a run to `items` are scored: as configured, with the experts' scores where there are any."""
    return scoring_of(workspace.config, expert_utilities(workspace.db, run.id, items))


def begun_with(run: sa.Row[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What `evaluate` was asked for when a run was begun, as its keywords; `given` is what is asked for now, with `dataset`.

    Raises UsageError where `given` differs, and for a run that `evaluate` did not begin.
    """
    if "gate" in run.settings:
        raise UsageError(f"run {run.id} is part of an adapter's gate; measure again with: appliance adapter promote")
    how = {name: run.settings[name] for name in ("arms", "split", "limit", "max_tokens")}
    how |= {"temperature": run.settings.get("temperature", 0.0), "seed": run.settings.get("seed", 0)}
    for name, value in given.items():
        if (begun := (how | {"dataset": run.dataset})[name]) != value:
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: run {run.id} was begun with {begun}, not {value}; leave the option out, or start a new run")
    return how


def request_of(item: Item, arm: str, domain: str | None, sampling: Sampling, adapter: str | None = None) -> Request:
    """`item` as a user would ask it; `adapter` names a version in place of the live one, '' for none."""
    return Request(
        question=item.question,
        history=tuple(Message(role=role, content=content) for role, content in item.history),  # type: ignore[typeddict-item]
        domain=domain,
        arm=arm,  # type: ignore[arg-type]
        sampling=sampling,
        system=item.system,
        task=item.task,
        adapter=adapter,
        measured=True,
    )


async def answered(service: Service, item: Item, arm: str, domain: str | None, sampling: Sampling, adapter: str | None = None) -> Outcome:
    """What `arm` makes of `item`; see `request_of`. What one question cannot be answered for is the error of its outcome: a failing engine,
    one that stays busy, a question that is too long. Raises ApplianceError for what concerns every question.
    """
    request = request_of(item, arm, domain, sampling, adapter)
    try:
        return await while_busy(lambda: _answered(service, item, request))
    except ArmUnavailable as error:
        return Outcome(arm, error=f"{UNAVAILABLE}{error}")
    except (EngineError, UsageError) as error:
        return Outcome(arm, error=str(error))


async def _answered(service: Service, item: Item, request: Request) -> Outcome:
    retrieved: tuple[str, ...] | None = None
    passages: Sequence[Passage] = ()
    async for event in service.answering.stream(request, evaluator(service)):
        if isinstance(event, Decided) and event.evidence.generation is not None:
            found = [[info.id for info in passage.sources or (passage.document,)] for passage in event.evidence.passages]
            retrieved = tuple(dict.fromkeys(_known_as(names, item) for names in found))
            passages = event.evidence.passages
        if isinstance(event, Finished):
            answer = event.answer
    refused = answer.arm == "refuse" or declines(answer.text)
    texts = [f"{' > '.join(passage.chunk.heading)}\n{passage.chunk.text}" for passage in passages]
    return Outcome(
        arm=answer.arm,
        answer=answer.text,
        refused=refused,
        citations=tuple(_known_as([citation.doc_id, *citation.also], item) for citation in answer.citations),
        retrieved=retrieved,
        latency_ms=answer.timings["total"],
        first_token_ms=answer.timings.get("first_token", answer.timings["total"]),
        tokens=answer.usage.prompt_tokens + answer.usage.completion_tokens,
        generated=answer.usage.completion_tokens,
        engine=answer.engine,
        grounded=None if refused or not texts else await asyncio.to_thread(grounded, answer.text, texts),
        predicted=_expected(answer.decision.predicted.get(answer.arm)),
        features=dict(answer.decision.features),
        adapter=answer.adapter,
    )


def _expected(of: Prediction | None) -> float | None:
    """What the router expected an answer to be worth; the rules know a quality in its place, and nothing worse than 0."""
    return None if of is None else of.quality if of.utility is None else of.utility


def _known_as(names: Sequence[str], item: Item) -> str:
    """Of the documents with one text, the one the question names, else the first."""
    return next((name for name in names if name in item.doc_ids), names[0])


def evaluator(service: Service) -> Caller:
    """Evaluation is the team's own: it sees every label, also those that only an adapter still has."""
    return Caller(Scope(None, service.knowledge.documents.labels() | service.registry.labels()))


def _open_run(service: Service, info: DatasetInfo, settings: dict[str, Any], run_id: str | None) -> tuple[str, Path]:
    table = schema.run
    with service.workspace.db.write() as connection:
        if run_id is not None:
            row = connection.execute(sa.select(table).where(table.c.id == run_id)).one_or_none()
            if row is None:
                raise UsageError(f"no run {run_id!r}; see: appliance eval show")
            if (row.dataset, row.dataset_version, row.settings) != (info.name, info.version, settings):
                raise UsageError(
                    f"run {run_id} was started on {row.dataset}@{row.dataset_version} with {json.dumps(row.settings)}; start a new run"
                )
            return run_id, service.workspace.root / row.path
        now = utcnow()
        identity = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        folder = service.workspace.folder("runs") / identity
        folder.mkdir()
        connection.execute(
            table.insert().values(
                id=identity,
                dataset=info.name,
                dataset_version=info.version,
                domain=info.domain,
                path=str(folder.relative_to(service.workspace.root)),
                settings=settings,
                created_at=now,
            )
        )
    return identity, folder


def runs(service: Service) -> list[sa.Row[Any]]:
    """Every run, newest first."""
    with service.workspace.db.read() as connection:
        return list(connection.execute(sa.select(schema.run).order_by(schema.run.c.created_at.desc())))


def find(service: Service, run_id: str) -> sa.Row[Any]:
    """The run whose id starts with `run_id` ('last' is the newest that is not part of an adapter's gate). Raises UsageError."""
    every = runs(service)
    own = [row for row in every if "gate" not in row.settings]
    found = own[:1] if run_id == "last" else [row for row in every if row.id.startswith(run_id)]
    if len(found) != 1:
        raise UsageError(
            f"{'no' if not found else 'more than one'} run {run_id!r}; known: {', '.join(row.id for row in every[:10]) or 'none yet'}"
        )
    return found[0]


def parse_arms(text: str) -> list[str]:
    """'all' or a comma-separated list. Raises UsageError for an unknown arm."""
    if text == "all":
        return list(MEASURED)
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise UsageError(f"unknown arm {', '.join(unknown) or repr(text)}; known: all, {', '.join(ARMS)}")
    return names
