"""Citations: answer sentences aligned to passage sentences, and quotations picked without a model.

Support of an answer sentence by a passage sentence is the share of its words (numbers count twice) that the passage
sentence contains, in [0, 1]; a number that the passage sentence lacks makes it 0, because a wrong dose in the right
words is the error that matters most. The threshold was chosen on a labelled set: ``benchmarks/citation_support.py``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

from appliance.types import Citation
from retrieval import injection
from retrieval.text import content_words, detect_lang, sentences
from retrieval.types import Passage

Similarity = Callable[[str, Sequence[str]], Sequence[float]]
_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
# What one or two sentences seldom hold: what something is, its signs, causes and treatment, how something is done, a list.
_EXTENSIVE = re.compile(
    r"\b(?:symptoms|signs of|treat(?:ed|ing|ments?)|therap(?:y|ies)|causes?|why|reasons?|explain|describe|descriptions?|overview"
    r"|summar(?:y|ise|ize)|outlook|prognosis|prevent(?:ed|ing|ion)?|list (?:of|all|the)|steps|procedures?|instructions"
    r"|(?:what|which) (?:steps|measures|precautions|research)|what to do|how (?:to|do|does|can|should)|tell me"
    r"|information (?:about|on)|who is at risk|pros and cons)\b"
    # "What is gout?", but not "What is the fee for a card?".
    r"|^\s*what (?:is|are)(?: \(are\))? (?:an? )?(?!in\b)(?!.{0,200}\b(?:an?|the|my|our|your|this|that)\b)"
    r"[\w'’:,()-]{1,40}(?:\s{1,9}[\w'’:,()-]{1,40}){0,8}\s{0,9}\?{0,9}\s{0,9}$"
    r"|症状|表现|体征|治疗|疗法|怎么(?:办|做|治|处理|预防|护理|申请)|怎样|如何|步骤|流程|程序|为什么|为何|原因|病因|什么是"
    r"|是什么(?:病|意思)|有哪些|包括哪些|哪些(?:症状|表现|原因|步骤|措施|方法|方式|注意)|介绍|解释|概述|预防|注意事项|利弊",
    re.IGNORECASE,
)
# What a question wants is said at its beginning; the rest of a huge one is pasted material.
_READ = 2000


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a passage; `start`/`end` are offsets in the document."""

    passage: Passage
    start: int
    end: int
    text: str
    words: frozenset[str]
    numbers: frozenset[str]


def passage_sentences(passages: Sequence[Passage]) -> list[Sentence]:
    """Every sentence of the passages, the best passage first, no span twice."""
    found: dict[tuple[object, int, int], Sentence] = {}
    for passage in passages:
        for start, end in sentences(passage.chunk.text):
            text = passage.chunk.text[start:end]
            if text.strip():
                place = (passage.chunk.doc, passage.chunk.start + start, passage.chunk.start + end)
                found.setdefault(place, Sentence(passage, place[1], place[2], text, frozenset(content_words(text)), numbers(text)))
    return list(found.values())


def numbers(text: str) -> frozenset[str]:
    """The numbers of a text, without thousands separators: '1,250.50' and '1250.50' are the same."""
    return frozenset(re.sub(r",(?=\d{3}\b)", "", number) for number in _NUMBER.findall(text))


def support(answer: str, sentence: Sentence) -> float:
    """How far one passage sentence supports one answer sentence, in [0, 1]."""
    wanted = numbers(answer)
    if not wanted <= sentence.numbers:
        return 0.0
    words = frozenset(content_words(answer)) - wanted
    weight = len(words) + 2 * len(wanted)
    return (len(words & sentence.words) + 2 * len(wanted)) / weight if weight else 0.0


def align(answer: str, passages: Sequence[Passage], threshold: float) -> tuple[list[Citation], list[str]]:
    """Citations for the supported sentences of `answer`, and the sentences that nothing supports."""
    candidates = passage_sentences(passages)
    cited: list[Citation] = []
    unsupported: list[str] = []
    for start, end in sentences(answer):
        text = answer[start:end].strip()
        if not content_words(text) and not numbers(text):
            continue
        best = max(candidates, key=lambda sentence: support(text, sentence), default=None)
        value = support(text, best) if best is not None else 0.0
        if best is not None and value >= threshold:
            cited.append(cite(best, start, end, value))
        else:
            unsupported.append(text)
    return cited, unsupported


def cite(sentence: Sentence, answer_start: int, answer_end: int, value: float = 1.0) -> Citation:
    """A citation of one whole passage sentence."""
    document, chunk = sentence.passage.document, sentence.passage.chunk
    return Citation(
        doc_id=document.id,
        domain=document.domain,
        title=document.title,
        uri=document.uri,
        start=sentence.start,
        end=sentence.end,
        quote=sentence.text,
        page=chunk.page,
        heading=chunk.heading,
        sha256=document.sha256,
        answer_start=answer_start,
        answer_end=answer_end,
        support=value,
        flags=chunk.flags,
        also=tuple(other.id for other in sentence.passage.sources[1:]),
    )


def extensive(question: str) -> bool:
    """Whether it asks for a description, symptoms, a treatment, reasons, steps or a list, rather than for a fact."""
    return _EXTENSIVE.search(question[:_READ]) is not None


def quote(
    question: str, passages: Sequence[Passage], similarity: Similarity, most: int = 2, flagged: str = "exclude", characters: int = 0
) -> tuple[str, list[Citation]]:
    """The sentences that answer the question best, verbatim, with their citations; ("", []) where there are none.

    Sentences are scored by the rarity-weighted share of the question's words they contain (words of their headings
    count half) or, where the best passage is in another language than the question, by embedding similarity. Only
    passages in the language of the best one compete: neither score compares across languages. A sentence that gives the
    model an instruction answers nobody and is not quoted unless `flagged` is "keep" ([retrieval] flagged); what else a flagged
    passage says is quoted, and its citation carries the flags.

    What is `extensive` is answered by the best passage, with the next best one where that is of the same document, up to `characters` of
    whole sentences; 0 for never.
    """
    lang = passages[0].document.lang if passages else ""
    found = passage_sentences([passage for passage in passages if passage.document.lang == lang])
    candidates = [
        sentence for sentence in found if flagged == "keep" or not (sentence.passage.chunk.flags and injection.flags(sentence.text))
    ]
    if not candidates:
        return "", []
    if extensive(question) and (parts := _together(candidates, passages[:2], characters)):
        return _joined(parts)
    foreign = lang != detect_lang(question)
    scores = _scores(question, candidates, similarity, foreign)
    ranked = sorted(range(len(candidates)), key=lambda i: -scores[i])
    # A heading tells what an answer is about and answers nothing itself.
    ranked = [i for i in ranked if not _is_heading(candidates[i])] or ranked
    chosen = [ranked[0], *(i for i in ranked[1:most] if scores[i] >= 0.8 * scores[ranked[0]])]
    chosen.sort(key=lambda i: (candidates[i].passage.document.id, candidates[i].start) if i != ranked[0] else ("", -1))
    return _joined([candidates[i] for i in chosen])


def _is_heading(sentence: Sentence) -> bool:
    headings = (sentence.passage.document.title, *sentence.passage.chunk.heading)
    return sentence.text.strip(" \t#*") in headings


def _joined(parts: Sequence[Sentence]) -> tuple[str, list[Citation]]:
    """The parts below each other, each with its citation."""
    text, cited = "", []
    for part in parts:
        text += "\n" if text else ""
        start = len(text)
        text += part.text
        cited.append(cite(part, start, len(text)))
    return text, cited


def _together(candidates: Sequence[Sentence], passages: Sequence[Passage], characters: int) -> list[Sentence]:
    """The first sentences of `passages`, as far as they are of the first one's document and within `characters`, in the order of the
    document; those that follow each other are one part, as they stand there."""
    place = {id(passage): number for number, passage in enumerate(passages) if passage.document.key == passages[0].document.key}
    taken: list[Sentence] = []
    for sentence in sorted((one for one in candidates if id(one.passage) in place), key=lambda one: (place[id(one.passage)], one.start)):
        # With what stands between it and the one before, or the line break between two parts.
        follows = bool(taken) and taken[-1].passage is sentence.passage
        characters -= sentence.end - taken[-1].end if follows else len(sentence.text) + bool(taken)
        if characters < 0:
            break
        taken.append(sentence)
    parts: list[Sentence] = []
    for sentence in sorted(taken, key=lambda one: one.start):
        last = parts[-1] if parts else None
        if last is not None and last.passage is sentence.passage:
            text, first = sentence.passage.chunk.text, sentence.passage.chunk.start
            # Nothing but white space may lie between: what was left out stays out.
            if not text[last.end - first : sentence.start - first].strip():
                both = text[last.start - first : sentence.end - first]
                words, figures = last.words | sentence.words, last.numbers | sentence.numbers
                parts[-1] = Sentence(last.passage, last.start, sentence.end, both, words, figures)
                continue
        parts.append(sentence)
    return parts


def _scores(question: str, candidates: Sequence[Sentence], similarity: Similarity, foreign: bool) -> list[float]:
    asked = list(dict.fromkeys(content_words(question)))
    frequency = Counter(word for sentence in candidates for word in sentence.words)
    weight = {word: log(1 + len(candidates) / (1 + frequency[word])) for word in asked}
    total = sum(weight.values())
    scores = []
    headings: dict[tuple[str, ...], frozenset[str]] = {}
    for sentence in candidates:
        above = (sentence.passage.document.title, *sentence.passage.chunk.heading)
        around = headings.get(above)
        if around is None:
            around = headings[above] = frozenset(content_words(" ".join(above)))
        got = sum(weight[w] if w in sentence.words else 0.5 * weight[w] if w in around else 0.0 for w in asked)
        scores.append(got / total if total else 0.0)
    if foreign or max(scores) < 0.25:
        close = candidates[:16]
        return [*similarity(question, [sentence.text for sentence in close]), *[0.0] * (len(candidates) - len(close))]
    return scores
