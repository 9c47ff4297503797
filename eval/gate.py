"""A team's own conditions on a run, read from a file: thresholds for an arm's measures, or for their difference from another arm or run."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal

from eval.groups import groups_of
from eval.metrics import METRICS, WHOLE, of_arm, of_outcome
from eval.report import grid
from eval.run import RunResult
from eval.statistics import grouped_bootstrap
from eval.types import AUTO, EvalError, Item, Outcome
from eval.utility import Scoring

ROUTED: Final = "routed"
LAST: Final = "last"
_RUN: Final[Mapping[str, type | tuple[type, ...]]] = {"dataset": str, "arms": list, "split": str, "limit": int, "max_tokens": int}
_CHECK: Final[Mapping[str, type | tuple[type, ...]]] = {
    "metric": str,
    "arm": str,
    "against": str,
    "min": (int, float),
    "max": (int, float),
    "confidence": (int, float),
}
_TYPES: Final = {str: "text in quotes", list: "a list of arms", int: "a whole number", (int, float): "a number"}


@dataclass(frozen=True, slots=True)
class Threshold:
    """`low` <= the value of `metric` for `arm` <= `high`; None bounds nothing.

    With `against`, an arm of the same run or "last" for the same arm of the last good run before, the value is the mean difference from it.
    With `confidence` the whole interval must be within the bounds, else the value.
    """

    metric: str
    arm: str = ROUTED
    low: float | None = None
    high: float | None = None
    against: str | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class GateFile:
    """What a gate file asks for. `dataset` None: the last run is looked at and nothing is asked."""

    thresholds: tuple[Threshold, ...]
    dataset: str | None = None
    arms: tuple[str, ...] = ("all",)
    split: str = "test"
    limit: int | None = None
    max_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a threshold: over `n` questions, `value` with its interval if one was asked for."""

    threshold: Threshold
    status: Literal["passed", "missed", "skipped"]
    n: int = 0
    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def required(self) -> str:
        """The bounds in words."""
        bounds = [f">= {self.threshold.low:g}" if self.threshold.low is not None else ""]
        bounds += [f"<= {self.threshold.high:g}" if self.threshold.high is not None else ""]
        return " and ".join(bound for bound in bounds if bound)


def read(path: Path, every: Sequence[str] = ()) -> GateFile:
    """Read a gate file (TOML); `every` are the arms that "all" stands for.

    Raises EvalError naming the file, line and field, what was expected, and what to do: also for a metric that there is none of, and an arm
    that the file does not have asked.
    """
    try:
        text = path.read_text("utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError:
        raise EvalError(f"{path}: no such file; give the file with the thresholds") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise EvalError(f"{path}: not a readable TOML file: {error}") from error
    checks = values.pop("check", [])
    if not isinstance(checks, list) or not checks or not all(isinstance(check, dict) for check in checks):
        raise EvalError(f"{path}: no thresholds; write at least one [[check]] with metric and min or max")
    _fields(path, text, 0, values, _RUN)
    for field in ("limit", "max_tokens"):
        if values.get(field, 1) < 1:
            raise _wrong(path, text, 0, field, f"{values[field]}; give at least 1")
    arms = values.get("arms", ["all"])
    if not arms or not all(isinstance(arm, str) for arm in arms):
        raise _wrong(path, text, 0, "arms", f'{arms!r}; give a list of arms, for example ["rag", "hybrid"]')
    found = tuple(_threshold(path, text, number, check) for number, check in enumerate(checks, 1))
    asked = {ROUTED, LAST, *(every if list(arms) == ["all"] else arms)}
    for number, threshold in enumerate(found, 1):
        for field, arm in (("arm", threshold.arm), ("against", threshold.against)):
            if "dataset" in values and arm is not None and arm not in asked:
                raise _wrong(path, text, number, field, f"{arm!r} is not asked; arms has {', '.join(sorted(asked - {LAST}))}")
    return GateFile(found, **{**values, "arms": tuple(arms)})


def failed(thresholds: Sequence[Threshold], result: RunResult) -> list[Verdict]:
    """A missed verdict for each arm that the thresholds look at and that failed to answer: what failed is not in most measures, which the
    rest may then pass. A threshold on ``errors`` of the arm itself says how many may."""
    arms = [name for threshold in thresholds for name in (threshold.arm, threshold.against) if name is not None and name != LAST]
    told = {threshold.arm for threshold in thresholds if threshold.metric == "errors"}
    found: list[Verdict] = []
    for arm in dict.fromkeys(arms):
        pairs = _pairs(result, arm)
        errors = [outcome.error for _, outcome in pairs if outcome.error is not None]
        if errors and arm not in told:
            found.append(Verdict(Threshold("errors", arm, high=0), "missed", len(pairs), len(errors), note=f"the first: {errors[0]}"))
    return found


def judge(threshold: Threshold, result: RunResult, before: RunResult | None, scoring: Scoring | None = None) -> Verdict:
    """Hold a threshold against a finished run; `before` is the run that "last" stands for, None for none.

    Answers that failed are not compared with (see `failed` for those of the arm itself).
    """
    pairs = _pairs(result, threshold.arm)
    if not pairs:
        known = ", ".join(dict.fromkeys(ROUTED if arm == AUTO else arm for _, arm in result.outcomes))
        return Verdict(threshold, "missed", note=f"the run has no usable answers of {threshold.arm}; it has {known}")
    if threshold.against == LAST and before is None:
        return Verdict(threshold, "skipped", note="there is no run before this one to compare with")
    others = None
    if threshold.against is not None:
        others = _pairs(before, threshold.arm) if threshold.against == LAST and before is not None else _pairs(result, threshold.against)
        if not others:
            return Verdict(threshold, "missed", note=f"there are no usable answers of {threshold.against} to compare with")
        others = [(item, outcome) for item, outcome in others if outcome.error is None]
    single = {} if threshold.metric in WHOLE else _values(pairs, threshold.metric, scoring)
    if not single:
        return _of_whole(threshold, pairs, others, scoring)
    if others is None:
        common = list(single)
        ours, theirs = list(single.values()), [0.0] * len(single)
    else:
        reference = _values(others, threshold.metric, scoring)
        # The same question, in the same words.
        common = [key for key in single if key in reference]
        if not common:
            return Verdict(threshold, "missed", note=f"{threshold.metric} was measured on no question of both")
        ours, theirs = [single[key] for key in common], [reference[key] for key in common]
    groups = groups_of(item for item, _ in pairs)
    interval, few = grouped_bootstrap(ours, theirs, [groups[id] for id, _ in common], confidence=threshold.confidence or 0.95)
    lowest, highest = (interval.low, interval.high) if threshold.confidence is not None else (interval.difference, interval.difference)
    passed = (threshold.low is None or lowest >= threshold.low) and (threshold.high is None or highest <= threshold.high)
    notes = ["no difference shown"] if others is not None and (few or not interval.shown) else []
    if few and threshold.confidence is not None:
        passed = False
        notes.append(f"{few} show nothing; add questions, or leave confidence out")
    return Verdict(threshold, "passed" if passed else "missed", len(ours), *interval, "; ".join(notes))


def table(verdicts: Sequence[Verdict]) -> str:
    """Verdicts as plain text."""
    rows = [["arm", "metric", "against", "n", "value", "95 % interval", "required", "", ""]]
    for verdict in verdicts:
        wanted = verdict.threshold
        share = f"{wanted.confidence or 0.95:.0%}"
        value = "–" if verdict.value is None else f"{verdict.value:.3f}"
        interval = "–" if verdict.low is None else f"[{verdict.low:.3f}, {verdict.high:.3f}]" + ("" if share == "95%" else f" {share}")
        cells = [wanted.metric, wanted.against or "–", str(verdict.n), value, interval, verdict.required, verdict.status, verdict.note]
        rows.append([wanted.arm, *cells])
    return "\n".join(grid(rows))


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain data."""
    wanted = verdict.threshold
    return {
        "arm": wanted.arm,
        "metric": wanted.metric,
        "against": wanted.against,
        "min": wanted.low,
        "max": wanted.high,
        "confidence": wanted.confidence,
        "status": verdict.status,
        "n": verdict.n,
        "value": verdict.value,
        "low": verdict.low,
        "high": verdict.high,
        "note": verdict.note,
    }


def _of_whole(
    threshold: Threshold,
    pairs: Sequence[tuple[Item, Outcome]],
    others: Sequence[tuple[Item, Outcome]] | None,
    scoring: Scoring | None,
) -> Verdict:
    """A measure that all answers have together, as a percentile or a corpus score: no interval."""
    row = of_arm([item for item, _ in pairs], [outcome for _, outcome in pairs], scoring)
    if threshold.metric not in row:
        return Verdict(threshold, "missed", note=f"{threshold.metric} was not measured; known here: {', '.join(row)}")
    if threshold.confidence is not None:
        note = f"{threshold.metric} is measured over all questions together and has no interval; leave confidence out"
        return Verdict(threshold, "missed", len(pairs), row[threshold.metric], note=note)
    value = row[threshold.metric]
    if others is not None:
        reference = of_arm([item for item, _ in others], [outcome for _, outcome in others], scoring)
        if threshold.metric not in reference:
            return Verdict(threshold, "missed", note=f"{threshold.metric} was not measured for {threshold.against}")
        value -= reference[threshold.metric]
    passed = (threshold.low is None or value >= threshold.low) and (threshold.high is None or value <= threshold.high)
    return Verdict(threshold, "passed" if passed else "missed", len(pairs), value)


def _pairs(result: RunResult, arm: str) -> list[tuple[Item, Outcome]]:
    asked = AUTO if arm == ROUTED else arm
    found = [(item, result.outcomes[item.id, asked]) for item in result.items if (item.id, asked) in result.outcomes]
    return [(item, outcome) for item, outcome in found if not outcome.unavailable]


def _values(pairs: Sequence[tuple[Item, Outcome]], metric: str, scoring: Scoring | None) -> dict[tuple[str, str], float]:
    measured = {(item.id, item.question): of_outcome(item, outcome, scoring) for item, outcome in pairs}
    return {key: row[metric] for key, row in measured.items() if metric in row}


def _threshold(path: Path, text: str, number: int, check: Mapping[str, Any]) -> Threshold:
    _fields(path, text, number, check, _CHECK)
    if "metric" not in check:
        raise _wrong(path, text, number, "", 'metric is missing; write for example metric = "utility"')
    if check["metric"] not in METRICS:
        near = get_close_matches(check["metric"], sorted(METRICS), n=3) or sorted(METRICS)
        raise _wrong(path, text, number, "metric", f"{check['metric']!r} is none; known: {', '.join(near)}")
    if "min" not in check and "max" not in check:
        raise _wrong(path, text, number, "", "neither min nor max is given; write at least one")
    confidence = check.get("confidence")
    if confidence is not None and check["metric"] in WHOLE:
        raise _wrong(path, text, number, "confidence", f"{check['metric']} is of all answers together and has no interval; leave it out")
    if confidence is not None and not 0 < confidence < 1:
        raise _wrong(path, text, number, "confidence", f"{confidence}; give a share between 0 and 1, for example 0.95")
    for field in ("min", "max"):
        if not abs(check.get(field, 0)) < math.inf:
            raise _wrong(path, text, number, field, f"{check[field]}; give a finite number")
    if check.get("min", -math.inf) > check.get("max", math.inf):
        raise _wrong(path, text, number, "min", f"{check['min']} is above max ({check['max']}); no value could pass")
    arm, against = check.get("arm", ROUTED), check.get("against")
    if against == arm:
        raise _wrong(path, text, number, "against", f'{against!r} is the arm itself; name another, or "{LAST}" for the run before')
    return Threshold(check["metric"], arm, check.get("min"), check.get("max"), against, confidence)


def _fields(path: Path, text: str, number: int, values: Mapping[str, Any], known: Mapping[str, type | tuple[type, ...]]) -> None:
    for name, value in values.items():
        if name not in known:
            raise _wrong(path, text, number, name, f"unknown; known here: {', '.join(known)}")
        if not isinstance(value, known[name]) or isinstance(value, bool):
            raise _wrong(path, text, number, name, f"{value!r}; expected {_TYPES[known[name]]}")


def _wrong(path: Path, text: str, number: int, field: str, why: str) -> EvalError:
    """An error at a field of the check `number` (0: before the first one)."""
    line = _line(text, number, field)
    place = f"check {number}" if number else ""
    return EvalError(f"{path} line {line}: " + ": ".join(part for part in (place, field, why) if part))


def _line(text: str, number: int, field: str) -> int:
    """The line of a field, else of its check's heading, counted from 1."""
    seen, heading = 0, 1
    for place, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*\[\[\s*check\s*\]\]", line):
            seen += 1
            heading = place if seen == number else heading
        elif seen == number and field and re.match(rf"\s*['\"]?{re.escape(field)}['\"]?\s*=", line):
            return place
    return heading
