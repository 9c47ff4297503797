"""`appliance dataset check`: a data set beside its base model, its knowledge base and the other sets of its domain."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from appliance.datasets.registry import DatasetInfo, Datasets
from appliance.errors import ApplianceError
from appliance.service import Service
from appliance.training.examples import examples, inferred, outdated
from finetune.check import CheckReport, Coverage, check
from finetune.tokens import load_tokenizer
from finetune.types import Pair, TrainingError

# The set of approved answers, among the others a data set is compared with.
VERIFIED = "approved answers"
# Texts tokenised at a time.
_BATCH = 1000
Progress = Callable[[str, int, int], None]


def examine(
    service: Service,
    info: DatasetInfo,
    *,
    against: Sequence[str] = (),
    max_length: int = 1024,
    searched: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> CheckReport:
    """Check a registered data set.

    It is compared with every other data set of its domain, the approved answers, and those in `against`, of which every pair counts as
    measured on. `searched` of the pairs that name no documents are searched for in the knowledge base (drawn by `seed`,
    which the planned split depends on too).
    Raises UsageError for an unknown name in `against`.
    """
    datasets = Datasets(service.workspace)
    pairs, notes = datasets.pairs(info), []
    named = [datasets.get(name) for name in against]
    others = {other.name: other for other in (*datasets.all(), *named) if other.name != info.name}
    beside = {
        name: datasets.pairs(other)
        for name, other in others.items()
        if name in against or (info.domain is not None and other.domain == info.domain)
    }
    sizes = known = None
    if info.domain is None:
        notes.append("the data set has no domain: no tokens were counted, no documents were looked for and no other sets compared")
    else:
        beside[VERIFIED] = [
            Pair(answer.id, answer.question, answer.answer, answer.lang, info.domain) for answer in service.verified.all(info.domain)
        ]
        known = frozenset(document.id for document in service.knowledge.documents.documents(info.domain))
        sizes, problem = _sizes(service, info.domain, pairs)
        notes += [problem] if problem else []
    report = check(
        pairs,
        lengths=sizes,
        max_length=max_length,
        known_documents=known or None,
        others=beside,
        measured={VERIFIED, *against},
        seed=seed,
    )
    coverage = _coverage(service, info.domain, pairs, known, searched, seed, progress) if info.domain is not None and known else None
    return replace(report, coverage=coverage, notes=tuple(notes), compared=tuple(name for name in beside if beside[name]))


def _sizes(service: Service, domain: str, pairs: Sequence[Pair]) -> tuple[list[tuple[int, int]] | None, str]:
    """The tokens of prompt and (longer) answer of each pair with the base of `domain`, template and all; or why that cannot be said."""
    from jinja2 import TemplateError

    _, engine = service.workspace.config.engine_of(domain)
    if not engine.has_base:
        return None, f"no tokens were counted: the engine of {domain} is {engine.kind}, its tokenizer is not here"
    sizes: list[tuple[int, int]] = []
    try:
        base = service.models.path(service.workspace.model(engine.base))
        tokenizer = load_tokenizer(base, engine.template(service.workspace.root))
        for first in range(0, len(pairs), _BATCH):
            made = examples(service, domain, pairs[first : first + _BATCH])
            chats = [[{"role": turn.role, "content": turn.content} for turn in example.prompt] for example in made]
            prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=False)
            answers = tokenizer([example.completion for example in made], add_special_tokens=False)["input_ids"]
            rejected = tokenizer([example.rejected or "" for example in made], add_special_tokens=False)["input_ids"]
            # One more for the token that ends the answer; of a preference the longer answer counts.
            sizes += [(len(prompt), max(len(one), len(two)) + 1) for prompt, one, two in zip(prompts, answers, rejected, strict=True)]
    except TemplateError as error:
        return None, f"no tokens were counted: the chat template of {domain}'s base refuses these messages ({error})"
    except (ApplianceError, TrainingError) as error:
        return None, f"no tokens were counted: {error}"
    return sizes, ""


def _coverage(
    service: Service,
    domain: str,
    pairs: Sequence[Pair],
    known: frozenset[str],
    searched: int,
    seed: int,
    progress: Progress | None,
) -> Coverage:
    declared = {pair.id: known.intersection(pair.doc_ids) for pair in pairs}
    covered = set[str]().union(*declared.values())
    loose = [pair for pair in pairs if not declared[pair.id] and pair.answerable]
    drawn = loose if len(loose) <= searched else random.Random(seed).sample(loose, searched)
    found = 0
    for number, pair in enumerate(drawn, 1):
        link = inferred(service, domain, pair)
        if link.doc_id is not None:
            found += 1
            covered.add(link.doc_id)
        if progress is not None:
            progress("searching for the pairs' documents", number, len(drawn))
    return Coverage(
        declared=sum(bool(names) for names in declared.values()),
        searched=len(drawn),
        inferred=found,
        unlinked=len(drawn) - found,
        outdated=tuple(sorted(outdated(service, domain, pairs))),
        documents=len(known),
        with_pairs=len(covered),
    )
