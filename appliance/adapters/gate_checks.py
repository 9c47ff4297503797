"""The rows of a gate's table: what was measured, what was required, and whether that was shown; and gates as they are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa

from appliance.store import schema
from appliance.workspace import Workspace
from eval.statistics import FEWEST, paired_bootstrap, questions_needed


@dataclass(frozen=True, slots=True)
class Check:
    """One thing a gate looks at. `candidate` and `reference` are means of `measure` over `n` questions, `low` and `high` the interval of
    their difference. `skipped` is never counted as passed; `note` says why, or what the questions could not show.
    """

    name: str
    status: Literal["passed", "missed", "skipped"]
    measure: str
    n: int = 0
    candidate: float | None = None
    reference: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    required: str = ""
    note: str = ""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Check:
        """The inverse of `dataclasses.asdict`."""
        return cls(**values)


@dataclass(frozen=True, slots=True)
class GateResult:
    """What a gate measured. `reference` is the version that was live, None for none; `runs` hold the answers."""

    id: str
    adapter: str
    reference: str | None
    passed: bool
    settings: Mapping[str, Any]
    checks: tuple[Check, ...]
    left_out: Mapping[str, int]
    runs: tuple[str, ...]
    created_at: datetime

    def to_json(self) -> dict[str, Any]:
        """As `adapter promote --json` prints it."""
        return {**asdict(self), "created_at": self.created_at.isoformat(timespec="seconds")}


def skipped(name: str, measure: str, why: str) -> Check:
    """What was not measured, and why."""
    return Check(name, "skipped", measure, note=why)


def compare(
    name: str,
    measure: str,
    candidate: Sequence[float],
    reference: Sequence[float],
    above: float,
    *,
    confidence: float,
    strict: bool,
) -> Check:
    """Whether the mean of ``candidate - reference`` over the same questions lies above `above`; more is better.

    Passed where the lower bound of its BCa interval (10,000 resamples, seed 0) does, missed where the upper bound does not. In between,
    and from fewer than FEWEST questions, nothing is shown: the mean decides, or with `strict` the check is missed. The note says so, and
    how many questions would show it if mean and spread stayed the same.
    """
    difference, low, high = paired_bootstrap(candidate, reference, confidence=confidence, method="bca")
    n = len(candidate)
    enough = n >= FEWEST
    notes: list[str] = []
    if enough and low >= above:
        passed = True
    elif enough and high < above:
        passed = False
        notes.append("shown to be worse" if above <= 0 else "shown to gain less")
    else:
        passed = difference >= above and not strict
        if low <= 0 <= high or not enough:
            notes.append("no difference shown")
        needed = questions_needed(candidate, reference, above, confidence)
        needed = max(needed, FEWEST) if needed is not None else None
        decided = "strict: not shown is missed" if strict else "the mean decided"
        more = f"about {needed} questions would show it" if needed is not None and needed > n else ""
        notes += [f"too few questions to tell ({n})", *([more] if more else []), decided]
    if low > 0 and enough:
        notes.append("shown to be better")
    return Check(
        name,
        "passed" if passed else "missed",
        measure,
        n,
        sum(candidate) / n,
        sum(reference) / n,
        difference,
        low,
        high,
        f"difference >= {above:+g}",
        "; ".join(notes),
    )


def ratio(name: str, measure: str, candidate: float, reference: float, at_most: float, n: int, *, slower: bool) -> Check:
    """Whether a time (`slower`: more of it is worse) or a speed stays within `at_most` times the reference's."""
    times = (candidate / reference if slower else reference / candidate) if candidate > 0 and reference > 0 else float("inf")
    return Check(
        name,
        "passed" if times <= at_most else "missed",
        measure,
        n,
        candidate,
        reference,
        candidate - reference,
        required=f"at most {at_most:g} times slower",
        note=f"{times:.2f} times",
    )


def gates_of(workspace: Workspace, name: str) -> list[GateResult]:
    """What was measured of the version called `name`, oldest first."""
    table = schema.gate
    with workspace.db.read() as connection:
        rows = connection.execute(sa.select(table).where(table.c.adapter == name).order_by(table.c.created_at, table.c.id))
        return [
            GateResult(**{**row._mapping, "checks": tuple(Check.from_json(check) for check in row.checks), "runs": tuple(row.runs)})
            for row in rows
        ]


def last_gate(workspace: Workspace, name: str) -> GateResult | None:
    """The newest measurement of the version called `name`."""
    return next(reversed(gates_of(workspace, name)), None)
