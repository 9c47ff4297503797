"""The contracts of the router: what it is told, what it decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from retrieval.types import Evidence

Arm = Literal["base", "quote", "rag", "finetuned", "hybrid", "verified", "refuse"]
ARMS: tuple[Arm, ...] = ("base", "quote", "rag", "finetuned", "hybrid", "verified", "refuse")
GENERATING: frozenset[Arm] = frozenset({"base", "rag", "finetuned", "hybrid"})
# What an adapter answers.
TUNED: tuple[Arm, ...] = ("finetuned", "hybrid")
CITING: frozenset[Arm] = frozenset({"quote", "rag", "hybrid", "verified"})

Scenario = Literal["rag", "finetuning", "hybrid"]


@dataclass(frozen=True, slots=True)
class Constraints:
    """The caller's conditions. `max_latency_ms` is for the whole answer."""

    must_cite: bool = False
    max_latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """Plain data about the live adapter of a domain, computed by `appliance`.

    `nearest_question` is the cosine to the nearest training question, `near_questions` the mean of those to the five nearest,
    `sure_there` how surely it gives their answers (see `finetune.recall`; all None if unknown), `stale_share` the share of its linked
    training pairs whose evidence has changed or gone, `unlinked` the number of pairs without evidence, `stale_here` the documents it was
    trained on that are other or gone now, as far as they are among this question's passages or the evidence of its nearest training
    question.
    """

    version: str
    pairs: int
    stale_share: float
    unlinked: int
    nearest_question: float | None = None
    near_questions: float | None = None
    sure_there: float | None = None
    stale_here: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Costs:
    """Expected latency of an arm in milliseconds and generated plus read tokens."""

    latency_ms: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything a router may look at for one question.

    `question` is self-contained (follow-ups already rewritten). `unavailable` maps an arm to why it cannot be used
    here, in plain words; every arm that is missing there is available. `prior` is the scenario advice saved for the
    domain. `verified` is the similarity (1.0 for an exact match) of the best verified answer, None if there is none.
    `costs` are those measured, `untimed` the arms whose latency nobody measured lately, which no limit rules out: one late answer tells.
    """

    question: str
    lang: str
    domain: str
    evidence: Evidence
    unavailable: Mapping[Arm, str] = field(default_factory=dict)
    adapter: AdapterFacts | None = None
    prior: Scenario | None = None
    verified: float | None = None
    costs: Mapping[Arm, Costs] = field(default_factory=dict)
    untimed: frozenset[Arm] = frozenset()
    constraints: Constraints = Constraints()


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the router expects of an arm: quality in [0, 1], latency in ms, tokens; of a trained router also the utility in [-1, 1]
    (see `eval.utility`), of which the quality is the part above 0."""

    quality: float
    latency_ms: float
    tokens: float
    utility: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The router's choice, with everything needed to explain it.

    `rule` names the rule that fired (or the model), `reasons` are plain sentences in the question's language,
    `predicted` covers every available arm, `unavailable` every other one with the reason.
    """

    arm: Arm
    domain: str
    rule: str
    reasons: tuple[str, ...]
    predicted: Mapping[Arm, Prediction]
    unavailable: Mapping[Arm, str]
    features: Mapping[str, float]
    router_version: str


class Router(Protocol):
    """A router is one method; nothing else in the system cares which one it is."""

    @property
    def version(self) -> str: ...

    def decide(self, situation: Situation) -> Decision: ...
