"""The gate: what an adapter version must show before it may become live, measured through the path that serves.

The version's answers are compared with those of the live version, question by question; where none is live, with those of the base model
(`rag` for `hybrid`). What each setting means is told in `appliance.settings.GateConfig`, how a difference is judged in `gate_checks`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median

from appliance.adapters.card import write_card
from appliance.adapters.gate_checks import Check, GateResult, compare, last_gate, ratio, skipped
from appliance.adapters.gate_questions import Questions, Trained, questions_of, trained_on
from appliance.adapters.life import rehearse
from appliance.adapters.registry import AdapterVersion, Registry
from appliance.datasets.registry import DatasetInfo, Datasets
from appliance.engines.base import Sampling
from appliance.engines.build import lint as lint_for
from appliance.errors import ApplianceError, GateMissed, UsageError
from appliance.evaluation.runs import answered, evaluator, kept_run, request_of, scoring_of, state_of
from appliance.models.store import ModelStore
from appliance.service import Service
from appliance.settings import GateConfig
from appliance.store import schema
from appliance.store.database import utcnow
from appliance.workspace import Workspace
from eval.metrics import of_outcome
from eval.tasks import MEASURES
from eval.types import Item, Outcome
from finetune.lint import EngineKind

# What answers where no adapter does.
_PLAIN: Mapping[str, str] = {"finetuned": "base", "hybrid": "rag"}
# Whether there is an answer at all.
ANSWERED = "answered"
# Tokens of an answer whose speed is measured.
_TIMED_TOKENS = 24
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Promotion:
    """What `promote` did; `gate` is None where nothing was measured: the version was live already, or forced without a gate before."""

    version: AdapterVersion
    promoted: bool
    gate: GateResult | None
    why: str


async def promote(
    service: Service,
    name: str,
    *,
    force: str | None = None,
    settings: GateConfig | None = None,
    progress: Progress | None = None,
) -> Promotion:
    """Make the version called `name` live if it passes its domain's gate; else it stays what it is and `promoted` is False.

    `force` is the reason for which it goes live without passing; it is recorded, and nothing is measured. Files that cannot be served
    never go live. `settings` replace those of the configuration. Raises UsageError (unknown), ApplianceError (altered files, another base,
    another alias by the time it is done), GateMissed (files the engine cannot serve), Locked (another gate runs in the domain).
    """
    registry, workspace = service.registry, service.workspace
    version = registry.get(name)
    registry.check_adapter(version)
    check_fit(workspace, service.models, version)
    with workspace.db.lock(f"gate:{version.domain}") as lock:
        live = registry.live(version.domain)
        if live is not None and live.name == name:
            return Promotion(version, True, None, "live already")
        gate: GateResult | None
        if force is not None:
            gate = last_gate(workspace, name)
            measured = "never measured" if gate is None else f"gate {gate.id} {'passed' if gate.passed else 'missed'}"
            promoted, why = True, f"forced: {force} ({measured})"
        else:

            def beat(what: str, done: int, total: int) -> None:
                lock.beat()
                if progress is not None:
                    progress(what, done, total)

            gate = await measure(service, version, live, settings or workspace.config.domain(version.domain).gate, beat)
            promoted, why = gate.passed, f"gate {gate.id} {'passed' if gate.passed else 'missed'}"
        if promoted:
            # On the engine that is to serve it: what cannot be loaded, or fails, never goes live.
            await rehearse(registry, await service.engines.of(version.domain), version)
            registry.promote(name, why, over=None if live is None else live.name)
    write_card(registry, version)
    return Promotion(version, promoted, gate, why)


async def measure(
    service: Service, version: AdapterVersion, live: AdapterVersion | None, settings: GateConfig, progress: Progress
) -> GateResult:
    """Measure `version` against `live` (None: the base) and store what came out. Nothing goes live.

    A live version of another base cannot be asked by the engine that is to serve the new one: the base is then compared with.
    """
    live = live if live is not None and live.base_hash == version.base_hash else None
    gate = _Gate(service, version, live, settings, progress)
    checks, left_out = await gate.run()
    result = GateResult(
        id=gate.id,
        adapter=version.name,
        reference=None if live is None else live.name,
        passed=all(check.status != "missed" for check in checks),
        settings=settings.model_dump(mode="json"),
        checks=tuple(checks),
        left_out=left_out,
        runs=tuple(gate.runs),
        created_at=utcnow(),
    )
    with service.workspace.db.write() as connection:
        connection.execute(schema.gate.insert().values(**{**asdict(result), "runs": list(result.runs)}))
    return result


def lint(workspace: Workspace, models: ModelStore, version: AdapterVersion, kind: EngineKind | None = None) -> list[str]:
    """What keeps the version from being served by its domain's engine, or by one of this `kind` with that engine's base; empty if nothing.

    Raises ApplianceError where that engine serves no adapters or runs another base.
    """
    if version.kind == "model":
        raise UsageError(
            f'{version.name} is a model and no adapter: it is used as the base of an engine, [engines.NAME] base = "{version.reference}"'
        )
    name, engine = workspace.config.engine_of(version.domain)
    if not engine.has_base:
        raise ApplianceError(
            f"engine {name} of {version.domain} is {engine.kind} and serves no adapters; name a local or vllm engine for the domain"
        )
    base = workspace.model(engine.base)
    base_hash = models.model_hash(base)
    if base_hash != version.base_hash:
        raise ApplianceError(
            f"{version.name} was trained for another base, {version.base} ({version.base_hash[:12]}); "
            f"engine {name} runs {engine.base} ({base_hash[:12]}); "
            "train a version for this base with `appliance tune`"
        )
    return lint_for(engine, models, workspace, version.path, kind)


def check_fit(workspace: Workspace, models: ModelStore, version: AdapterVersion) -> None:
    """Raises GateMissed listing every problem of the files, ApplianceError where the domain's engine cannot serve them at all."""
    problems = lint(workspace, models, version)
    if problems:
        raise GateMissed(f"{version.name} cannot go live: " + "; ".join(problems))


def rollback(registry: Registry, models: ModelStore, domain: str) -> AdapterVersion | None:
    """`Registry.rollback` to a version that the domain's engine can serve as it is configured now. Raises GateMissed besides."""
    version = registry.rollback(domain, partial(check_fit, registry.workspace, models))
    if version is not None:
        write_card(registry, version)
    return version


class _Gate:
    """One measurement: the two sides, and the runs made so far."""

    def __init__(
        self, service: Service, version: AdapterVersion, live: AdapterVersion | None, settings: GateConfig, progress: Progress
    ) -> None:
        self.service, self.version, self.live, self.settings, self.progress = service, version, live, settings, progress
        self.id = f"{utcnow():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        self.runs: list[str] = []
        # The questions that both sides answered.
        self._both: list[Item] = []
        self._engine = service.workspace.config.engine_of(version.domain)[1]

    async def run(self) -> tuple[list[Check], dict[str, int]]:
        """Every check, and the questions left out by data set and reason."""
        trained = trained_on(self.service, [self.version, *([self.live] if self.live else [])])
        questions = self._questions(self.settings.dataset, trained, self.version.domain)
        left_out = {f"{questions.info.name}: {reason}": count for reason, count in questions.left_out.items()}
        checks = [self._loss()]
        checks += [check for arm in self.settings.arms for check in await self._quality(arm, questions)]
        checks.append(await self._refusal(questions))
        if self.settings.general is None:
            checks.append(skipped("forgetting", "", f"not configured: [domains.{self.version.domain}.gate] general"))
        else:
            # What is general is of no domain, whatever it was registered for.
            general = self._questions(self.settings.general, trained, None)
            left_out |= {f"{general.info.name}: {reason}": count for reason, count in general.left_out.items()}
            checks.append(await self._forgetting(general))
        checks += await self._latency(self._both[: self.settings.latency_questions])
        return checks, left_out

    def _questions(self, name: str | None, trained: Trained, domain: str | None) -> Questions:
        datasets = Datasets(self.service.workspace)
        info = datasets.state(self.version.dataset, self.version.dataset_version) if name is None else datasets.get(name)
        return questions_of(self.service, info, domain, trained, self._engine.languages, self.settings.questions)

    def _loss(self) -> Check:
        before, after = self.version.metrics.get("eval_loss_before"), self.version.metrics.get("eval_loss")
        if before is None or after is None:
            return skipped("loss", "dev loss", "the version was trained without dev questions")
        better = after < before
        return Check(
            "loss",
            "passed" if better else "missed",
            "dev loss",
            int(self.version.metrics.get("dev_examples", 0)),
            candidate=after,
            reference=before,
            difference=after - before,
            required="below",
            note="" if better else "training made it worse: train longer, or on more pairs",
        )

    async def _quality(self, arm: str, questions: Questions) -> list[Check]:
        name = f"quality {arm}"
        metric = self.settings.metric or MEASURES[questions.info.task][0]
        if not questions.answerable:
            return [
                Check(
                    name,
                    "missed",
                    metric,
                    note=f"{questions.nothing_left()}; name a data set of questions it was not trained on: "
                    f"[domains.{self.version.domain}.gate] dataset",
                )
            ]
        items = questions.answerable
        ours, theirs = await self._answers(name, questions.info, items, [self._side(arm), self._other(arm)])
        if arm == self.settings.arms[0]:
            self._both = [item for item in items if ours[item.id].error is None and theirs[item.id].error is None]
        above = self.settings.min_gain or -self.settings.max_drop
        return [
            self._compared(name, metric, items, ours, theirs, above),
            # Declining is worth more than a wrong answer, so that a version which says nothing would pass by quality alone.
            self._compared(f"answered {arm}", ANSWERED, items, ours, theirs, -self.settings.max_declined),
        ]

    async def _refusal(self, questions: Questions) -> Check:
        """The routed answers: what a user gets who asks what the documents do not tell."""
        if not questions.unanswerable:
            return skipped("refusal", "share declined", f"{questions.info.name} has no questions without an answer")
        sides = [("auto", self.version.name), ("auto", "" if self.live is None else self.live.name)]
        ours, theirs = await self._answers("refusal", questions.info, questions.unanswerable, sides)
        return self._compared("refusal", "refusal_correct", questions.unanswerable, ours, theirs, -self.settings.max_answered)

    async def _forgetting(self, general: Questions) -> Check:
        """Against the base, whatever is live: what is forgotten bit by bit is forgotten too.

        Only what the base can answer can be forgotten. Where that is nothing, no difference shows nothing.
        """
        metric = MEASURES[general.info.task][0]
        if not general.answerable:
            return Check("forgetting", "missed", metric, note=f"{general.nothing_left()}; name another data set")
        ours, theirs = await self._answers("forgetting", general.info, general.answerable, [self._side("finetuned"), ("base", "")])
        check = self._compared("forgetting", metric, general.answerable, ours, theirs, -self.settings.max_forgetting)
        scoring = scoring_of(self.service.workspace.config)
        known = sum(of_outcome(item, theirs[item.id], scoring).get(metric, 0.0) > 0 for item in general.answerable)
        note = f"the base answers {known} of {len(general.answerable)} of them" + (f"; {check.note}" if check.note else "")
        if known or check.status == "missed":
            return replace(check, note=note)
        return replace(
            check,
            status="missed" if self.settings.strict else "skipped",
            note=f"{note}; what it cannot answer it cannot forget: name general questions that it can",
        )

    async def _latency(self, timed: Sequence[Item]) -> list[Check]:
        """Both sides in turn, one question at a time, so that whatever else the machine does slows both."""
        if not timed:
            why = "not configured: latency_questions = 0" if self.settings.latency_questions == 0 else "no question to ask"
            return [skipped("latency", "first token, ms", why)]
        arm = self.settings.arms[0]
        # Both were asked all questions before: nothing is loaded for the first time.
        sides = (self._side(arm), self._other(arm))
        first: tuple[list[float], list[float]] = ([], [])
        speed: tuple[list[float], list[float]] = ([], [])
        for number, item in enumerate(timed):
            # Who goes first alternates.
            for place in (0, 1) if number % 2 == 0 else (1, 0):
                waited, rate = await self._timed(item, sides[place])
                first[place].append(waited)
                # An answer of one token has no speed.
                speed[place].extend([] if rate is None else [rate])
            self.progress("gate: latency", number + 1, len(timed))
        most = self.settings.max_latency
        checks = [ratio("latency", "first token, ms", median(first[0]), median(first[1]), most, len(timed), slower=True)]
        if not all(speed):
            return [*checks, skipped("speed", "tokens a second", "the answers have one token")]
        n = min(map(len, speed))
        return [*checks, ratio("speed", "tokens a second", median(speed[0]), median(speed[1]), most, n, slower=False)]

    async def _timed(self, item: Item, side: tuple[str, str]) -> tuple[float, float | None]:
        """(ms to the first token without the search, tokens a second after it, None if there are none)."""
        arm, adapter = side
        sampling = Sampling(max_tokens=min(_TIMED_TOKENS, self.settings.max_tokens))
        request = request_of(item, arm, self.version.domain, sampling, adapter)
        answer = await self.service.answering.ask(request, evaluator(self.service))
        first = answer.timings.get("first_token", answer.timings["total"])
        rest, tokens = answer.timings["total"] - first, answer.usage.completion_tokens - 1
        # The plain model needs no passages and is asked without a search.
        return first - answer.timings.get("retrieval", 0.0), tokens / rest * 1000 if tokens > 0 and rest > 0 else None

    # --- both sides of a comparison

    def _side(self, arm: str) -> tuple[str, str]:
        return arm, self.version.name

    def _other(self, arm: str) -> tuple[str, str]:
        return (arm, self.live.name) if self.live is not None else (_PLAIN[arm], "")

    async def _answers(
        self, what: str, info: DatasetInfo, items: Sequence[Item], sides: Sequence[tuple[str, str]]
    ) -> list[dict[str, Outcome]]:
        """For each (arm, adapter) the outcome of every question, by id, kept in a run."""
        named = {f"{arm} {adapter}".strip(): (arm, adapter) for arm, adapter in sides}
        sampling = Sampling(max_tokens=self.settings.max_tokens)

        async def ask(item: Item, label: str) -> Outcome:
            arm, adapter = named[label]
            return await answered(self.service, item, arm, self.version.domain, sampling, adapter)

        state = state_of(self.service, list(named), None, self.settings.questions, self.settings.max_tokens)
        result, summary = await kept_run(
            self.service,
            info,
            items,
            list(named),
            ask,
            {**state, "gate": self.id, "check": what},
            concurrency=self._engine.max_batch,
            progress=lambda done, total: self.progress(f"gate: {what}", done, total),
        )
        self.runs.append(summary["run_id"])
        return [{item.id: result.outcomes[item.id, label] for item in items} for label in named]

    def _compared(
        self, name: str, metric: str, items: Sequence[Item], ours: Mapping[str, Outcome], theirs: Mapping[str, Outcome], above: float
    ) -> Check:
        """Over the questions that both sides could be asked; a failure of the version's own is no answer to compare."""
        failed = [outcome.error for outcome in ours.values() if outcome.error is not None and not outcome.unavailable]
        if failed:
            return Check(name, "missed", metric, note=f"{len(failed)} of {len(items)} answers of the version failed: {failed[0]}")
        scoring = scoring_of(self.service.workspace.config)
        both = [(of_outcome(item, ours[item.id], scoring), of_outcome(item, theirs[item.id], scoring)) for item in items]
        usable = [(one[metric], two[metric]) for one, two in both if metric in one and metric in two]
        if not usable:
            reason = next((outcome.error for outcome in (*ours.values(), *theirs.values()) if outcome.error), "")
            return Check(name, "missed", metric, note=f"{metric} could not be measured on these questions {reason}".strip())
        return compare(
            name,
            metric,
            [one for one, _ in usable],
            [two for _, two in usable],
            above,
            confidence=self.settings.confidence,
            strict=self.settings.strict,
        )
