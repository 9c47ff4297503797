"""Justifies the router's `weak`, the support below which a question is refused.

Every question of the sample is searched in its domain as when it is answered, with the real embedding model. Kinds: answerable with a
gold document on top ("right"), answerable with another one on top ("wrong"), the answerable ones again with their gold documents out
of sight ("withheld"), and those written to have no answer ("unanswerable"). Utility is that of `eval`, supposing that
UNANSWERABLE_SHARE of the questions have no answer (withheld and unanswerable pooled) and that an answer to another is worth VALUES.
"""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import sqlalchemy as sa
from harness import at_least, at_most, finish, options, print_table
from sample import CHOOSING, TEST, domains, pairs, slices

from appliance.answers.rewrite import self_contained
from appliance.cli.session import Progress
from appliance.demo import SAMPLE, open_workspace
from appliance.engines.base import Message
from appliance.service import Service, open_service, thresholds
from appliance.store import schema
from appliance.store.documents import SqlDocumentStore
from appliance.workspace import Workspace
from eval.utility import UtilitySettings
from finetune.types import Pair
from retrieval.index import Index
from retrieval.store import Members
from retrieval.text import detect_lang
from retrieval.types import DocumentKey, Evidence, Scope
from router.types import Situation

THRESHOLDS = tuple(step / 20 for step in range(4, 13))
KINDS = ("right", "wrong", "withheld", "unanswerable")
UNANSWERABLE_SHARE = 1 / 3
VALUES = (0.5, 0.6, 0.7)
# A threshold is "clearly better" only from this much utility on.
CLEARLY = 0.02


@dataclass(frozen=True, slots=True)
class Case:
    """One question beside its evidence; `support` is the router's."""

    set: str
    lang: str
    kind: str
    support: float

    @property
    def answerable(self) -> bool:
        return self.kind in ("right", "wrong")


class Without(SqlDocumentStore):
    """The store of a workspace with some documents out of sight."""

    def __init__(self, workspace: Workspace, keys: frozenset[DocumentKey]) -> None:
        super().__init__(workspace.db)
        versions = [live.version_id for live in self.live_documents() if live.key in keys]
        table = schema.document_version
        with workspace.db.read() as connection:
            self._contents = list(connection.execute(sa.select(table.c.content_id).where(table.c.id.in_(versions))).scalars())

    def members(self, generation_id: int, current: bool = False) -> Members:
        found = super().members(generation_id, current)
        return found.only(~np.isin(found.content, self._contents))


def open_sample(folder: Path, quick: bool) -> Service:
    """The sample, ingested into a workspace in `folder`; what is there already costs nothing."""
    service = open_service(open_workspace(folder))
    with Progress() as progress:
        service.models.pull(service.workspace.model(service.workspace.config.models.embedding), progress)
        for domain in domains(quick):
            service.knowledge.ingest([SAMPLE / domain / "documents"], domain=domain, prune=True, progress=progress)
    return service


def cases(service: Service, chosen: Sequence[Pair]) -> list[Case]:
    """Every question with its support, the answerable ones twice: with their gold documents and without."""
    knowledge = service.knowledge
    retrieval = service.workspace.config.retrieval
    without: dict[frozenset[DocumentKey], Index] = {}
    made: list[Case] = []
    for pair in chosen:
        domain = str(pair.domain)
        query = self_contained(pair.question, [Message(role=turn.role, content=turn.content) for turn in pair.history])
        scope = Scope(frozenset({domain}))
        part, gold = TEST if pair.split == TEST else CHOOSING, frozenset(DocumentKey(domain, doc_id) for doc_id in pair.doc_ids)

        def add(kind: str, evidence: Evidence, pair: Pair = pair, query: str = query, domain: str = domain, part: str = part) -> None:
            situation = Situation(question=query, lang=detect_lang(pair.question), domain=domain, evidence=evidence)
            made.append(Case(part, pair.lang, kind, service.answering.router.decide(situation).features["support"]))

        evidence = knowledge.search(query, scope)
        if not pair.answerable:
            add("unanswerable", evidence)
            continue
        add("right" if evidence.passages[0].document.key in gold else "wrong", evidence)
        if gold not in without:
            store = Without(service.workspace, gold)
            without[gold] = Index.open(store, knowledge.vectors, knowledge.embedder, knowledge.index().generation)
        add("withheld", without[gold].search(query, scope, retrieval.k, retrieval.candidates))
    return made


def refused(found: Sequence[Case], threshold: float) -> float | None:
    """The share of `found` below the threshold; None where there is none."""
    return sum(case.support < threshold for case in found) / len(found) if found else None


def utility(found: Sequence[Case], threshold: float, value: float) -> float:
    """The expected utility of a question, in [-1, 1]."""
    worth = UtilitySettings()
    open_share = refused([case for case in found if case.answerable], threshold) or 0.0
    closed_share = refused([case for case in found if not case.answerable], threshold) or 0.0
    answerable = (1 - open_share) * value + open_share * worth.refuse_answerable
    unanswerable = closed_share * worth.refuse_unanswerable + (1 - closed_share) * worth.answer_unanswerable
    return (1 - UNANSWERABLE_SHARE) * answerable + UNANSWERABLE_SHARE * unanswerable


def area(found: Sequence[Case]) -> float:
    """The probability that an answerable question has more support than another one (area under the ROC curve); ties count half."""
    high = [case.support for case in found if case.answerable]
    low = [case.support for case in found if not case.answerable]
    return sum((a > b) + 0.5 * (a == b) for a in high for b in low) / (len(high) * len(low))


def main() -> None:
    parser = options("The support below which a question is refused.")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep the ingested sample in DIR (default: a temporary folder)")
    arguments = parser.parse_args()
    # As the command line does, before anything imports torch: on a busy machine its threads otherwise spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as scratch:
        service = open_sample(arguments.cache or Path(scratch) / "workspace", arguments.quick)
        policy = thresholds(service.workspace)
        found = cases(service, pairs(arguments.quick))
        service.workspace.close()
    by_slice: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in found:
        by_slice[case.set, case.lang].append(case)
        by_slice[case.set, "all"].append(case)
    supports: list[dict[str, Any]] = []
    rates: list[dict[str, Any]] = []
    for part, lang in slices():
        kinds = {kind: [case for case in by_slice[part, lang] if case.kind == kind] for kind in KINDS}
        for kind, here in kinds.items():
            middle = median(case.support for case in here) if here else None
            supports.append({"set": part, "lang": lang, "kind": kind, "questions": len(here), "median_support": middle})
        for threshold in THRESHOLDS:
            row: dict[str, Any] = {"set": part, "lang": lang, "threshold": threshold}
            row |= {f"refused_{kind}": refused(here, threshold) for kind, here in kinds.items()}
            rates.append(row | {f"utility_{value}": utility(by_slice[part, lang], threshold, value) for value in VALUES})
    print_table("support by kind", supports)
    print_table("share refused below a threshold, and utility", rates)

    def regret(part: str, value: float) -> float:
        here = by_slice[part, "all"]
        return max(utility(here, threshold, value) for threshold in THRESHOLDS) - utility(here, policy.weak, value)

    trusted = [case for case in by_slice[CHOOSING, "all"] if case.answerable and case.support >= policy.strong]
    claims = [
        *(at_most(f"weak_regret_{value}.{part}", regret(part, value), CLEARLY, "utility") for part in (CHOOSING, TEST) for value in VALUES),
        *(at_least(f"support_auc.{part}", area(by_slice[part, "all"]), 0.8, "area") for part in (CHOOSING, TEST)),
        at_least(f"strong_right.{CHOOSING}", sum(case.kind == "right" for case in trusted) / max(len(trusted), 1), 0.95, "share"),
    ]
    settings = {"quick": arguments.quick, "in_use": policy.weak, "unanswerable_share": UNANSWERABLE_SHARE, "values": VALUES}
    finish(arguments.json, settings, [*supports, *rates], claims)


if __name__ == "__main__":
    main()
