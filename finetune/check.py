"""What is wrong with a data set before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any

from finetune.answers import Contradiction, Note, by_question, contradictions, poor_answers, short
from finetune.dataset import asked, counts, split_pairs
from finetune.near import MAX_LISTED, near_duplicates, overlaps
from finetune.privacy import Kind, personal
from finetune.types import Pair

# Upper bounds of the length histograms, in characters or tokens; the last class is open.
CLASSES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
UNDECLARED = "undeclared"
# Splits that something is measured on. A whole data set named as such is one too.
_MEASURED = frozenset({"dev", "test"})


@dataclass(frozen=True, slots=True)
class Twins:
    """Two pairs that ask the same; `similarity` 1.0 with `exact` means equal after normalisation."""

    a: str
    b: str
    a_split: str
    b_split: str
    similarity: float
    exact: bool


@dataclass(frozen=True, slots=True)
class Shared:
    """A question that another set has too. `leak`: one of the two can be trained on while the other is measured on."""

    id: str
    split: str
    other: str
    other_id: str
    other_split: str
    similarity: float
    exact: bool
    leak: bool


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts: how many examples exceed `limit` by the prompt alone, by the answer alone, or only together."""

    limit: int
    prompt: dict[str, int]
    answer: dict[str, int]
    prompt_too_long: tuple[str, ...]
    answer_too_long: tuple[str, ...]
    together_too_long: tuple[str, ...]

    @property
    def too_long(self) -> int:
        return len(self.prompt_too_long) + len(self.answer_too_long) + len(self.together_too_long)


@dataclass(frozen=True, slots=True)
class PersonalData:
    """Something that looks like personal data in one field of a pair, masked."""

    id: str
    field: str
    kind: Kind
    masked: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """How a data set and a knowledge base meet.

    `declared` pairs name documents that are there, `inferred` ones have an answer that a retrieved passage supports (looked for in
    `searched` of the pairs that name none), `unlinked` ones rest on nothing found, `outdated` ones are tied to an older text.
    `with_pairs` of the `documents` have at least one pair.
    """

    declared: int
    searched: int
    inferred: int
    unlinked: int
    outdated: tuple[str, ...]
    documents: int
    with_pairs: int


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The state of a data set. Histograms map "up to N" classes to counts; pairs are named by id.

    `planned` are the splits that training would use, where some are not declared. `leakage` is within the data set, `shared` beyond it.
    `tokens` and `coverage` are None where there is no base model or no knowledge base to ask; `notes` say why. `compared` are the
    names of the other sets that were looked at. `excluded` rows were left out when the set was registered.
    """

    total: int
    splits: dict[str, int]
    planned: dict[str, int]
    languages: dict[str, int]
    other_language: tuple[Note, ...]
    answerable: dict[str, int]
    question_characters: dict[str, int]
    answer_characters: dict[str, int]
    tokens: Lengths | None
    answers: tuple[Note, ...]
    contradictions: tuple[Contradiction, ...]
    duplicates: tuple[Twins, ...]
    leakage: tuple[Twins, ...]
    shared: tuple[Shared, ...]
    personal: tuple[PersonalData, ...]
    without_documents: int
    unknown_documents: dict[str, tuple[str, ...]]
    excluded: int = 0
    coverage: Coverage | None = None
    compared: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`, with the counts by reason."""
        return {**asdict(self), "reasons": self.reasons(), "warnings": self.warnings()}

    def reasons(self) -> dict[str, int]:
        """How many findings of each kind there are, worst first; kinds without any are left out."""
        worded = sum(item.differ == ("wording",) for item in self.contradictions)
        found = {
            "leakage": len(self.leakage),
            "leakage_across_sets": sum(item.leak for item in self.shared),
            "contradictions": len(self.contradictions) - worded,
            "different_answers": worded,
            "personal_data": len({item.id for item in self.personal}),
            "prompt_too_long": len(self.tokens.prompt_too_long) if self.tokens else 0,
            "answer_too_long": len(self.tokens.answer_too_long) if self.tokens else 0,
            "together_too_long": len(self.tokens.together_too_long) if self.tokens else 0,
            "poor_answers": len(self.answers),
            "other_language": len(self.other_language),
            "unknown_documents": len(self.unknown_documents),
            "outdated_documents": len(self.coverage.outdated) if self.coverage else 0,
            "duplicates": len(self.duplicates),
        }
        return {reason: number for reason, number in found.items() if number}

    def warnings(self) -> list[str]:
        """One plain sentence for each kind of finding, worst first; empty if all is well."""
        limit = self.tokens.limit if self.tokens else 0
        words = {
            "leakage": "pairs of questions straddle two splits: scores on the later split are too good",
            "leakage_across_sets": "questions are trained on here and measured on in another set, or the other way round",
            "contradictions": "questions have contradictory answers (other numbers, a negation, or none)",
            "different_answers": "questions have several answers in different words",
            "personal_data": "pairs hold what looks like personal data",
            "prompt_too_long": f"prompts alone exceed {limit} tokens",
            "answer_too_long": f"answers alone exceed {limit} tokens",
            "together_too_long": f"prompts and answers exceed {limit} tokens together",
            "poor_answers": "answers are empty, boilerplate or repeated",
            "other_language": "pairs are in another language than declared, or answered in another than asked",
            "unknown_documents": "pairs name documents the knowledge base does not have",
            "outdated_documents": "pairs rest on an older text of a document",
            "duplicates": "pairs of questions within a split are near duplicates",
        }
        return [f"{number} {words[reason]}" for reason, number in self.reasons().items()]


def check(
    pairs: Sequence[Pair],
    *,
    lengths: Sequence[tuple[int, int]] | None = None,
    max_length: int = 1024,
    known_documents: AbstractSet[str] | None = None,
    others: Mapping[str, Sequence[Pair]] | None = None,
    measured: AbstractSet[str] = frozenset(),
    seed: int = 0,
) -> CheckReport:
    """Look at `pairs` without changing them.

    `lengths` are the tokens of prompt and answer of each pair (None: not counted), `max_length` is the limit for both together.
    `known_documents` are the ids that `doc_ids` may name (None: not checked). `others` are the sets to look for the same questions in,
    by name; of those named in `measured` every pair counts as measured on, whatever its split. `seed` is that of the planned split.
    """
    twins, crowded = _twins(pairs)
    many = f"{crowded} questions have {MAX_LISTED} near duplicates or more"
    unknown = (
        {} if known_documents is None else {pair.id: tuple(name for name in pair.doc_ids if name not in known_documents) for pair in pairs}
    )
    apart = [twin.a_split != twin.b_split and UNDECLARED not in (twin.a_split, twin.b_split) for twin in twins]
    return CheckReport(
        total=len(pairs),
        splits=counts(pairs),
        planned=counts(split_pairs(pairs, seed)) if any(pair.split is None for pair in pairs) else {},
        languages=dict(sorted(Counter(pair.lang for pair in pairs).items())),
        other_language=_languages(pairs),
        answerable={name: sum(pair.answerable is value for pair in pairs) for name, value in (("yes", True), ("no", False))},
        question_characters=histogram(len(pair.question) for pair in pairs),
        answer_characters=histogram(len(pair.answer) for pair in pairs),
        tokens=None if lengths is None else _lengths(pairs, lengths, max_length),
        answers=poor_answers(pairs),
        contradictions=contradictions(pairs),
        duplicates=tuple(twin for twin, leaks in zip(twins, apart, strict=True) if not leaks),
        leakage=tuple(twin for twin, leaks in zip(twins, apart, strict=True) if leaks),
        shared=tuple(found for name, other in (others or {}).items() for found in _shared(pairs, name, other, name in measured)),
        personal=_personal(pairs),
        without_documents=sum(not pair.doc_ids for pair in pairs),
        unknown_documents={name: missing for name, missing in unknown.items() if missing},
        notes=(f"{many}: of each the first {MAX_LISTED} are listed, and there may be more in other splits",) if crowded else (),
    )


def histogram(lengths: Iterable[int]) -> dict[str, int]:
    """How many lengths are in each class of CLASSES; empty classes are left out."""
    names = [f"<= {bound}" for bound in CLASSES] + [f"> {CLASSES[-1]}"]
    found = Counter(sum(length > bound for bound in CLASSES) for length in lengths)
    return {name: found[number] for number, name in enumerate(names) if found[number]}


def _lengths(pairs: Sequence[Pair], lengths: Sequence[tuple[int, int]], limit: int) -> Lengths:
    sizes = dict(zip((pair.id for pair in pairs), lengths, strict=True))
    prompt = tuple(name for name, (first, _) in sizes.items() if first > limit)
    answer = tuple(name for name, (first, second) in sizes.items() if first <= limit < second)
    together = tuple(name for name, (first, second) in sizes.items() if first <= limit and second <= limit < first + second)
    return Lengths(
        limit,
        histogram(first for first, _ in sizes.values()),
        histogram(second for _, second in sizes.values()),
        prompt,
        answer,
        together,
    )


def _languages(pairs: Sequence[Pair]) -> tuple[Note, ...]:
    """Pairs whose question is not in the declared language, or whose answer is in another than the question."""
    from retrieval.text import content_words, detect_lang

    notes: list[Note] = []
    for pair in pairs:
        asked_in = detect_lang(pair.question)
        answered_in = detect_lang(pair.answer) if content_words(pair.answer) else asked_in
        # A name or a number is the same in both.
        words = sum(character.isalpha() for character in pair.answer)
        if asked_in != pair.lang:
            notes.append(Note(pair.id, f"declared {pair.lang}, asked in {asked_in}: {short(pair.question)}"))
        elif answered_in != asked_in and words > 20 and pair.task == "qa":
            notes.append(Note(pair.id, f"asked in {asked_in}, answered in {answered_in}: {short(pair.answer)}"))
    return tuple(notes)


def _personal(pairs: Sequence[Pair]) -> tuple[PersonalData, ...]:
    found: list[PersonalData] = []
    for pair in pairs:
        fields = {"question": pair.question, "answer": pair.answer, "rejected": pair.rejected, "system": pair.system}
        fields["history"] = "\n".join(turn.content for turn in pair.history)
        found += [PersonalData(pair.id, name, span.kind, span.masked) for name, text in fields.items() if text for span in personal(text)]
    return tuple(found)


def _split(pair: Pair) -> str:
    return pair.split or UNDECLARED


def _twins(pairs: Sequence[Pair]) -> tuple[tuple[Twins, ...], int]:
    """Pairs of pairs that ask the same or nearly, and how many questions have too many near duplicates for all to be listed.

    Many equal questions are chained to the first of each split, not listed squared.
    """
    same = list(by_question(pairs).values())
    first = [{_split(pair): pair for pair in reversed(members)} for members in same]
    found: list[Twins] = []
    for members, heads in zip(same, first, strict=True):
        for pair in members:
            for split, head in heads.items():
                # Within a split each later one points at the first; across splits each pair points at the other's first.
                if pair is not head and (split == _split(pair) or pair is heads[_split(pair)]):
                    found.append(_twin(head, pair, 1.0, True))
    near = near_duplicates([asked(members[0]) for members in same])
    for left, right, similarity in near:
        found.extend(
            _twin(a, b, similarity, False)
            for a in first[left].values()
            for b in first[right].values()
            # The turns of one conversation repeat each other by nature.
            if a.conversation is None or a.conversation != b.conversation
        )
    # Across splits both directions of an exact pair were found.
    unique = {frozenset((twin.a, twin.b)): twin for twin in found}
    crowded = sum(times >= MAX_LISTED for times in Counter(right for _, right, _ in near).values())
    return tuple(sorted(unique.values(), key=lambda twin: (-twin.similarity, twin.a, twin.b))), crowded


def _twin(a: Pair, b: Pair, similarity: float, exact: bool) -> Twins:
    return Twins(a.id, b.id, _split(a), _split(b), round(similarity, 3), exact)


def _shared(pairs: Sequence[Pair], name: str, others: Sequence[Pair], all_measured: bool) -> list[Shared]:
    """The questions that are in both sets: for each of ours the closest of each split of the other."""
    ours = [asked(pair) for pair in pairs]
    found: list[Shared] = []
    for split in dict.fromkeys(_split(pair) for pair in others):
        theirs = [pair for pair in others if _split(pair) == split]
        for item in overlaps(ours, [asked(pair) for pair in theirs]):
            here, there = _split(pairs[item.left]), theirs[item.right]
            measured_there = all_measured or split in _MEASURED
            leak = (here not in _MEASURED and measured_there) or (here in _MEASURED and not measured_there)
            found.append(
                Shared(pairs[item.left].id, here, name, there.id, split, round(item.similarity, 3), item.exact, leak)
            )  # fmt: skip
    return sorted(found, key=lambda item: (not item.leak, -item.similarity, item.id))
