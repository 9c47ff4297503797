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


def quote(
    question: str, passages: Sequence[Passage], similarity: Similarity, most: int = 2, flagged: str = "exclude"
) -> tuple[str, list[Citation]]:
    """The sentences that answer the question best, verbatim, with their citations; ("", []) where there are none.

    Sentences are scored by the rarity-weighted share of the question's words they contain (words of their headings
    count half) or, where the best passage is in another language than the question, by embedding similarity. Only
    passages in the language of the best one compete: neither score compares across languages. A sentence that gives the
    model an instruction answers nobody and is not quoted unless `flagged` is "keep" ([retrieval] flagged); what else a flagged
    passage says is quoted, and its citation carries the flags.
    """
    lang = passages[0].document.lang if passages else ""
    found = passage_sentences([passage for passage in passages if passage.document.lang == lang])
    candidates = [
        sentence for sentence in found if flagged == "keep" or not (sentence.passage.chunk.flags and injection.flags(sentence.text))
    ]
    if not candidates:
        return "", []
    foreign = lang != detect_lang(question)
    scores = _scores(question, candidates, similarity, foreign)
    ranked = sorted(range(len(candidates)), key=lambda i: -scores[i])
    chosen = [ranked[0], *(i for i in ranked[1:most] if scores[i] >= 0.8 * scores[ranked[0]])]
    chosen.sort(key=lambda i: (candidates[i].passage.document.id, candidates[i].start) if i != ranked[0] else ("", -1))
    text, cited = "", []
    for i in chosen:
        text += "\n" if text else ""
        start = len(text)
        text += candidates[i].text
        cited.append(cite(candidates[i], start, len(text)))
    return text, cited


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
