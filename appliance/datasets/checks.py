"""`appliance dataset check`: a data set beside its base model, its knowledge base and the other sets of its domain."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from appliance.datasets.registry import DatasetInfo, Datasets, several
from appliance.errors import ApplianceError, UsageError
from appliance.service import Service
from appliance.training.examples import examples, inferred, outdated
from finetune.chat_templates import control_words, defuse
from finetune.check import CheckReport, Coverage, check
from finetune.dataset import counts, split_pairs
from finetune.tokens import load_tokenizer
from finetune.types import Pair, TrainingError
from retrieval.types import DocumentInfo

# The set of approved answers, among the others a data set is compared with.
VERIFIED = "approved answers"
# Texts tokenised at a time.
_BATCH = 1000
Progress = Callable[[str, int, int], None]


def examine(
    service: Service,
    info: DatasetInfo,
    *,
    domain: str | None = None,
    against: Sequence[str] = (),
    max_length: int = 1024,
    searched: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> CheckReport:
    """Check a registered data set as one for `domain`: by default its own, else the only one of the workspace.

    As in training, pairs of other domains do not count. The others are compared with every data set that can meet them (of the same
    domain or of none), the approved answers, and the sets in `against`, of which every pair counts as measured on; so it does of the sets
    that the domain's gate asks, unless they have a train split. `searched` of the pairs that name no documents are searched for in the
    knowledge base (drawn by `seed`, which the planned split depends on too).
    Another set that cannot be read is noted, one in `against` is an error.
    Raises UsageError for an unknown domain or name in `against`, and if no pair is of the domain.
    """
    datasets = Datasets(service.workspace)
    every, notes = datasets.pairs(info), []
    domain = _domain(service, info, every, domain)
    pairs = [pair for pair in every if domain is None or pair.domain in (None, domain)]
    if every and not pairs:
        raise UsageError(f"no pair of {info.name} is of {domain}: they are of {', '.join(sorted({str(pair.domain) for pair in every}))}")
    if len(pairs) < len(every):
        notes.append(f"{len(every) - len(pairs)} pairs are of other domains and were not looked at; name theirs with --domain")
    named = [datasets.get(name) for name in against]
    own = {info.name, *(part.name for part in info.parts)}
    others = {other.name: other for other in (*datasets.all(), *named) if other.name not in own}
    # What is of no domain yet may be trained on, or asked, in any.
    beside: dict[str, Sequence[Pair]] = {}
    for name, other in others.items():
        if name in against or domain is None or other.domain is None or other.domain == domain:
            try:
                beside[name] = datasets.pairs(other)
            except ApplianceError as error:
                if name in against:
                    raise
                notes.append(f"not compared with {name}: {error}")
    beside[VERIFIED] = [Pair(one.id, one.question, one.answer, one.lang, one.domain) for one in service.verified.all(domain)]
    measured = {VERIFIED, *against, *_asked_by_the_gate(service, domain, beside)}
    sizes = known = None
    if domain is None:
        notes.append("the data set has no domain: no tokens were counted and no documents looked for; name one with --domain")
    else:
        documents = list(service.knowledge.documents.documents(domain))
        known = frozenset(document.id for document in documents)
        notes += _changed_since(info, pairs, documents)
        notes += [] if known else [f"{domain} has no documents: whether the pairs rest on any was not looked at"]
        sizes, problem = _sizes(service, domain, pairs)
        notes += [problem] if problem else []
    report = check(
        pairs,
        lengths=sizes,
        max_length=max_length,
        known_documents=known or None,
        others=beside,
        measured=measured,
        seed=seed,
    )
    coverage = _coverage(service, domain, pairs, known, searched, seed, progress) if domain is not None and known else None
    if report.planned and len(pairs) < len(every):
        # Training splits the whole data set before it takes the pairs of its domain.
        report = replace(report, planned=counts(pair for pair in split_pairs(every, seed) if pair.domain in (None, domain)))
    return replace(
        report,
        excluded=info.counts["excluded"],
        coverage=coverage,
        notes=(*notes, *report.notes),
        compared=tuple(name for name in beside if beside[name]),
    )


def _domain(service: Service, info: DatasetInfo, pairs: Sequence[Pair], given: str | None) -> str | None:
    if given is not None:
        return service.workspace.check_domain(given)
    known = service.workspace.domains()
    only = known[0] if len(known) == 1 and any(pair.domain in (None, known[0]) for pair in pairs) else None
    return info.domain or only


def _changed_since(info: DatasetInfo, pairs: Sequence[Pair], documents: Sequence[DocumentInfo]) -> list[str]:
    """What training cannot tell of pairs that only name their documents: their texts are others than when somebody wrote the answers."""
    since = min(part.created_at for part in info.parts or (info,))
    changed = {document.id for document in documents if document.updated_at > since}
    # A pair with passages knows the text it was written from, and is left out of training by itself.
    doubtful = sum(not pair.passages and not changed.isdisjoint(pair.doc_ids) for pair in pairs)
    if not doubtful:
        return []
    return [f"{doubtful} pairs name documents that changed after the set was registered ({since:%Y-%m-%d}): see whether they still hold"]


def _asked_by_the_gate(service: Service, domain: str | None, beside: Mapping[str, Sequence[Pair]]) -> set[str]:
    if domain is None:
        return set()
    gate = service.workspace.config.domain(domain).gate
    asked = {name for names in (gate.dataset, gate.general) for name in several(names or "") if name in beside}
    return {name for name in asked if all(pair.split != "train" for pair in beside[name])}


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
        words = control_words(tokenizer)
        for first in range(0, len(pairs), _BATCH):
            made = examples(service, domain, pairs[first : first + _BATCH])
            chats = [[{"role": turn.role, "content": defuse(turn.content, words)} for turn in example.prompt] for example in made]
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
