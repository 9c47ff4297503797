"""What the router does when documents change after an adapter was trained on them, and what that is worth.

On the sample knowledge base and on CUAD an adapter learns answers that hold a number, nine tenths of those asked later. Then those
numbers are changed in a third of the documents, which are brought in again. The rules, and a router trained on all arms' answers from
before the change (out of fold: no question is decided by a router that learnt from it), decide every question again: as they are, and
blind to what has changed since the training. An answer is worth 1 with the number that the documents have now, -0.5 with any other,
refusing 0. Intervals are over documents. Also: which documents `appliance adapter stale` lists.

--state keeps the answers; the same command goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from changed_documents import ChangedSet, changed_sets
from embedding_cache import default_cache
from harness import Claim, above, at_least, at_most, finish, options, print_table
from proof_collect import ARMS, BATCH, MAX_TOKENS, PASSAGE_TOKENS, SETTINGS, bring_in, opened
from proof_sets import write_jsonl

from appliance.answers.situation import Turn
from appliance.cli.session import Progress
from appliance.datasets.registry import Datasets
from appliance.engines.base import Sampling
from appliance.evaluation.runs import answered, evaluator
from appliance.routing.gate import worth
from appliance.service import Service, open_service
from appliance.settings import DEFAULT_CHAT
from appliance.training.tuning import tune
from appliance.types import Request
from eval.run import run
from eval.statistics import difference
from eval.types import Item, Outcome
from eval.utility import utility
from finetune.settings import TrainSettings
from router.features import row_of
from router.fit import Labelled, cross_validated, train
from router.learned import LearnedRouter
from router.policy import RulePolicy
from router.types import TUNED, Decision, Router, Situation

# Until the adapter knows its pairs: what is measured is whether it is trusted with what it knows.
TRAINING = TrainSettings(epochs=8, batch_size=4, learning_rate=1e-3, patience=0)
LISTED = "listed as stale"
QUICK = TrainSettings(epochs=2, batch_size=4, learning_rate=1e-3, patience=0)


def collect(state: Path, chosen: ChangedSet, training: TrainSettings, progress: Progress) -> list[dict[str, Any]]:
    """Train, ask, change the documents, ask again; then one row for each router."""
    folder = state / chosen.name
    with opened(folder, SETTINGS) as workspace:
        service = open_service(workspace)
        # Also where the answers of a run before are there, which has left the changed ones.
        bring_in(service, folder / "documents.jsonl", chosen.name, chosen.documents, default_cache() / "embeddings.db", progress)
        if service.registry.live(chosen.name) is None:
            held_out = [item.id for item in chosen.before if not chosen.about_changed(item)][: len(chosen.before) // 10]
            rows = [{**pair_of(item), "split": "dev" if item.id in held_out else "train"} for item in chosen.before]
            Datasets(workspace).add(write_jsonl(folder / "pairs.jsonl", rows), domain=chosen.name, name="pairs")
            version, _ = tune(service, chosen.name, "pairs", training, lambda event: progress("training", event["step"], event["steps"]))
            service.registry.promote(version.name, "the only one")
        return asyncio.run(measured(service, folder, chosen, progress))


def pair_of(item: Item) -> dict[str, Any]:
    return {"id": item.id, "question": item.question, "answer": item.answer, "doc_ids": list(item.doc_ids), "lang": item.lang}


async def measured(service: Service, folder: Path, chosen: ChangedSet, progress: Progress) -> list[dict[str, Any]]:
    adapter = service.registry.live(chosen.name)
    assert adapter is not None
    try:
        labels, _ = await look(service, folder / "before", chosen, chosen.before, progress)
        bring_in(service, folder / "documents.jsonl", chosen.name, chosen.documents_after, default_cache() / "embeddings.db", progress)
        now, turns = await look(service, folder / "after", chosen, chosen.after, progress)
    finally:
        await service.answering.close()
    listed = {document.key.id for document in service.registry.freshness.of(adapter.name).documents}
    found = listing(chosen, listed)
    models = cross_validated(labels, train)
    routers: dict[str, list[Router]] = {
        "rules": [RulePolicy() for _ in turns],
        "trained": [LearnedRouter("trained", model, RulePolicy()) for model in models],
    }
    return [found, *(compared(chosen, name, each, now, [turn.situation for turn in turns]) for name, each in routers.items())]


async def look(
    service: Service, folder: Path, chosen: ChangedSet, items: Sequence[Item], progress: Progress
) -> tuple[list[Labelled], list[Turn]]:
    """Every arm's answers to the questions as labels, and how each question looks to a router."""

    async def ask(item: Item, arm: str) -> Outcome:
        return await answered(service, item, arm, chosen.name, Sampling(max_tokens=MAX_TOKENS))

    result = await run(items, ARMS, ask, folder, concurrency=BATCH, progress=lambda done, of: progress(folder.name, done, of))
    turns = [await service.answering.decide(Request(item.question, domain=chosen.name), evaluator(service)) for item in items]
    labels = []
    for item, turn in zip(items, turns, strict=True):
        values = {arm: utility(item, result.outcomes[item.id, arm]) for arm in ARMS}
        values["refuse"] = utility(item, Outcome("refuse", refused=True))
        labels.append(Labelled(item.id, item.doc_ids[0], item.lang, row_of(turn.decision.features), values))
    return labels, turns


def listing(chosen: ChangedSet, listed: set[str]) -> dict[str, Any]:
    return {
        "set": chosen.name,
        "what": LISTED,
        "n": len(chosen.changed),
        "recall": len(listed & chosen.changed) / len(chosen.changed),
        "precision": len(listed & chosen.changed) / len(listed) if listed else 0.0,
    }


def compared(
    chosen: ChangedSet, name: str, routers: Sequence[Router], now: Sequence[Labelled], seen: Sequence[Situation]
) -> dict[str, Any]:
    """One router with and without the facts of freshness: on the questions of changed documents, and how far the others are left alone."""
    told = [router.decide(situation) for router, situation in zip(routers, seen, strict=True)]
    blind = [router.decide(without_freshness(situation)) for router, situation in zip(routers, seen, strict=True)]
    about = [place for place, item in enumerate(chosen.after) if chosen.about_changed(item)]
    rest = [place for place in range(len(chosen.after)) if place not in about]
    values = {label: [worth(now[place], each[place].arm) for place in about] for label, each in (("told", told), ("blind", blind))}
    gain, few = difference(values["told"], values["blind"], [now[place].group for place in about])
    flipped = [place for place in about if told[place].arm != blind[place].arm]
    return {
        "set": chosen.name,
        "what": name,
        "n": len(about),
        "utility": fmean(values["told"]),
        "utility_blind": fmean(values["blind"]),
        "gain": gain.difference,
        "low": gain.low,
        "high": gain.high,
        "few": few,
        "flipped": len(flipped) / len(about),
        "told_why": sum(says_why(told[place], chosen) for place in flipped) / len(flipped) if flipped else None,
        "adapter": sum(told[place].arm in TUNED for place in about) / len(about),
        "adapter_blind": sum(blind[place].arm in TUNED for place in about) / len(about),
        "arms": dict(Counter(told[place].arm for place in about)),
        "arms_blind": dict(Counter(blind[place].arm for place in about)),
        "unchanged_n": len(rest),
        "unchanged_flipped": sum(told[place].arm != blind[place].arm for place in rest) / len(rest),
    }


def without_freshness(situation: Situation) -> Situation:
    if situation.adapter is None:
        return situation
    return replace(situation, adapter=replace(situation.adapter, stale_here=(), stale_share=0.0))


def says_why(decision: Decision, chosen: ChangedSet) -> bool:
    """A reason names a document that changed."""
    return any(document in reason for document in chosen.changed for reason in decision.reasons)


def claims_of(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    made = []
    for row in rows:
        if row["what"] == LISTED:
            made += [at_least(f"stale_recall.{row['set']}", row["recall"], 1.0, "share")]
            made += [at_least(f"stale_precision.{row['set']}", row["precision"], 1.0, "share")]
        else:
            made += [at_most(f"stale_trusted.{row['set']}.{row['what']}", row["adapter"], 0.0, "share")]
            made += [above(f"freshness_gain_ci_low.{row['set']}.{row['what']}", 0.0 if row["few"] else row["low"], 0.0, "utility")]
    return made


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--sets", default="sample,cuad", help="which, joined by commas (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=80, help="of each set (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=400, help="in each index (default: %(default)s)")
    parser.add_argument("--state", type=Path, default=default_cache() / "router_freshness", help="where answers are kept")
    given = parser.parse_args()
    names = ["sample"] if given.quick else given.sets.split(",")
    if unknown := set(names) - {"sample", "cuad"}:
        parser.error(f"--sets: unknown {', '.join(sorted(unknown))}; known: sample, cuad")
    chosen = changed_sets(given.data, names, 12 if given.quick else given.questions, 60 if given.quick else given.documents)
    training = QUICK if given.quick else TRAINING
    state = given.state / "quick" if given.quick else given.state
    rows: list[dict[str, Any]] = []
    with Progress() as progress:
        for each in chosen:
            rows += collect(state, each, training, progress)
    print_table("documents listed as stale", [row for row in rows if row["what"] == LISTED])
    print_table("questions about changed documents", [row for row in rows if row["what"] != LISTED])
    settings = {"quick": given.quick, "sets": [each.name for each in chosen], "questions": given.questions, "documents": given.documents}
    settings |= {"training": training.to_json(), "base": DEFAULT_CHAT, "max_tokens": MAX_TOKENS, "passage_tokens": PASSAGE_TOKENS}
    finish(given.json, settings, rows, [] if given.quick else claims_of(rows))


if __name__ == "__main__":
    main()
