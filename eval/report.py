"""Runs as tables for a terminal, and two runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.groups import groups_of
from eval.metrics import of_outcome
from eval.run import RunResult
from eval.statistics import Interval, difference, not_shown
from eval.types import EvalError
from eval.utility import Scoring

# Metric: column heading and digits, in the order of the table.
COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("n", "n", 0),
    ("utility", "utility", 3),
    ("errors", "errors", 0),
    ("answered", "answered", 3),
    ("numeric_match", "numbers", 3),
    ("choice", "choice", 3),
    ("accuracy", "accuracy", 3),
    ("macro_f1", "macro F1", 3),
    ("item_f1", "item F1", 3),
    ("micro_f1", "micro F1", 3),
    ("token_f1", "F1", 3),
    ("exact_match", "EM", 3),
    ("rouge1", "R-1", 3),
    ("rouge2", "R-2", 3),
    ("rougeL", "R-L", 3),
    ("bleu", "BLEU", 1),
    ("chrf", "chrF", 1),
    ("refusal_correct", "refusal", 3),
    ("refusal_precision", "refuse P", 3),
    ("refusal_recall", "refuse R", 3),
    ("hallucination", "halluc.", 3),
    ("grounded", "grounded", 3),
    ("citation_precision", "cite P", 3),
    ("citation_recall", "cite R", 3),
    ("recall@5", "rec@5", 3),
    ("ndcg@10", "nDCG", 3),
    ("mrr", "MRR", 3),
    ("latency_p50_ms", "p50 ms", 0),
    ("latency_p95_ms", "p95 ms", 0),
    ("latency_p99_ms", "p99 ms", 0),
    ("first_token_p50_ms", "first ms", 0),
    ("tokens", "tokens", 0),
    ("cost", "cost", 5),
)
COMPARED: tuple[str, ...] = (
    "utility",
    "numeric_match",
    "choice",
    "accuracy",
    "item_f1",
    "token_f1",
    "exact_match",
    "rougeL",
    "chrf",
    "refusal_correct",
    "grounded",
    "citation_precision",
    "ndcg@10",
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of one arm in two runs, over the `n` questions both have; `interval` is of the second minus the first, and `few` says why
    it shows nothing, if it is of too few questions (see `eval.statistics.difference`)."""

    arm: str
    metric: str
    n: int
    first: float
    second: float
    interval: Interval
    few: str = ""

    @property
    def shown(self) -> bool:
        """Whether there is more than chance."""
        return self.interval.shown and not self.few

    @property
    def verdict(self) -> str:
        if not self.shown:
            return not_shown(self.few)
        return "higher" if self.interval.low > 0 else "lower"


def table(summary: Mapping[str, Any]) -> str:
    """A summary as plain text: every arm, the routed answers, the oracle; a dash where a measure does not apply."""
    rows = dict(summary["arms"])
    rows |= {name: summary[name] for name in ("routed", "oracle") if summary[name]}
    columns = [column for column in COLUMNS if any(column[0] in row for row in rows.values())]
    lines = grid([["arm", *(heading for _, heading, _ in columns)], *([name, *_cells(row, columns)] for name, row in rows.items())])
    for name in ("routed", "oracle"):
        if summary[name]:
            lines.append(f"{name}: " + ", ".join(f"{arm} {share:.0%}" for arm, share in summary[name]["mix"].items()))
    lines += [f"not run: {arm} ({reason})" for arm, reason in summary["unavailable"].items()]
    lines += [failures(summary)] if summary.get("errors") else []
    return "\n".join(lines)


def failures(summary: Mapping[str, Any]) -> str:
    """How many answers of a run failed, in words."""
    return f"{summary['errors']} answer{'s' * (summary['errors'] > 1)} failed, the first with: {summary['first_error']}"


def compare(first: RunResult, second: RunResult, scoring: Scoring | None = None) -> list[Difference]:
    """Each arm and metric that both runs have, paired by question (same id and text), with a 95 % bootstrap interval over
    the questions' groups.

    Raises EvalError when the runs have no question and arm in common.
    """
    questions = {item.id: item for item in first.items}
    common = [item for item in second.items if item.id in questions and questions[item.id].question == item.question]
    groups = groups_of(common)
    arms = [arm for arm in dict.fromkeys(arm for _, arm in first.outcomes) if any(asked == arm for _, asked in second.outcomes)]
    found: list[Difference] = []
    for arm in arms:
        pairs = [
            (groups[item.id], of_outcome(questions[item.id], one, scoring), of_outcome(item, two, scoring))
            for item in common
            if (one := first.outcomes.get((item.id, arm))) and (two := second.outcomes.get((item.id, arm)))
        ]
        for metric in COMPARED:
            both = [(group, one[metric], two[metric]) for group, one, two in pairs if metric in one and metric in two]
            if both:
                of, before, after = [group for group, _, _ in both], [one for _, one, _ in both], [two for _, _, two in both]
                interval, few = difference(after, before, of)
                found.append(Difference(arm, metric, len(both), sum(before) / len(both), sum(after) / len(both), interval, few))
    if not found:
        raise EvalError(f"{first.folder} and {second.folder} have no arm and question in common; compare runs over the same data set")
    return found


def compare_table(differences: Sequence[Difference]) -> str:
    """Differences as plain text."""
    rows = [["arm", "metric", "n", "first", "second", "difference", "95 % interval", ""]]
    for entry in differences:
        middle, low, high = entry.interval
        numbers = [str(entry.n), f"{entry.first:.3f}", f"{entry.second:.3f}", f"{middle:+.3f}", f"[{low:+.3f}, {high:+.3f}]"]
        rows.append([entry.arm, entry.metric, *numbers, entry.verdict])
    return "\n".join(grid(rows))


def compare_json(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    """Differences as plain data."""
    return [
        {
            "arm": entry.arm,
            "metric": entry.metric,
            "n": entry.n,
            "first": entry.first,
            "second": entry.second,
            "difference": entry.interval.difference,
            "low": entry.interval.low,
            "high": entry.interval.high,
            "verdict": entry.verdict,
        }
        for entry in differences
    ]


def _cells(row: Mapping[str, Any], columns: Sequence[tuple[str, str, int]]) -> list[str]:
    return [f"{row[metric]:.{digits}f}" if metric in row else "-" for metric, _, digits in columns]


def grid(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns aligned: the first to the left, the others to the right; a rule below the headings."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    ]
    return [lines[0].rstrip(), "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])]
