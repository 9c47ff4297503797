"""The contracts of answering: what is asked, what comes back, and the events in between."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from appliance.engines.base import Message, Sampling, Usage
from finetune.types import Task
from retrieval.types import Evidence, Scope
from router.types import Arm, Constraints, Decision

ArmChoice = Literal["auto"] | Arm


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: what they may see and do (`appliance.admin.keys.SCOPES`), and how they are called (an API key's id, or 'local')."""

    scope: Scope = field(default_factory=Scope)
    name: str = "local"
    scopes: frozenset[str] = frozenset({"chat"})

    def narrowed(self, labels: frozenset[str] | None) -> Caller:
        """The caller with those of their labels that are in `labels`; None narrows nothing."""
        return self if labels is None else replace(self, scope=replace(self.scope, labels=self.scope.labels & labels))


@dataclass(frozen=True, slots=True)
class Request:
    """One question. `history` are the turns before it, oldest first; `domain` None searches everything the caller may see.

    `system` is the caller's own system message, which reaches generating arms after the appliance's. `labels` narrows what the caller
    may see to documents with no other labels; None narrows nothing. `task` picks the instruction; None is what the adapter that
    answers was trained for, else a question. `adapter` is an immutable version to answer with in place of the live one, '' for none;
    it is for the gate and for measuring, not for clients.

    `measured` is for evaluation, whose answers must not depend on the moment: routed with an engine that is down the question fails
    (EngineDown) instead of going to an arm that needs none, and costs are those of the runs before, not what this process has seen.
    """

    question: str
    history: tuple[Message, ...] = ()
    domain: str | None = None
    arm: ArmChoice = "auto"
    constraints: Constraints = field(default_factory=Constraints)
    sampling: Sampling | None = None
    system: str | None = None
    labels: frozenset[str] | None = None
    task: Task | None = None
    adapter: str | None = None
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Citation:
    """A verified quotation: ``quote == Document.text[start:end]``.

    `answer_start`/`answer_end` is the span of the answer it supports (code points in `Answer.text`). `flags` are the kinds of
    instructions to the model that ingest found in the cited passage (see `retrieval.injection`). `also` are the other documents the
    caller may see that have exactly this text.
    """

    doc_id: str
    domain: str
    title: str
    uri: str
    start: int
    end: int
    quote: str
    page: int | None
    heading: tuple[str, ...]
    sha256: str
    answer_start: int
    answer_end: int
    support: float = 1.0
    flags: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer. `unsupported` lists the sentences of a cited arm that no passage supports; timings are in ms.

    `warnings` are sentences for the person who asked, in the question's language. `cached` tells whether the text was generated for an
    earlier question, the same in every respect; None where no cache was asked (see `appliance.answers.cache`).
    """

    id: str
    text: str
    arm: Arm
    domain: str
    citations: tuple[Citation, ...]
    unsupported: tuple[str, ...]
    decision: Decision
    engine: str | None
    adapter: str | None
    generation: int | None
    usage: Usage
    timings: Mapping[str, float]
    finish_reason: Literal["stop", "length"] = "stop"
    query: str = ""
    warnings: tuple[str, ...] = ()
    cached: bool | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """First event of an answer: the route is known, nothing is generated yet.

    `generates` tells whether a model makes the answer: not where the arm needs none, or the answer was kept.
    """

    id: str
    decision: Decision
    evidence: Evidence
    generates: bool


@dataclass(frozen=True, slots=True)
class Prompted:
    """The engine gets a prompt of `tokens` now; only what is generated has this event, and before any text."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer's text; the pieces joined are `Answer.text`."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event."""

    answer: Answer


Event = Decided | Prompted | Text | Finished


@dataclass(slots=True)
class Clock:
    """Milliseconds since the question arrived, by stage."""

    started: float = field(default_factory=time.perf_counter)
    stages: dict[str, float] = field(default_factory=dict)

    def elapsed(self) -> float:
        return (time.perf_counter() - self.started) * 1000

    def mark(self, stage: str, since: float = 0.0) -> float:
        """Record the stage that began at `since` and ends now; returns now."""
        now = self.elapsed()
        self.stages[stage] = now - since
        return now


def decision_json(decision: Decision) -> dict[str, Any]:
    """A decision in the JSON form of `ask --json` and the HTTP API."""
    return {
        "arm": decision.arm,
        "domain": decision.domain,
        "rule": decision.rule,
        "reasons": list(decision.reasons),
        "predicted": {
            arm: {"quality": round(p.quality, 4), "latency_ms": round(p.latency_ms, 1), "tokens": round(p.tokens, 1)}
            | ({} if p.utility is None else {"utility": round(p.utility, 4)})
            for arm, p in decision.predicted.items()
        },
        "unavailable": dict(decision.unavailable),
        "features": {name: round(value, 6) for name, value in decision.features.items()},
        "router_version": decision.router_version,
    }


def citation_json(citation: Citation) -> dict[str, Any]:
    """A citation in the JSON form of `ask --json` and the HTTP API."""
    return {
        "doc_id": citation.doc_id,
        "domain": citation.domain,
        "uri": citation.uri,
        "title": citation.title,
        "start": citation.start,
        "end": citation.end,
        "quote": citation.quote,
        "page": citation.page,
        "heading": list(citation.heading),
        "sha256": citation.sha256,
        "answer_start": citation.answer_start,
        "answer_end": citation.answer_end,
        "support": round(citation.support, 4),
        "flags": list(citation.flags),
        "also": list(citation.also),
    }


def answer_json(answer: Answer) -> dict[str, Any]:
    """An answer in the JSON form of `ask --json`, `/v1/answer` and the `appliance` field of chat completions."""
    return {
        "id": answer.id,
        "answer": answer.text,
        "arm": answer.arm,
        "domain": answer.domain,
        "citations": [citation_json(citation) for citation in answer.citations],
        "unsupported": list(answer.unsupported),
        "warnings": list(answer.warnings),
        "decision": decision_json(answer.decision),
        "engine": answer.engine,
        "adapter": answer.adapter,
        "generation": answer.generation,
        "cached": bool(answer.cached),
        "query": answer.query,
        "finish_reason": answer.finish_reason,
        "usage": {"prompt_tokens": answer.usage.prompt_tokens, "completion_tokens": answer.usage.completion_tokens},
        "timings_ms": {stage: round(value, 1) for stage, value in answer.timings.items()},
    }
