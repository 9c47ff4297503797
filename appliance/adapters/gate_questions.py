"""The questions a gate asks: those of a data set that no version in the comparison was trained on."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance.adapters.registry import AdapterVersion
from appliance.datasets.registry import DatasetInfo, Datasets
from appliance.evaluation.runs import items
from appliance.service import Service
from appliance.training.data import DOCUMENTS
from eval.types import Item
from finetune.dataset import asked
from finetune.near import overlaps
from finetune.types import Pair


@dataclass(frozen=True, slots=True)
class Questions:
    """What may be asked of a data set: questions with an answer, those without one, and how many were left out, by reason."""

    info: DatasetInfo
    answerable: tuple[Item, ...]
    unanswerable: tuple[Item, ...]
    left_out: Mapping[str, int]

    def nothing_left(self) -> str:
        """Why there is no question with an answer to ask."""
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.left_out.items())
        return f"no question of {self.info.name} is left to ask ({reasons or 'it has none with an answer'})"


@dataclass(frozen=True, slots=True)
class Trained:
    """What versions were trained on: the questions, and the (data set, version, pair id) they are of."""

    questions: tuple[str, ...]
    ids: frozenset[tuple[str, str, str]]


def trained_on(service: Service, versions: Sequence[AdapterVersion]) -> Trained:
    """The training questions of `versions`, of the versions they were started from, and of a model version that is their base.

    Raises ApplianceError where a data set that was trained on is gone: what leaks could not be told.
    """
    datasets = Datasets(service.workspace)
    questions: dict[str, None] = {}
    ids: set[tuple[str, str, str]] = set()
    seen: set[str] = set()
    waiting = list(versions)
    while waiting:
        version = waiting.pop()
        if version.name in seen:
            continue
        seen.add(version.name)
        known = {link.pair_id for link in service.registry.links(version.name)}
        if version.dataset != DOCUMENTS:
            info = datasets.state(version.dataset, version.dataset_version)
            for pair in datasets.pairs(info):
                if pair.id in known:
                    questions[asked(pair)] = None
                    ids.add((info.name, info.version, pair.id))
        model = service.registry.model_at(version.base)
        if model is not None:
            waiting.append(model)
        # A version carries the links of the one it was started from; one it only replaces may have other pairs.
        if version.parent is not None:
            parent = service.registry.find(version.parent)
            if parent is not None and {link.pair_id for link in service.registry.links(parent.name)} <= known:
                waiting.append(parent)
    return Trained(tuple(questions), frozenset(ids))


def questions_of(
    service: Service, info: DatasetInfo, domain: str | None, trained: Trained, languages: Sequence[str], limit: int
) -> Questions:
    """At most `limit` questions of each kind from the test split of `info`, else from what is not its train split, else from all of it.

    Left out: questions of other domains than `domain` (None: of none), in languages the engine does not declare, without a gold answer, and
    those trained on, which are the same pair, the same question, or a near duplicate. Those that stay are chosen by their ids, so that the
    next gate asks them again.
    """
    pairs = Datasets(service.workspace).pairs(info)
    pool = [pair for pair in pairs if pair.split == "test"] or [pair for pair in pairs if pair.split != "train"] or pairs
    leaked = _leaked(info, pool, trained)
    left_out: Counter[str] = Counter()
    kept: list[Pair] = []
    for number, pair in enumerate(pool):
        reason = (
            "other domain" if domain is not None and pair.domain not in (None, domain)
            else f"language {pair.lang} not declared by the engine" if pair.lang not in languages
            else "without a gold answer" if pair.answerable and not pair.answer.strip()
            else leaked.get(number)
        )  # fmt: skip
        if reason is None:
            kept.append(pair)
        else:
            left_out[reason] += 1
    chosen: list[tuple[Item, ...]] = []
    for answerable in (True, False):
        found = sorted((pair for pair in kept if pair.answerable == answerable), key=lambda pair: _place(pair.id))
        if len(found) > limit:
            left_out["beyond the number of questions asked"] += len(found) - limit
        chosen.append(tuple(items(found[:limit], None, None, service.workspace.config.eval.metrics.get(info.name))))
    return Questions(info, chosen[0], chosen[1], dict(left_out))


def _leaked(info: DatasetInfo, pool: Sequence[Pair], trained: Trained) -> dict[int, str]:
    """Place in `pool` -> how it was trained on."""
    found = {number: "trained on" for number, pair in enumerate(pool) if (info.name, info.version, pair.id) in trained.ids}
    for same in overlaps([asked(pair) for pair in pool], trained.questions):
        found.setdefault(same.left, "the question was trained on" if same.exact else "near duplicate of a question trained on")
    return found


def _place(identity: str) -> str:
    """An order that has nothing to do with the file's, and stays when questions come or go."""
    return hashlib.sha256(identity.encode()).hexdigest()
