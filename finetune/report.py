"""The check of a data set as a page that needs nothing besides itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from finetune.check import CheckReport

# Findings of one kind shown on the page; the JSON has them all.
SHOWN = 200
_STYLE = (
    "body{font:15px/1.5 system-ui,'Noto Sans CJK SC',sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left;"
    "vertical-align:top;overflow-wrap:anywhere}th{background:#f2f2f2}td.n{text-align:right}h2{margin-top:2rem}"
    ".bar{background:#4a7fb5;height:.8rem;display:inline-block}.ok{color:#17692b}.bad{color:#a11}"
)


def html(report: CheckReport, title: str) -> str:
    """A complete HTML document; every text of the data is escaped."""
    coverage, tokens = report.coverage, report.tokens
    warnings = report.warnings()
    found = [
        *(("Splits", _table(("split", "pairs"), report.splits.items())),) * bool(report.splits),
        *(("Splits that training would use", _table(("split", "pairs"), report.planned.items())),) * bool(report.planned),
        ("Languages", _table(("language", "pairs"), report.languages.items())),
        ("Answerable", _table(("answerable", "pairs"), report.answerable.items())),
        ("Questions, characters", _bars(report.question_characters)),
        ("Answers, characters", _bars(report.answer_characters)),
    ]
    if tokens is not None:
        found += [("Prompts, tokens", _bars(tokens.prompt)), ("Answers, tokens", _bars(tokens.answer))]
        long = [
            *((name, "prompt") for name in tokens.prompt_too_long),
            *((name, "answer") for name in tokens.answer_too_long),
            *((name, "together") for name in tokens.together_too_long),
        ]
        found.append((f"Over {tokens.limit} tokens", _table(("pair", "by its"), long)))
    if coverage is not None:
        found.append(("Knowledge base", _table(("what", "number"), _coverage(report))))
        found.append(("Pairs on an older text", _table(("pair",), [(name,) for name in coverage.outdated])))
    found += [
        (
            "Leakage between splits",
            _table(
                ("pair", "split", "pair", "split", "similarity"), [(t.a, t.a_split, t.b, t.b_split, t.similarity) for t in report.leakage]
            ),
        ),
        (
            "Questions in other sets",
            _table(
                ("pair", "split", "set", "its pair", "its split", "similarity", "leak"),
                [(s.id, s.split, s.other, s.other_id, s.other_split, s.similarity, "yes" if s.leak else "no") for s in report.shared],
            ),
        ),
        (
            "Questions with several answers",
            _table(
                ("question", "differ in", "pair", "answer"),
                [
                    (c.question, ", ".join(c.differ), name, answer[:300])
                    for c in report.contradictions
                    for name, answer in c.answers.items()
                ],
            ),
        ),
        ("Personal data", _table(("pair", "field", "kind", "masked"), [(p.id, p.field, p.kind, p.masked) for p in report.personal])),
        ("Poor answers", _table(("pair", "why"), [(note.id, note.reason) for note in report.answers])),
        ("Languages that differ", _table(("pair", "how"), [(note.id, note.reason) for note in report.other_language])),
        ("Unknown documents", _table(("pair", "documents"), [(name, ", ".join(ids)) for name, ids in report.unknown_documents.items()])),
        (
            "Near duplicates within a split",
            _table(("pair", "pair", "split", "similarity"), [(t.a, t.b, t.a_split, t.similarity) for t in report.duplicates]),
        ),
    ]
    head = f"<p>{report.total} pairs</p>" + (
        "<ul>" + "".join(f'<li class="bad">{escape(line)}</li>' for line in warnings) + "</ul>"
        if warnings
        else '<p class="ok">Nothing wrong was found.</p>'
    )
    body = "".join(f"<h2>{escape(name)}</h2>{content}" for name, content in found if content)
    return (
        f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{head}{body}</body></html>\n"
    )


def _coverage(report: CheckReport) -> Iterable[tuple[str, object]]:
    found = report.coverage
    if found is None:
        return []
    share = f" ({found.with_pairs / found.documents:.0%})" if found.documents else ""
    return [
        ("pairs whose documents are known", found.declared),
        ("pairs without documents that were searched for", found.searched),
        ("… whose answer a passage supports", found.inferred),
        ("… that rest on nothing found", found.unlinked),
        ("documents", found.documents),
        ("documents with at least one pair", f"{found.with_pairs}{share}"),
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    every = list(rows)
    if not every:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in every[:SHOWN])
    more = f"<p>… and {len(every) - SHOWN} more; the JSON has them all.</p>" if len(every) > SHOWN else ""
    return f"<table><tr>{head}</tr>{lines}</table>{more}"


def _cell(value: object) -> str:
    return f'<td class="n">{value}</td>' if isinstance(value, int | float) else f"<td>{escape(str(value))}</td>"


def _bars(classes: Mapping[str, int]) -> str:
    most = max(classes.values(), default=0)
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{number}</td>'
        f'<td><span class="bar" style="width:{30 * number / most:.2f}rem"></span></td></tr>'
        for name, number in classes.items()
    )
    return f"<table>{rows}</table>" if rows else ""
