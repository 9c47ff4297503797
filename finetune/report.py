"""The check of a data set as tables, which the terminal and the page show alike, and as a page that needs nothing besides itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from finetune.check import CheckReport

# Findings of one kind shown on the page; the JSON has them all.
SHOWN = 200
# Of a question or an answer, so much is shown.
_CHARACTERS = 300
_STYLE = (
    "body{font:15px/1.5 system-ui,'Noto Sans CJK SC',sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left;"
    "vertical-align:top;overflow-wrap:anywhere}th{background:#f2f2f2}td.n{text-align:right}h2{margin-top:2rem}"
    ".bar{background:#4a7fb5;height:.8rem;display:inline-block}.ok{color:#17692b}.bad{color:#a11}"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One table of a report: what it tells, its columns, its rows."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[object, ...]]


def summary(report: CheckReport) -> Finding:
    """What is in a data set, by number."""
    rows: list[tuple[object, ...]] = [("pairs", report.total), ("rows left out when it was registered", report.excluded)]
    rows += [(f"split {name}", number) for name, number in report.splits.items()]
    rows += [(f"split {name}, planned", number) for name, number in report.planned.items()]
    rows += [(f"language {name}", number) for name, number in report.languages.items()]
    rows += [(f"answerable: {name}", number) for name, number in report.answerable.items()]
    rows.append(("pairs that name no documents", report.without_documents))
    rows.append(("compared with", ", ".join(report.compared) or "no other set"))
    return Finding("What is in it", ("what", "number"), rows)


def lengths(report: CheckReport) -> dict[str, dict[str, int]]:
    """The histograms of a report, by what they are of."""
    found = {"questions, characters": report.question_characters, "answers, characters": report.answer_characters}
    if report.tokens is not None:
        found |= {"prompts, tokens": report.tokens.prompt, "answers, tokens": report.tokens.answer}
    return found


def findings(report: CheckReport) -> list[Finding]:
    """Everything that was found, worst first, each finding a row; tables without any are left out."""
    tokens, coverage = report.tokens, report.coverage
    found = [
        Finding(
            "Leakage between splits",
            ("pair", "split", "pair", "split", "similarity"),
            [(twin.a, twin.a_split, twin.b, twin.b_split, twin.similarity) for twin in report.leakage],
        ),
        Finding(
            "Questions in other sets",
            ("pair", "split", "set", "its pair", "its split", "similarity", "leak"),
            [(s.id, s.split, s.other, s.other_id, s.other_split, s.similarity, "yes" if s.leak else "no") for s in report.shared],
        ),
        Finding(
            "Questions with several answers",
            ("question", "differ in", "pair", "answer"),
            [
                (_line(item.question), ", ".join(item.differ), name, _line(answer))
                for item in report.contradictions
                for name, answer in item.answers.items()
            ],
        ),
        Finding(
            "Personal data",
            ("pair", "field", "kind", "masked"),
            [(item.id, item.field, item.kind, item.masked) for item in report.personal],
        ),
        Finding(
            f"Over {tokens.limit} tokens" if tokens else "",
            ("pair", "by its"),
            [
                *((name, "prompt") for name in (tokens.prompt_too_long if tokens else ())),
                *((name, "answer") for name in (tokens.answer_too_long if tokens else ())),
                *((name, "prompt and answer together") for name in (tokens.together_too_long if tokens else ())),
            ],
        ),
        Finding("Poor answers", ("pair", "why"), [(note.id, note.reason) for note in report.answers]),
        Finding("Languages that differ", ("pair", "how"), [(note.id, note.reason) for note in report.other_language]),
        Finding("Unknown documents", ("pair", "documents"), [(name, ", ".join(ids)) for name, ids in report.unknown_documents.items()]),
        Finding("Pairs on an older text", ("pair",), [(name,) for name in (coverage.outdated if coverage else ())]),
        Finding(
            "Near duplicates within a split",
            ("pair", "split", "pair", "split", "similarity"),
            [(twin.a, twin.a_split, twin.b, twin.b_split, twin.similarity) for twin in report.duplicates],
        ),
        Finding("Knowledge base", ("what", "number"), _coverage(report)),
    ]
    return [finding for finding in found if finding.rows]


def verdict(report: CheckReport) -> list[str]:
    """What is wrong, one sentence each; where nothing is, how much that says."""
    return report.warnings() or ["Nothing wrong was found" + (" in what could be looked at; see the notes" if report.notes else "")]


def html(report: CheckReport, title: str) -> str:
    """A complete HTML document; every text of the data is escaped."""
    kind = "bad" if report.warnings() else "ok"
    head = "".join(f'<li class="{kind}">{escape(line)}</li>' for line in verdict(report))
    head += "".join(f"<li>Note: {escape(note)}</li>" for note in report.notes)
    body = _section(summary(report))
    body += "".join(f"<h2>Lengths: {escape(what)}</h2>{_bars(classes)}" for what, classes in lengths(report).items() if classes)
    body += "".join(map(_section, findings(report)))
    return (
        f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><ul>{head}</ul>{body}</body></html>\n"
    )


def _coverage(report: CheckReport) -> list[tuple[object, ...]]:
    found = report.coverage
    if found is None:
        return []
    return [
        ("pairs whose documents are known", found.declared),
        ("pairs without documents that were searched for", found.searched),
        ("... whose answer a passage supports", found.inferred),
        ("... that rest on nothing found", found.unlinked),
        ("documents", found.documents),
        ("documents with at least one pair", found.with_pairs),
    ]


def _line(text: str) -> str:
    return " ".join(text[:_CHARACTERS].split())


def _section(finding: Finding) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in finding.columns)
    lines = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in finding.rows[:SHOWN])
    rest = len(finding.rows) - SHOWN
    more = f"<p>… and {rest} more; the JSON has them all.</p>" if rest > 0 else ""
    return f"<h2>{escape(finding.title)}</h2><table><tr>{head}</tr>{lines}</table>{more}"


def _cell(value: object) -> str:
    return f'<td class="n">{value}</td>' if isinstance(value, int | float) else f"<td>{escape(str(value))}</td>"


def _bars(classes: Mapping[str, int]) -> str:
    most = max(classes.values(), default=0)
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{number}</td>'
        f'<td><span class="bar" style="width:{30 * number / most:.2f}rem"></span></td></tr>'
        for name, number in classes.items()
    )
    return f"<table>{rows}</table>"
