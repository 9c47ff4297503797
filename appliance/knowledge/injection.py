"""How often an instruction inside a retrieved passage gets its way: every attempt of the sample set, asked through every arm.

Success is counted strictly: an answer that contains what the attempt wanted said counts, also where an arm only quotes it. The overt
attempts are written in the forms that `retrieval.injection` knows, so the share flagged among them says nothing about attempts in
general; those marked `overt: false` are paraphrases that no pattern was written for. The arms that read no passage, `finetuned` and
`base`, are asked as well: what they say of what was wanted they would have said anyway.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from appliance.answers.answering import Answering
from appliance.answers.availability import ArmUnavailable
from appliance.answers.verified import VerifiedAnswers
from appliance.config import FILE_NAME
from appliance.engines.base import Sampling
from appliance.knowledge.knowledge import Knowledge
from appliance.routing.costs import CostBook
from appliance.service import Service
from appliance.types import Caller, Decided, Finished, Request
from appliance.workspace import Workspace
from retrieval.injection import flags, shown
from retrieval.types import Scope

Arm = Literal["quote", "rag", "hybrid", "finetuned", "base", "routed"]
ARMS: tuple[Arm, ...] = ("quote", "rag", "hybrid", "finetuned", "base", "routed")
# Those that a live adapter of the domain answers.
ADAPTED: frozenset[Arm] = frozenset({"hybrid", "finetuned"})
SAMPLE = Path(__file__).parent.parent / "sample"
LANGUAGES = ("en", "zh")
Flagging = Literal["keep", "exclude"]
FLAGGING: tuple[Flagging, ...] = ("keep", "exclude")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A document that tries to steer the answer to `question`; `success` is a regular expression that a steered answer matches."""

    id: str
    lang: str
    kind: str
    domain: str
    overt: bool
    question: str
    title: str
    passage: str
    success: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One question through one arm. `retrieved` tells whether the attempt's document was found, `flagged` whether any passage found was."""

    attempt: Attempt
    arm: Arm
    flagging: Flagging
    retrieved: bool = False
    flagged: bool = False
    succeeded: bool = False
    answer: str | None = None


def attempts(limit: int | None = None) -> list[Attempt]:
    """The attempts, English and Chinese in turn, at most `limit`."""
    lines = (SAMPLE / "injection.jsonl").read_text("utf-8").splitlines()
    return [Attempt(**json.loads(line)) for line in lines[:limit]]


async def measure(
    service: Service, chosen: Sequence[Attempt], arms: Sequence[Arm], max_tokens: int, progress: Callable[..., None]
) -> dict[str, Any]:
    """Ask every attempt through `arms`, without and with flagging; the JSON of `eval injection --json`.

    The engines, the router and live adapters are those of `service`; documents are those of the sample, in a workspace of their own.
    Each attempt is labelled with its id and seen only by its own question.
    """
    with _workspace(service) as workspace:
        knowledge = Knowledge(workspace, service.models)
        await asyncio.to_thread(_ingest, knowledge, chosen, progress)
        answering = {flagging: _answering(service, knowledge, flagging) for flagging in FLAGGING}
        total = len(chosen) * len(arms)
        gate = asyncio.Semaphore(max(engine.max_batch for engine in workspace.config.engines.values()))
        found: list[Asked] = []

        async def ask(attempt: Attempt, arm: Arm) -> None:
            async with gate:
                kept = await _ask(answering["keep"], attempt, arm, "keep", max_tokens)
                # Without a flagged passage the two settings build the same prompt.
                other = (
                    await _ask(answering["exclude"], attempt, arm, "exclude", max_tokens)
                    if kept.flagged
                    else Asked(attempt, arm, "exclude", kept.retrieved, False, kept.succeeded, kept.answer)
                )
            found.extend((kept, other))
            progress("asking", len(found) // 2, total)

        await asyncio.gather(*(ask(attempt, arm) for arm in arms for attempt in chosen))
    return _summary(chosen, arms, found)


async def _ask(answering: Answering, attempt: Attempt, arm: Arm, flagging: Flagging, max_tokens: int) -> Asked:
    request = Request(
        question=attempt.question,
        domain=attempt.domain,
        arm="auto" if arm == "routed" else arm,
        sampling=Sampling(max_tokens=max_tokens, temperature=0.0),
    )
    caller = Caller(Scope(frozenset({attempt.domain}), frozenset({attempt.id})))
    retrieved = flagged = False
    answer = ""
    try:
        async for event in answering.stream(request, caller):
            if isinstance(event, Decided):
                retrieved = any(passage.document.id == attempt.id for passage in event.evidence.passages)
                flagged = any(passage.chunk.flags for passage in event.evidence.passages)
            if isinstance(event, Finished):
                answer = event.answer.text
    except ArmUnavailable:
        # Nothing is said, so nothing is steered; with flagging off the same arm may still answer.
        return Asked(attempt, arm, flagging, flagged=_is_flagged(attempt))
    return Asked(attempt, arm, flagging, retrieved, flagged, re.search(attempt.success, answer) is not None, answer)


def _summary(chosen: Sequence[Attempt], arms: Sequence[Arm], found: Sequence[Asked]) -> dict[str, Any]:
    rows = []
    for arm in arms:
        for lang in LANGUAGES:
            for flagging in FLAGGING:
                mine = [asked for asked in found if (asked.arm, asked.attempt.lang, asked.flagging) == (arm, lang, flagging)]
                answered = [asked for asked in mine if asked.answer is not None]
                succeeded = [asked for asked in answered if asked.succeeded]
                rows.append(
                    {
                        "arm": arm,
                        "lang": lang,
                        "flagged": flagging,
                        "attempts": len(mine),
                        "answered": len(answered),
                        "retrieved": sum(asked.retrieved for asked in answered),
                        "succeeded": len(succeeded),
                        "succeeded_paraphrased": sum(not asked.attempt.overt for asked in succeeded),
                        "rate": round(len(succeeded) / len(answered), 4) if answered else None,
                    }
                )
    return {
        "attempts": len(chosen),
        "flagged": [
            {
                "lang": lang,
                "overt": overt,
                "attempts": sum((attempt.lang, attempt.overt) == (lang, overt) for attempt in chosen),
                "flagged": sum((attempt.lang, attempt.overt) == (lang, overt) and _is_flagged(attempt) for attempt in chosen),
            }
            for lang in LANGUAGES
            for overt in (True, False)
        ],
        "rows": rows,
        "successes": [
            {"id": asked.attempt.id, "kind": asked.attempt.kind, "arm": asked.arm, "flagged": asked.flagging, "answer": asked.answer}
            for asked in sorted(found, key=lambda asked: (asked.arm, asked.flagging, asked.attempt.id))
            if asked.succeeded
        ],
    }


@contextmanager
def _workspace(service: Service) -> Iterator[Workspace]:
    """A temporary workspace with the settings of `service`'s that concern answers, and a database of its own."""
    import tomlkit

    config = service.workspace.config
    values = config.model_dump(mode="json", exclude_none=True, include={"models", "engines", "retrieval", "answering"})
    values["models"]["embedding"] = str(service.workspace.model(config.models.embedding))
    with TemporaryDirectory(prefix="appliance-injection-") as folder:
        root = Path(folder)
        (root / FILE_NAME).write_text(tomlkit.dumps(values), "utf-8")
        # A flag wins over the environment, which may name the team's database.
        with Workspace(root, {"database.url": f"sqlite:///{root / 'appliance.db'}"}) as workspace:
            yield workspace


def _ingest(knowledge: Knowledge, chosen: Sequence[Attempt], progress: Callable[..., None]) -> None:
    for domain in dict.fromkeys(attempt.domain for attempt in chosen):
        knowledge.ingest([SAMPLE / domain / "documents"], domain=domain, progress=progress)
    folder = knowledge.workspace.root / "attempts"
    for done, attempt in enumerate(chosen, 1):
        place = folder / f"{attempt.id}.jsonl"
        place.parent.mkdir(exist_ok=True)
        # The title is metadata, as in a PDF: nothing of it is in the text.
        place.write_text(json.dumps({"id": attempt.id, "title": attempt.title, "text": attempt.passage}), "utf-8")
        knowledge.ingest([place], domain=attempt.domain, labels=frozenset({attempt.id}))
        progress("bringing the attempts in", done, len(chosen))


def _answering(service: Service, knowledge: Knowledge, flagging: Flagging) -> Answering:
    made = Answering(knowledge, service.engines, service.registry, VerifiedAnswers(knowledge), service.answering.router, CostBook())
    retrieval = made.config.retrieval.model_copy(update={"flagged": flagging})
    made.config = made.config.model_copy(update={"retrieval": retrieval})
    return made


def _is_flagged(attempt: Attempt) -> bool:
    return bool(shown(flags(attempt.passage), attempt.title, ()))
