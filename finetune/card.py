"""The card of an adapter version: what it is, what it was trained on and how, what was measured, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

FILE = "README.md"
# Documents listed one by one; the rest are counted, and all of them are in version.json.
_LISTED = 50
# What Markdown would take for more than text; "_" only at the edge of a word.
_SIGNS = re.compile(r"[\\`*\[\]|#!]|(?<!\w)_|_(?!\w)")
_GATE = ("check", "result", "measure", "n", "this version", "compared with", "difference", "interval", "required", "note")


def card(facts: Mapping[str, Any], gates: Sequence[Mapping[str, Any]] = (), moves: Sequence[Mapping[str, Any]] = ()) -> str:
    """The card as Markdown.

    `facts` are those of `appliance adapter show --json`; what is missing there is left out. `gates` are the measurements before it could
    go live, `moves` when it did, both oldest first.
    """
    parts = [f"# {_plain(facts['version'])}", _intro(facts), _identity(facts), "## Trained on", _data(facts)]
    documents: Sequence[Mapping[str, Any]] = facts.get("document_hashes", ())
    if documents:
        shown = [(entry["id"], entry["sha256"], entry["pairs"]) for entry in documents[:_LISTED]]
        parts.append(_table(("document", "sha256", "pairs"), shown))
        if len(documents) > _LISTED:
            parts.append(f"and {len(documents) - _LISTED} more; all of them are in `version.json`.")
    parts += ["## Settings", _table(("setting", "value"), facts["config"].items())]
    if facts.get("libraries"):
        parts.append(_table(("library", "version"), facts["libraries"].items()))
    parts += ["## Figures of the training", _table(("figure", "value"), facts["metrics"].items())]
    if facts.get("curve"):
        parts.append(f"![loss over the steps]({facts['curve']})")
    parts.append("## Gate")
    parts += [part for gate in gates for part in _gate(gate)] or ["Not measured yet: `appliance adapter promote` does."]
    if moves:
        parts += ["## Went live", _table(("when", "in place of", "why"), [(move["at"], move["old"], move["why"]) for move in moves])]
    return "\n\n".join([*parts, "## Limits", _limits(facts)]) + "\n"


def _intro(facts: Mapping[str, Any]) -> str:
    return (
        f"A {_plain(facts['method'])} adapter for questions in the domain {_plain(facts['domain'])}. It works on its base model only, "
        f"{_plain(facts['base'])}."
    )


def _identity(facts: Mapping[str, Any]) -> str:
    names = {
        "sha256": "content (sha256)",
        "base_hash": "base model (sha256)",
        "template_hash": "chat template (sha256)",
        "data_hash": "training examples (sha256)",
        "created_at": "trained at",
        "seed": "seed",
        "parent": "parent version",
    }
    rows = [(name, facts[key]) for key, name in names.items() if facts.get(key) is not None]
    return _table(("what", "value"), [*rows, ("labels", ", ".join(facts["labels"]) or "none: everybody may use it")])


def _data(facts: Mapping[str, Any]) -> str:
    evidence: Mapping[str, int] = facts["evidence"]
    rows: list[tuple[str, Any]] = [("data set", f"{facts['dataset']}@{facts['dataset_version']}")]
    rows += [(f"its {name}", value) for name, value in (facts.get("dataset_counts") or {}).items()]
    rows += [(f"pairs with {kind} documents", count) for kind, count in evidence.items() if kind != "unlinked"]
    rows.append(("pairs with no document", evidence.get("unlinked", 0)))
    rows.append(("documents", len(facts.get("document_hashes", ()))))
    if facts.get("deleted_documents"):
        rows.append(("deleted since, text of", facts["deleted_documents"]))
    return _table(("what", "value"), rows)


def _gate(gate: Mapping[str, Any]) -> list[str]:
    other = gate["reference"] or "the base model"
    verdict = "passed" if gate["passed"] else "missed"
    rows = [
        (
            check["name"],
            check["status"],
            check["measure"],
            check["n"],
            check["candidate"],
            check["reference"],
            check["difference"],
            None if check["low"] is None else f"[{check['low']:+.3f}, {check['high']:+.3f}]",
            check["required"],
            check["note"],
        )
        for check in gate["checks"]
    ]
    left_out = "; ".join(f"{count} {reason}" for reason, count in gate["left_out"].items()) or "none"
    return [
        f"**{verdict}** {_plain(gate['created_at'])}, compared with {_plain(other)} (gate {_plain(gate['id'])}).",
        _table(_GATE, rows),
        f"Questions left out: {_plain(left_out)}.",
    ]


def _limits(facts: Mapping[str, Any]) -> str:
    lines = [
        "- Alone (`finetuned`) it answers from what it learned and cites nothing; `hybrid` cites passages.",
        "- What it learned goes stale with the documents above; the router weighs that for each question.",
    ]
    if facts["labels"]:
        lines.append("- Callers who lack any of its labels get no answer from it.")
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Any) -> str:
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(key)}: {_cell(entry)}" for key, entry in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(entry) for entry in value) or "–"
    return _plain(value)


def _plain(value: Any) -> str:
    """Text that is nothing but text in Markdown: a data set's or a document's name is whatever a team calls it."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return _SIGNS.sub(r"\\\g<0>", text)
