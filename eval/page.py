"""A run as a page: HTML in one file without anything from elsewhere, or Markdown with its plots beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eval import plots
from eval.calibration import Point, brier, ece, reliability, risk_coverage
from eval.groups import groups_of
from eval.metrics import of_outcome
from eval.page_template import HTML
from eval.plots import Format, Plot
from eval.report import COLUMNS, Difference, failures
from eval.run import RunResult
from eval.statistics import Interval, difference, grouped_bootstrap
from eval.types import AUTO, Item, Outcome
from eval.utility import Scoring, utility

# What is compared between arms on the page.
COMPARED: Final = ("utility", "token_f1", "rougeL", "numeric_match", "choice", "accuracy", "item_f1", "grounded", "latency_ms", "tokens")
_HEADINGS: Final = ("arms", "metric", "n", "best arm", "other", "difference", "95 % interval", "")
JUDGED: Final = ("judge", "answers of", "correctness", "completeness", "harm", "utility", "preferred", "unreadable")
_EXAMPLES: Final = 12
_LONGEST: Final = 600
_MARKDOWN: Final = re.compile(r"([\\`*_{}\[\]<>#|~])")


@dataclass(frozen=True, slots=True)
class Answered:
    """One arm's answer in an example."""

    arm: str
    text: str
    utility: float | None


@dataclass(frozen=True, slots=True)
class Example:
    """A question with every arm's answer; `lost` is what the routed answer was worth less than the best one."""

    question: str
    gold: str
    answers: tuple[Answered, ...]
    lost: float


@dataclass(frozen=True, slots=True)
class Page:
    """Everything that a page says, whatever it is written in."""

    title: str
    facts: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    comparisons: tuple[Difference, ...]
    notes: tuple[str, ...]
    plots: tuple[Plot, ...]
    examples: tuple[Example, ...]
    judged: tuple[tuple[str, ...], ...] = ()


def page(
    result: RunResult,
    title: str,
    scoring: Scoring | None = None,
    facts: Mapping[str, str] | None = None,
    format: Format = "svg",
    judges: Sequence[Mapping[str, Any]] = (),
) -> Page:
    """What there is to say about a finished run; `facts` are shown at its head, `judges` are what models said of its answers (see
    `eval.judge.summary`, with the judge's name as `judge`). Raises ValueError if it is not finished."""
    if result.summary is None:
        raise ValueError("the run is not finished")
    scoring = scoring or Scoring()
    rows = dict(result.summary["arms"]) | {name: result.summary[name] for name in ("routed", "oracle") if result.summary[name]}
    columns = [column for column in COLUMNS if any(column[0] in row for row in rows.values())]
    measured, groups = _measured(result, scoring), groups_of(result.items)
    notes = [f"{arm} was not run: {reason}" for arm, reason in result.summary["unavailable"].items()]
    for name in ("routed", "oracle"):
        if name in rows:
            notes.append(f"{name}: " + ", ".join(f"{arm} {share:.0%}" for arm, share in rows[name]["mix"].items()))
    if result.summary.get("errors"):
        notes.append(failures(result.summary))
    if result.summary.get("reused"):
        notes.append(
            f"{result.summary['reused']} outcomes were taken over from earlier runs in the same state, with the times they had there"
        )
    notes += [_agreed(judge) for judge in judges]
    sure = _routed(result, scoring)
    if sure:
        confidences, qualities = [one for one, _ in sure], [two for _, two in sure]
        errors = f"ECE {ece(confidences, qualities):.3f}, Brier {brier(confidences, qualities):.3f}"
        notes.append(f"what the router expected, with worth from -1 to 1 taken as 0 to 1: {errors}")
    return Page(
        title=title,
        facts=tuple((facts or {}).items()),
        columns=("arm", *(heading for _, heading, _ in columns)),
        rows=tuple(
            (name, *(f"{row[metric]:.{digits}f}" if metric in row else "–" for metric, _, digits in columns)) for name, row in rows.items()
        ),
        comparisons=tuple(comparisons(measured, groups)),
        notes=tuple(notes),
        plots=tuple(_plots(measured, groups, sure, _risk(result, scoring), format)),
        examples=tuple(_examples(result, scoring)),
        judged=tuple(row for judge in judges for row in judged_rows(judge)),
    )


def judged_rows(judge: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What a model as judge said, as rows under JUDGED: scores of each arm, and how often the first of two was preferred."""

    def number(value: Mapping[str, float] | None) -> str:
        return "–" if value is None else f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"

    name, scores = judge["judge"], JUDGED[2:6]
    rows = [(name, arm, *(number(row.get(score)) for score in scores), "–", str(row["unreadable"])) for arm, row in judge["arms"].items()]
    for row in judge["pairs"]:
        compared = f"{row['first']} over {row['second']}"
        said = f"{number(row['first_preferred'])} {row.get('preferred') or ''}".strip()
        rows.append((name, compared, *["–"] * len(scores), said, str(row["unreadable"])))
    return rows


def _agreed(judge: Mapping[str, Any]) -> str:
    if not judge["agreement"]:
        return f"the judge {judge['judge']}: no expert has judged these answers, how far it can be relied on is not known"
    kappas = {name: "–" if row["kappa"] is None else f"{row['kappa']:.2f}" for name, row in judge["agreement"].items()}
    said = (f"{name} κ {kappas[name]} (n = {row['n']})" for name, row in judge["agreement"].items())
    return f"the judge {judge['judge']} and the experts: {', '.join(said)}"


def comparisons(measured: Mapping[str, Mapping[str, Mapping[str, float]]], groups: Mapping[str, str]) -> list[Difference]:
    """Every arm against the best single one by utility (and the routed answers against it), over the questions that both have.

    `measured` maps arm, question and metric to values, `groups` a question to its group. The interval is BCa, paired by question;
    `first` is the best arm, which `verified` cannot be: it only repeats an expert.
    """
    singles = {arm: values for arm, values in measured.items() if arm not in ("routed", "verified")}
    means = {
        arm: sum(row["utility"] for row in rows.values()) / len(rows) for arm, found in singles.items() if (rows := _with(found, "utility"))
    }
    if not means:
        return []
    best = max(means, key=lambda arm: means[arm])
    found: list[Difference] = []
    for arm in [name for name in measured if name != best]:
        for metric in COMPARED:
            one, two = _with(measured[best], metric), _with(measured[arm], metric)
            both = [name for name in one if name in two]
            if both:
                before, after = [one[name][metric] for name in both], [two[name][metric] for name in both]
                interval, few = difference(after, before, [groups[name] for name in both])
                means_of = sum(before) / len(both), sum(after) / len(both)
                found.append(Difference(f"{arm} − {best}", metric, len(both), *means_of, interval, few))
    return found


def to_html(made: Page) -> str:
    """The page as HTML: plots inside, no script, nothing loaded from anywhere."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pictures = [(plot.title, base64.b64encode(plot.data).decode(), "svg+xml" if plot.format == "svg" else "png") for plot in made.plots]
    compared = [(_compared(entry), entry.shown) for entry in made.comparisons]
    return environment.from_string(HTML).render(page=made, pictures=pictures, headings=_HEADINGS, comparisons=compared, judged=JUDGED)


def to_markdown(made: Page, stem: str) -> tuple[str, dict[str, bytes]]:
    """The page as Markdown, and the files of its plots by name, which begin with `stem`."""
    files = {f"{stem}-{plot.name}.{plot.format}": plot.data for plot in made.plots}
    lines = [f"# {_plain(made.title)}", "", *(f"- {_plain(name)}: {_plain(value)}" for name, value in made.facts), ""]
    lines += [*_grid(made.columns, made.rows), "", *(f"- {_plain(note)}" for note in made.notes), ""]
    for plot, name in zip(made.plots, files, strict=True):
        lines += [f"![{_plain(plot.title)}]({name})", ""]
    if made.comparisons:
        lines += ["## Paired comparisons", "", *_grid(_HEADINGS, [_compared(entry) for entry in made.comparisons]), ""]
    if made.judged:
        lines += ["## Judged by a model", "", *_grid(JUDGED, made.judged), ""]
    if made.examples:
        lines += ["## Examples", ""]
    for example in made.examples:
        lines += [f"**{_plain(example.question)}**", "", f"Gold: {_plain(example.gold) or '(no answer in the documents)'}", ""]
        lines += [f"- {answer.arm} ({_number(answer.utility)}): {_plain(answer.text) or '(refused)'}" for answer in example.answers] + [""]
    return "\n".join(lines), files


def _measured(result: RunResult, scoring: Scoring) -> dict[str, dict[str, dict[str, float]]]:
    """Arm, question, metric: value. The routed answers are last, under "routed"."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    items = {item.id: item for item in result.items}
    for (name, arm), outcome in sorted(result.outcomes.items(), key=lambda entry: entry[0][1] == AUTO):
        values = of_outcome(items[name], outcome, scoring)
        if values:
            found.setdefault("routed" if arm == AUTO else arm, {})[name] = values
    return found


def _with(found: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, Mapping[str, float]]:
    return {name: row for name, row in found.items() if metric in row}


def _routed(result: RunResult, scoring: Scoring) -> list[tuple[float, float]]:
    """(worth the router expected, worth found) of the routed answers, both taken from [-1, 1] to [0, 1]."""
    pairs: list[tuple[float, float]] = []
    for item in result.items:
        outcome = result.outcomes.get((item.id, AUTO))
        if outcome is not None and outcome.predicted is not None and (worth := utility(item, outcome, scoring)) is not None:
            pairs.append(((min(1.0, max(-1.0, outcome.predicted)) + 1) / 2, (worth + 1) / 2))
    return pairs


def _risk(result: RunResult, scoring: Scoring) -> list[Point]:
    """The share of wrong ones among the routed answers, the surest first. What declines is no answer, and covers nothing."""
    sure: list[float] = []
    wrong: list[float] = []
    asked = 0
    for item in result.items:
        outcome = result.outcomes.get((item.id, AUTO))
        if outcome is not None and outcome.predicted is not None and (worth := utility(item, outcome, scoring)) is not None:
            asked += 1
            if not outcome.declined:
                sure.append(outcome.predicted)
                wrong.append(float(worth < 0))
    points = risk_coverage(sure, wrong) if sure else []
    return [point._replace(coverage=point.coverage * len(sure) / asked) for point in points]


def _plots(
    measured: Mapping[str, Mapping[str, Mapping[str, float]]],
    groups: Mapping[str, str],
    sure: Sequence[tuple[float, float]],
    risk: Sequence[Point],
    format: Format,
) -> list[Plot]:
    worth = {arm: _interval(rows, groups) for arm, found in measured.items() if (rows := _with(found, "utility"))}
    drawn: list[Plot] = []
    if worth:
        drawn.append(plots.bars("Utility by arm, 95 % interval", worth, "utility", format))
    priced = "cost" if all(_with(measured[arm], "cost") for arm in worth) else "tokens"
    places = {arm: (_mean(rows, priced), worth[arm]) for arm in worth if (rows := _with(measured[arm], priced))}
    if places:
        axis = "cost of an answer" if priced == "cost" else "tokens of an answer, read and generated"
        drawn.append(plots.plane("Cost and quality", places, axis, "utility", format))
    if risk:
        drawn.append(plots.risk_curves("Risk and coverage of the routed answers", {"routed": risk}, "share of these that is wrong", format))
    if sure:
        confidences, qualities = [one for one, _ in sure], [two for _, two in sure]
        drawn.append(
            plots.reliability_diagram("Expected and measured worth of the routed answers", reliability(confidences, qualities), format)
        )
    times = {arm: [row["latency_ms"] for row in rows.values()] for arm, found in measured.items() if (rows := _with(found, "latency_ms"))}
    if times:
        drawn.append(plots.histogram("Time to the whole answer", times, "ms", format))
    return drawn


def _examples(result: RunResult, scoring: Scoring) -> list[Example]:
    """The questions on which the routed answer (else the best arm on average) lost most against the best one, then by id."""
    asked = list(dict.fromkeys(arm for _, arm in result.outcomes))
    arms = [arm for arm in asked if arm != AUTO] + [arm for arm in asked if arm == AUTO]
    found: list[tuple[float, str, Example]] = []
    for item in result.items:
        answers = [_answered(item, arm, outcome, scoring) for arm in arms if (outcome := result.outcomes.get((item.id, arm))) is not None]
        known = [answer.utility for answer in answers if answer.utility is not None]
        if not known:
            continue
        routed = next((answer.utility for answer in answers if answer.arm.startswith("routed") and answer.utility is not None), min(known))
        lost = max(known) - routed
        found.append((-lost, item.id, Example(_short(item.question), _short(item.answer), tuple(answers), lost)))
    return [example for _, _, example in sorted(found, key=lambda entry: entry[:2])[:_EXAMPLES]]


def _answered(item: Item, arm: str, outcome: Outcome, scoring: Scoring) -> Answered:
    text = outcome.error if outcome.error is not None else outcome.text
    return Answered(f"routed: {outcome.arm}" if arm == AUTO else arm, _short(text), utility(item, outcome, scoring))


def _interval(rows: Mapping[str, Mapping[str, float]], groups: Mapping[str, str]) -> Interval:
    values = [row["utility"] for row in rows.values()]
    return grouped_bootstrap(values, [0.0] * len(values), [groups[name] for name in rows])[0]


def _mean(rows: Mapping[str, Mapping[str, float]], metric: str) -> float:
    return sum(row[metric] for row in rows.values()) / len(rows)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _compared(entry: Difference) -> tuple[str, ...]:
    middle, low, high = entry.interval
    numbers = (str(entry.n), f"{entry.first:.3f}", f"{entry.second:.3f}", f"{middle:+.3f}", f"[{low:+.3f}, {high:+.3f}]")
    return (entry.arm, entry.metric, *numbers, entry.verdict)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(columns), ["---"] * len(columns), *([_plain(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]
