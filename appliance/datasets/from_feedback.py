"""`appliance dataset from-feedback` and `from-expert`: training pairs out of what people said about answers, to be reviewed before use.

What rests on a deleted document is left out, and so is what carries labels that its documents would not hand on to an adapter.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.answers.feedback import Feedback, Given
from appliance.answers.refusals import declines
from appliance.datasets.drafts import check_new, write_draft
from appliance.datasets.registry import Datasets
from appliance.experts.use import expert_names, preferences
from appliance.service import Service
from finetune.near import near_duplicates
from retrieval.text import detect_lang, normalise_question
from retrieval.types import DocumentKey


@dataclass(frozen=True, slots=True)
class Collected:
    """What was written: `pairs` to `file` (None: nothing to write), counted by where they come from, and what was left out by reason."""

    file: Path | None
    pairs: int
    by_method: Mapping[str, int]
    left_out: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        file = None if self.file is None else str(self.file)
        return {"file": file, "pairs": self.pairs, "by_method": dict(self.by_method), "left_out": dict(self.left_out)}


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A pair that may be written, best first by the order of its list."""

    question: str
    answer: str
    rejected: str | None
    documents: Sequence[tuple[str, str]]
    labels: frozenset[str]
    method: str
    # What it rests on, too: a deletion of that reaches the pair by it (see `appliance.datasets.deleted`).
    provenance: Mapping[str, Any]


def from_feedback(service: Service, domain: str, file: Path, *, with_rejected: bool = False) -> Collected:
    """Write what people approved or corrected in `domain`: approved answers, then corrections, then answers rated up.

    `with_rejected` writes preferences instead: corrections with the answer they correct. Of several pairs that ask the same, the first of
    that order stays, and of one kind the newest; questions of the domain's data sets are left out. Raises UsageError for an unknown domain
    or a file in the way.
    """
    workspace = service.workspace
    workspace.check_domain(domain)
    check_new(file)
    left_out: Counter[str] = Counter()
    everything = Feedback(workspace.db, workspace.config.feedback).list(domain)
    given = [one for one in everything if not one.withheld]
    if len(given) < len(everything):
        left_out["a document was deleted"] = len(everything) - len(given)
    corrected = list(_corrections(given, with_rejected, left_out))
    candidates = corrected if with_rejected else [*_approved(service, domain, left_out), *corrected, *_liked(given, left_out)]
    return _write(service, domain, file, candidates, left_out)


def from_expert(service: Service, run: str, domain: str, file: Path) -> Collected:
    """Write the preferences and corrections of a run's experts in `domain`, each with the answer they rejected."""
    service.workspace.check_domain(domain)
    check_new(file)
    found, left_out = preferences(service, run)
    names = expert_names(service.workspace.db)
    candidates: list[_Candidate] = []
    for each in found:
        if each.domain not in (None, domain):
            left_out["another domain"] += 1
            continue
        provenance = {"run": run, "task": each.task, "experts": [names.get(name, name) for name in each.experts]}
        provenance |= {"adapters": list(each.adapters), "answered_at": each.answered_at.isoformat()}
        facts = (each.question, each.answer, each.rejected, each.documents, each.labels, each.method)
        candidates.append(_Candidate(*facts, provenance))
    return _write(service, domain, file, candidates, left_out)


def _approved(service: Service, domain: str, left_out: Counter[str]) -> Iterable[_Candidate]:
    for one in reversed(service.verified.all(domain)):
        if one.suspended:
            left_out["the approved answer is suspended"] += 1
            continue
        documents = list(dict.fromkeys((cited.domain, cited.doc_id) for cited in one.citations))
        provenance = {"verified": one.id, "approved_by": one.approved_by, "answered_at": one.created_at.isoformat()}
        yield _Candidate(one.question, one.answer, None, documents, one.labels, "approved answer", provenance)


def _corrections(given: Iterable[Given], with_rejected: bool, left_out: Counter[str]) -> Iterable[_Candidate]:
    for one in given:
        if one.correction is None:
            continue
        if not one.question:
            left_out["a correction without its question"] += 1
        elif with_rejected and (not one.answer or one.arm == "refuse"):
            left_out["a correction without its answer"] += 1
        else:
            rejected = one.answer if with_rejected else None
            yield _Candidate(one.question, one.correction, rejected, one.documents, one.labels, "correction", _source(one))


def _liked(given: Iterable[Given], left_out: Counter[str]) -> Iterable[_Candidate]:
    for one in given:
        if one.correction is not None:
            continue
        if one.rating == "down":
            left_out["rated down without a correction"] += 1
        elif not one.question or not one.answer:
            left_out["its text was not kept"] += 1
        elif one.arm == "refuse" or declines(one.answer):
            left_out["not an answer"] += 1
        else:
            yield _Candidate(one.question, one.answer, None, one.documents, one.labels, "rated up", _source(one))


def _source(given: Given) -> dict[str, Any]:
    facts = {"answer": given.answer_id, "caller": given.caller, "arm": given.arm, "adapter": given.adapter}
    return {**facts, "answered_at": given.answered_at.isoformat()}


def _write(service: Service, domain: str, file: Path, candidates: Iterable[_Candidate], left_out: Counter[str]) -> Collected:
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, ...]] = set()
    known = _known(service, domain)
    for each in candidates:
        asked = normalise_question(each.question)
        same = (asked, each.answer, each.rejected) if each.rejected is not None else (asked,)
        documents = [name for owner, name in each.documents if owner == domain]
        infos = [service.knowledge.documents.current(DocumentKey(domain, name)) for name in documents]
        handed_on = frozenset[str]().union(*(info.labels for info in infos if info is not None))
        reason = (
            f"in the data set {known[asked]} already" if each.rejected is None and asked in known
            else "asked already" if same in seen
            else "both answers are the same" if each.rejected is not None and each.rejected.strip() == each.answer.strip()
            else "its labels are not those of its documents" if not each.labels <= handed_on
            else ""
        )  # fmt: skip
        if reason:
            left_out[reason] += 1
            continue
        seen.add(same)
        name = hashlib.sha256(" ".join((each.method, *same)).encode("utf-8", "replace")).hexdigest()[:12]
        row = {"id": f"{domain}-{name}", "review": "pending", "question": each.question, "answer": each.answer}
        rows.append(
            row
            | ({"rejected": each.rejected} if each.rejected is not None else {})
            | {"lang": detect_lang(each.question), "domain": domain, "doc_ids": documents, "labels": sorted(each.labels)}
            | {"method": each.method, "provenance": {**each.provenance, "documents": [list(name) for name in each.documents]}}
        )
    kept = [row for row, near in zip(rows, _near(rows), strict=True) if not near]
    if len(kept) < len(rows):
        left_out["asked already in other words"] += len(rows) - len(kept)
    if kept:
        write_draft(file, kept)
    return Collected(
        file=file if kept else None,
        pairs=len(kept),
        by_method=dict(Counter(str(row["method"]) for row in kept).most_common()),
        left_out=dict(left_out.most_common()),
    )


def _near(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Which rows ask what an earlier one asks; several preferences may be about one question."""
    if any("rejected" in row for row in rows):
        return [False] * len(rows)
    later = {right for _, right, _ in near_duplicates([str(row["question"]) for row in rows])}
    return [number in later for number in range(len(rows))]


def _known(service: Service, domain: str) -> dict[str, str]:
    """The questions of the domain's data sets, after normalising, and the set each is in."""
    datasets = Datasets(service.workspace)
    sets = [info for info in datasets.all() if info.domain in (None, domain)]
    return {normalise_question(pair.question): info.name for info in sets for pair in datasets.pairs(info)}
