"""Pairs asked with passages (RAFT, Zhang et al. 2024, arXiv:2403.10131) against plain pairs: what `hybrid` answers with an adapter of each.

The same training questions, once alone and once with what the domain's own retriever finds for them: the passage with the answer, put
there where it was not found, beside others; for a fifth of them it is withheld, and the answer is that nothing was found. As many updates
of the same number of pairs for both. Then both adapters answer test questions with passages, a third of which have no answer in the index.
Worth as in router_proof.py, intervals over questions that share a document; `rag` is the base without an adapter. --state keeps answers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from embedding_cache import default_cache
from harness import Claim, above, finish, options, print_table
from proof_collect import BATCH, MAX_TOKENS, PASSAGE_TOKENS, TRAINING, folder_of, pairs, prepared
from proof_sets import SETS, Fold, ProofSet, Row, folds, write_jsonl

from appliance.answers.availability import readable
from appliance.answers.citations import align
from appliance.cli.session import Progress
from appliance.datasets.from_documents import ref
from appliance.datasets.registry import Datasets
from appliance.engines.base import Sampling
from appliance.evaluation.runs import answered
from appliance.service import Service, open_service
from appliance.training.tuning import tune
from appliance.workspace import Workspace
from eval.groups import groups_of
from eval.run import run
from eval.statistics import paired_bootstrap
from eval.types import Item, Outcome
from eval.utility import utility
from retrieval.types import DocumentKey, Passage, Scope

# RAFT's share of questions without their passage, as `dataset from-documents` has it.
WITHHELD = 0.2
KINDS = ("plain", "raft")


def collect(workspace: Workspace, folder: Path, chosen: ProofSet, fold: Fold, progress: Progress) -> dict[str, dict[str, Outcome]]:
    """By kind of adapter, and "rag", what every question got, by question id."""
    service = open_service(workspace)
    found = {"rag": asyncio.run(asked(workspace, folder / "outcomes-rag", "rag", chosen, fold.items, progress))}
    for kind in KINDS:
        rows = pairs(fold) if kind == "plain" else [with_passages(service, chosen.domain, row) for row in pairs(fold)]
        info = Datasets(workspace).add(write_jsonl(folder / f"{kind}.jsonl", rows), domain=chosen.domain, name=kind).info
        version = next((one for one in service.registry.versions(chosen.domain) if one.dataset_version == info.version), None)
        if version is None:
            version, _ = tune(service, chosen.domain, kind, TRAINING, lambda event: progress("training", event["step"], event["steps"]))
        service.registry.promote(version.name, f"{kind} pairs")
        found[kind] = asyncio.run(asked(workspace, folder / f"outcomes-{kind}", "hybrid", chosen, fold.items, progress))
    return found


def with_passages(service: Service, domain: str, row: Row) -> dict[str, Any]:
    """The pair as a row that is trained on with passages."""
    scope = Scope(frozenset({domain}), frozenset())
    config = service.workspace.config.retrieval
    passages = readable(service.knowledge.search(row["question"], scope, 2 * config.k).passages, config.flagged)
    others = [passage for passage in passages if passage.document.id not in row["doc_ids"]]
    right = [passage for passage in passages if passage.document.id in row["doc_ids"]]
    gold = best(row["answer"], right or chunks_of(service, domain, row))
    rest = service.answering.within_budget(others)
    if gold is None or (random.Random(row["id"]).random() < WITHHELD and rest):
        refs = [ref(passage, "negative") for passage in rest] + ([ref(gold, "withheld")] if gold is not None else [])
        return {**row, "doc_ids": [], "answer": "-", "answerable": False, "passages": [asdict(each) for each in refs]}
    place = min(passages.index(gold), len(rest)) if gold in passages else random.Random(row["id"]).randrange(len(rest) + 1)
    shown = service.answering.within_budget([*others[:place], gold, *others[place:]])
    if gold not in shown:
        shown = service.answering.within_budget([gold, *others])
    return {**row, "passages": [asdict(ref(passage, "gold" if passage is gold else "negative")) for passage in shown]}


def chunks_of(service: Service, domain: str, row: Row) -> list[Passage]:
    """The passages of the gold documents, which the search did not find."""
    found: list[Passage] = []
    for name in row["doc_ids"]:
        info = service.knowledge.documents.current(DocumentKey(domain, name))
        if info is not None:
            found += [Passage(chunk, info, 0.0, None, None) for chunk in service.knowledge.documents.chunks(info.key)]
    return found


def best(answer: str, passages: Sequence[Passage]) -> Passage | None:
    """The passage that supports most of the answer, else the first."""
    cited, _ = align(answer, passages, 0.0)
    if cited:
        most = max(cited, key=lambda citation: citation.support)
        for passage in passages:
            if passage.document.id == most.doc_id and passage.chunk.start <= most.start < passage.chunk.end:
                return passage
    return passages[0] if passages else None


async def asked(
    workspace: Workspace, folder: Path, arm: str, chosen: ProofSet, items: Sequence[Item], progress: Progress
) -> dict[str, Outcome]:
    # Its engine belongs to this event loop.
    service = open_service(workspace)

    async def ask(item: Item, arm: str) -> Outcome:
        return await answered(service, item, arm, chosen.domain, Sampling(max_tokens=MAX_TOKENS))

    try:
        result = await run(items, [arm], ask, folder, concurrency=BATCH, progress=lambda done, of: progress(folder.name, done, of))
    finally:
        await service.answering.close()
    return {item.id: result.outcomes[item.id, arm] for item in items}


def compared(chosen: ProofSet, items: Sequence[Item], found: dict[str, dict[str, Outcome]]) -> list[dict[str, Any]]:
    """One row a kind; `gain` is over plain pairs."""
    groups = groups_of(items)
    worth = {kind: [utility(item, each[item.id]) or 0.0 for item in items] for kind, each in found.items()}
    rows = []
    for kind, values in worth.items():
        gain = paired_bootstrap(values, worth["plain"], groups=[groups[item.id] for item in items])
        refused = {yes: [found[kind][item.id].refused for item in items if item.answerable is yes] for yes in (True, False)}
        right = [value for value, item in zip(values, items, strict=True) if item.answerable]
        rows.append(
            {
                "set": chosen.name,
                "pairs": kind,
                "n": len(items),
                "utility": fmean(values),
                "gain": gain.difference,
                "low": gain.low,
                "high": gain.high,
                "utility_answerable": fmean(right) if right else None,
                "refused_answerable": fmean(refused[True]) if refused[True] else None,
                "refused_unanswerable": fmean(refused[False]) if refused[False] else None,
                "generated": fmean(found[kind][item.id].generated or 0.0 for item in items),
            }
        )
    return rows


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--sets", default="medquad,fineva", help="which, joined by commas (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=120, help="of each set (default: %(default)s)")
    parser.add_argument("--train", type=int, default=100, help="pairs each adapter is trained on (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=1000, help="at most so many in each index (default: %(default)s)")
    parser.add_argument("--state", type=Path, default=default_cache() / "raft_pairs", help="where answers are kept")
    given = parser.parse_args()
    if given.data is None:
        parser.error("this needs the data sets: --data DIR")
    questions, train, documents = (12, 8, 60) if given.quick else (given.questions, given.train, given.documents)
    names = ["medquad"] if given.quick else given.sets.split(",")
    if unknown := set(names) - {one.name for one in SETS}:
        parser.error(f"--sets: unknown {', '.join(sorted(unknown))}; known: {', '.join(one.name for one in SETS)}")
    rows: list[dict[str, Any]] = []
    claims: list[Claim] = []
    with Progress() as progress:
        for chosen in (one for one in SETS if one.name in names):
            fold = folds(given.data, chosen, questions * chosen.folds, train)[0]
            folder = folder_of(given.state / f"{questions}-{train}", chosen, 0, documents)
            with prepared(folder, given.data, chosen, fold, documents, default_cache() / "embeddings.db", progress) as workspace:
                found = compared(chosen, fold.items, collect(workspace, folder, chosen, fold, progress))
            rows += found
            if not given.quick:
                claims += [above(f"raft_gain_ci_low.{row['set']}", row["low"], 0.0, "utility") for row in found if row["pairs"] == "raft"]
    print_table("hybrid with an adapter of plain pairs and of pairs with passages", rows)
    settings = {"quick": given.quick, "sets": names, "questions": questions, "train": train, "documents": documents}
    settings |= {"training": TRAINING.to_json(), "max_tokens": MAX_TOKENS, "passage_tokens": PASSAGE_TOKENS, "withheld": WITHHELD}
    finish(given.json, settings, rows, claims)


if __name__ == "__main__":
    main()
