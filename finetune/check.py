"""What is wrong with a data set before anything is trained on it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field
from typing import Any

from finetune.dataset import asked, counts
from finetune.near import near_duplicates
from finetune.types import Pair

# Upper bounds of the length histograms, in characters or tokens; the last class is open.
CLASSES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_BOILERPLATE = re.compile(
    r"(as an ai( language)? model|lorem ipsum|to ?do|tbd|n/?a|see (the )?(document|attachment|above)|same as above|placeholder"
    r"|作为一个?(ai|人工智能)(语言)?模型|同上|待定|待补充|见(附件|文件|上文)|略)",
    re.IGNORECASE,
)
# The same answer to this many different questions, if it is long enough to say something of its own.
_REPEATED, _REPEATED_LENGTH = 3, 20


@dataclass(frozen=True, slots=True)
class Note:
    """A finding about one pair."""

    id: str
    reason: str


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
class Contradiction:
    """One question (with the same history) that has several answers; `answers` maps pair id to answer."""

    question: str
    answers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts: how many examples exceed `limit` by the prompt alone, by the answer alone, or only together."""

    limit: int
    prompt: dict[str, int]
    answer: dict[str, int]
    prompt_too_long: tuple[str, ...]
    answer_too_long: tuple[str, ...]
    together_too_long: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The state of a data set. Histograms map "up to N" classes to counts; pairs are named by id."""

    total: int
    splits: dict[str, int]
    languages: dict[str, int]
    answerable: dict[str, int]
    question_characters: dict[str, int]
    answer_characters: dict[str, int]
    tokens: Lengths | None
    answers: tuple[Note, ...]
    contradictions: tuple[Contradiction, ...]
    duplicates: tuple[Twins, ...]
    leakage: tuple[Twins, ...]
    without_documents: int
    unknown_documents: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """One plain sentence for each kind of finding, worst first; empty if all is well."""
        long = (
            0
            if self.tokens is None
            else sum(map(len, (self.tokens.prompt_too_long, self.tokens.answer_too_long, self.tokens.together_too_long)))
        )
        found = [
            (len(self.leakage), "pairs of questions straddle two splits: scores on the later split are too good"),
            (len(self.contradictions), "questions have contradictory answers"),
            (long, f"examples exceed {self.tokens.limit if self.tokens else 0} tokens"),
            (len(self.unknown_documents), "pairs name documents the knowledge base does not have"),
            (len(self.answers), "answers are empty or boilerplate"),
            (len(self.duplicates), "pairs of questions within a split are near duplicates"),
        ]
        return [f"{number} {what}" for number, what in found if number]


def check(
    pairs: Sequence[Pair],
    *,
    count_tokens: Callable[[str], int] | None = None,
    max_length: int = 1024,
    known_documents: AbstractSet[str] | None = None,
) -> CheckReport:
    """Look at `pairs` without changing them.

    `count_tokens` gives the tokens of a text; a prompt counts its history and question, without what a chat template adds.
    `max_length` is the limit for prompt and answer together. `known_documents` are the ids that `doc_ids` may name (None: not checked).
    """
    twins = _twins(pairs)
    unknown = (
        {} if known_documents is None else {pair.id: tuple(name for name in pair.doc_ids if name not in known_documents) for pair in pairs}
    )
    return CheckReport(
        total=len(pairs),
        splits=counts(pairs),
        languages=dict(sorted(Counter(pair.lang for pair in pairs).items())),
        answerable={name: sum(pair.answerable is value for pair in pairs) for name, value in (("yes", True), ("no", False))},
        question_characters=_histogram(len(pair.question) for pair in pairs),
        answer_characters=_histogram(len(pair.answer) for pair in pairs),
        tokens=None if count_tokens is None else _lengths(pairs, count_tokens, max_length),
        answers=_answers(pairs),
        contradictions=_contradictions(pairs),
        duplicates=tuple(twin for twin in twins if twin.a_split == twin.b_split),
        leakage=tuple(twin for twin in twins if twin.a_split != twin.b_split),
        without_documents=sum(not pair.doc_ids for pair in pairs),
        unknown_documents={name: missing for name, missing in unknown.items() if missing},
    )


def _histogram(lengths: Iterable[int]) -> dict[str, int]:
    names = [f"<= {bound}" for bound in CLASSES] + [f"> {CLASSES[-1]}"]
    found = Counter(sum(length > bound for bound in CLASSES) for length in lengths)
    return {name: found[number] for number, name in enumerate(names) if found[number]}


def _lengths(pairs: Sequence[Pair], count_tokens: Callable[[str], int], limit: int) -> Lengths:
    sizes = {
        pair.id: (count_tokens("\n".join([*(turn.content for turn in pair.history), pair.question])), count_tokens(pair.answer))
        for pair in pairs
    }
    prompt = tuple(name for name, (first, _) in sizes.items() if first > limit)
    answer = tuple(name for name, (_, second) in sizes.items() if second > limit)
    together = tuple(name for name, (first, second) in sizes.items() if first <= limit and second <= limit < first + second)
    return Lengths(
        limit,
        _histogram(first for first, _ in sizes.values()),
        _histogram(second for _, second in sizes.values()),
        prompt,
        answer,
        together,
    )


def _answers(pairs: Sequence[Pair]) -> tuple[Note, ...]:
    """Empty, boilerplate and repeated answers of answerable questions."""
    from retrieval.text import normalise_question

    asking: dict[str, set[str]] = defaultdict(set)
    for pair in pairs:
        asking[normalise_question(pair.answer)].add(normalise_question(asked(pair)))
    notes: list[Note] = []
    for pair in pairs:
        answer = normalise_question(pair.answer)
        if not pair.answerable:
            continue
        if not answer:
            notes.append(Note(pair.id, "the answer is empty"))
        elif _BOILERPLATE.fullmatch(answer) or re.match(r"as an ai |作为一个?(ai|人工智能)", answer):
            notes.append(Note(pair.id, f"boilerplate: {pair.answer[:60]}"))
        elif len(answer) >= _REPEATED_LENGTH and len(asking[answer]) >= _REPEATED:
            notes.append(Note(pair.id, f"the same answer as to {len(asking[answer]) - 1} other questions: {pair.answer[:60]}"))
    return tuple(notes)


def _by_question(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    from retrieval.text import normalise_question

    same: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        same[normalise_question(asked(pair))].append(pair)
    return same


def _contradictions(pairs: Sequence[Pair]) -> tuple[Contradiction, ...]:
    from retrieval.text import normalise_question

    found: list[Contradiction] = []
    for same in _by_question(pairs).values():
        if len({(pair.answerable, normalise_question(pair.answer)) for pair in same}) > 1:
            found.append(Contradiction(same[0].question, {pair.id: pair.answer for pair in same}))
    return tuple(found)


def _twins(pairs: Sequence[Pair]) -> tuple[Twins, ...]:
    """Pairs of pairs that ask the same or nearly. Many equal questions are chained to the first of each split, not listed squared."""
    same = list(_by_question(pairs).values())
    first = [{pair.split or "undeclared": pair for pair in reversed(members)} for members in same]
    found: list[Twins] = []
    for members, heads in zip(same, first, strict=True):
        for pair in members:
            for split, head in heads.items():
                # Within a split each later one points at the first; across splits each pair points at the other's first.
                if pair is not head and (split == (pair.split or "undeclared") or pair is heads[pair.split or "undeclared"]):
                    found.append(_twin(head, pair, 1.0, True))
    for left, right, similarity in near_duplicates([asked(members[0]) for members in same]):
        found.extend(_twin(a, b, similarity, False) for a in first[left].values() for b in first[right].values())
    # Across splits both directions of an exact pair were found.
    unique = {frozenset((twin.a, twin.b)): twin for twin in found}
    return tuple(sorted(unique.values(), key=lambda twin: (-twin.similarity, twin.a, twin.b)))


def _twin(a: Pair, b: Pair, similarity: float, exact: bool) -> Twins:
    return Twins(a.id, b.id, a.split or "undeclared", b.split or "undeclared", round(similarity, 3), exact)
