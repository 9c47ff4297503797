"""The scenario framework: which kind of system suits a team, from five plain inputs.

The first rule whose condition holds decides: knowledge that changes often needs retrieval, since weights cannot be
refreshed daily; complex reasoning, an offline deployment and critical accuracy favour fine-tuning; an urgent timeline
favours retrieval, which needs no training; otherwise both together.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from types import MappingProxyType
from typing import Any, Final

from router.roi import Roi, roi_json
from router.types import Scenario

ALLOWED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "knowledge_update_frequency": ("low", "medium", "high"),
        "reasoning_complexity": ("low", "medium", "high"),
        "deployment_environment": ("online", "intranet", "offline"),
        "development_timeline": ("relaxed", "normal", "urgent"),
        "accuracy_requirement": ("normal", "high", "critical"),
    }
)


class ScenarioError(ValueError):
    """A bad scenario input; the message names the field, what is allowed, and the nearest allowed word."""


@dataclass(frozen=True, slots=True)
class ScenarioInputs:
    """What a team says about itself; the allowed values of each field are in `ALLOWED`.

    The defaults are neutral: none of them fires a rule. Raises ScenarioError on a value that is not allowed.
    """

    knowledge_update_frequency: str = "medium"
    reasoning_complexity: str = "medium"
    deployment_environment: str = "online"
    development_timeline: str = "normal"
    accuracy_requirement: str = "normal"

    def __post_init__(self) -> None:
        for name, allowed in ALLOWED.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ScenarioError(f"{name}: {value!r} is not known; allowed: {', '.join(allowed)}{_nearest(value, allowed)}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> ScenarioInputs:
        """Read inputs from a file or flags; case and surrounding blanks do not matter, a missing field is neutral.

        Raises ScenarioError on an unknown field or value.
        """
        for name in values:
            if name not in ALLOWED:
                raise ScenarioError(f"{name}: no such scenario input; known: {', '.join(ALLOWED)}{_nearest(name, tuple(ALLOWED))}")
        return cls(**{name: value.strip().lower() if isinstance(value, str) else value for name, value in values.items()})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Rule:
    """If `field` has the value `value`, choose `choice`, because of `because`."""

    field: str
    value: str
    choice: Scenario
    because: str

    @property
    def name(self) -> str:
        return f"{self.field}={self.value}"


RULES: Final[tuple[Rule, ...]] = (
    Rule("knowledge_update_frequency", "high", "rag", "what changes often must be read at question time; an adapter would be out of date"),
    Rule("reasoning_complexity", "high", "finetuning", "ways of reasoning are learned from examples, not looked up"),
    Rule("deployment_environment", "offline", "finetuning", "a self-contained model answers without a document service beside it"),
    Rule("development_timeline", "urgent", "rag", "documents can be ingested today; training data takes weeks"),
    Rule("accuracy_requirement", "critical", "finetuning", "the answers can be trained and gated against the team's own questions"),
)

_CONFLICTS: Final[Mapping[tuple[str, str], str]] = MappingProxyType(
    {
        ("knowledge_update_frequency", "reasoning_complexity"): (
            "fresh facts need retrieval, the reasoning needs training; consider hybrid: train how to answer, retrieve what to say"
        ),
        ("knowledge_update_frequency", "deployment_environment"): (
            "an offline system sees no updates; ship the index with each update package, or accept answers as old as the last delivery"
        ),
        ("knowledge_update_frequency", "accuracy_requirement"): (
            "critical accuracy asks for trained and gated answers, but those age with every update; require citations and retrain regularly"
        ),
        ("reasoning_complexity", "development_timeline"): (
            "training for complex reasoning takes time the timeline does not give; start with retrieval and add an adapter later"
        ),
        ("deployment_environment", "development_timeline"): (
            "an offline model must be trained and gated before delivery; start with a local index and quotes"
        ),
        ("development_timeline", "accuracy_requirement"): (
            "critical accuracy needs a test set and a gate before going live; begin with citations required and refusals allowed"
        ),
    }
)


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One rule's outcome: `held` if its condition holds, `fired` if it decided; `why` says it in plain words."""

    name: str
    held: bool
    fired: bool
    why: str


@dataclass(frozen=True, slots=True)
class Advice:
    """The recommended scenario, every rule in order, and the contradictions within the inputs."""

    choice: Scenario
    rules: tuple[RuleResult, ...]
    conflicts: tuple[str, ...]
    inputs: ScenarioInputs


def advise(inputs: ScenarioInputs) -> Advice:
    """Apply the rules in order; the first whose condition holds decides, else hybrid."""
    holding = [rule for rule in RULES if getattr(inputs, rule.field) == rule.value]
    decider = holding[0] if holding else None
    results = [_result(rule, inputs, decider) for rule in RULES]
    if decider is None:
        results.append(RuleResult("otherwise", True, True, "no condition above holds: hybrid"))
    else:
        results.append(RuleResult("otherwise", False, False, f"{decider.name} has decided"))
    return Advice(decider.choice if decider else "hybrid", tuple(results), _conflicts(holding), inputs)


def advice_json(advice: Advice, roi: Roi | None = None) -> dict[str, Any]:
    """The JSON form of `advise --json`; `roi` is null when no figures were given."""
    return {
        "choice": advice.choice,
        "rules": [asdict(rule) for rule in advice.rules],
        "conflicts": list(advice.conflicts),
        "inputs": {field.name: getattr(advice.inputs, field.name) for field in fields(advice.inputs)},
        "roi": None if roi is None else roi_json(roi),
    }


def _result(rule: Rule, inputs: ScenarioInputs, decider: Rule | None) -> RuleResult:
    value = getattr(inputs, rule.field)
    if value != rule.value:
        return RuleResult(rule.name, False, False, f"{rule.field} is {value}, not {rule.value}")
    if rule is decider:
        return RuleResult(rule.name, True, True, f"{rule.field} is {value}: {rule.choice}, because {rule.because}")
    earlier = decider.name if decider else ""
    return RuleResult(rule.name, True, False, f"{rule.field} is {value}, which speaks for {rule.choice}, but {earlier} comes first")


def _conflicts(holding: list[Rule]) -> tuple[str, ...]:
    """Every two conditions that hold and point to different choices."""
    return tuple(
        f"{one.name} ({one.choice}) against {two.name} ({two.choice}): {_CONFLICTS[one.field, two.field]}"
        for one, two in combinations(holding, 2)
        if one.choice != two.choice
    )


def _nearest(value: object, allowed: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(value).strip().lower(), allowed, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
