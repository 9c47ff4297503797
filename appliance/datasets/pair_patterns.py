"""Questions made of a passage's own sentences, without a model: what a sentence defines, what it gives a number for, what it leaves out.

They are plainer than questions people ask, so every pair made of one says `method: "pattern"`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from retrieval.text import content_words, detect_lang, sentences

Kind = Literal["definition", "amount", "gap"]
_NUMBER = re.compile(r"(?<![\w.,:/-])\d+(?:[.,:]\d+)*%?(?![\w/-])", re.ASCII)
_ZH_NUMBER = re.compile(
    rf"{_NUMBER.pattern}|(?<![第〇零一二三四五六七八九十百千万])[〇零一二三四五六七八九十百千万两]{{1,6}}(?=个?(?:工作)?[日天月年]|万?元|倍|次|周岁|小时)",
    re.ASCII,
)
_NO_SUBJECT = (
    r"(?!(?:This|That|These|Those|It|There|They|He|She|We|You|I|Here|What|Which|Who|One|Some|Many|Most|All|Such|Other|In|If|When)\b)"
)
_ZH_NO_SUBJECT = r"(?![这那此该其它他她本])"
_EN_DEFINITION = re.compile(
    rf"(?P<article>(?:The|A|An) (?=[A-Za-z]))?{_NO_SUBJECT}(?P<what>[A-Za-z][\w'’-]*(?: [\w'’()-]+){{0,4}}?) "
    r"(?P<be>is|are) (?:an?|the|any|defined as|called)\b"
)
_ZH_DEFINITION = re.compile(
    rf"{_ZH_NO_SUBJECT}(?P<what>[\u4e00-\u9fffA-Za-z0-9·（）()-]{{2,20}}?)(?:，|,)?(?:是指|系指|指的是|是一[种个类项])"
)
_ZH_AMOUNT = re.compile(
    rf"{_ZH_NO_SUBJECT}(?P<what>[\u4e00-\u9fff]{{2,16}}?)(?:为|是|共计?|达到?|不(?:得)?超过|不少于|不低于|最[高低多少]为)(?:人民币)?(?=\d)"
)
_CLAUSE = re.compile(r"第[〇零一二三四五六七八九十百千\d]{1,8}条\s*|[（(]?[一二三四五六七八九十\d]{1,3}[）)、.]\s*")
# Words (English) or characters (Chinese) of a sentence that can stand for itself.
_EN_WORDS, _ZH_CHARACTERS = (6, 60), (8, 120)


@dataclass(frozen=True, slots=True)
class Patterned:
    """A question and the span of the text that answers it, a whole sentence: ``text[start:end]``."""

    question: str
    start: int
    end: int
    kind: Kind


def patterned(text: str, title: str) -> Iterator[Patterned]:
    """Questions about the sentences of `text`, definitions first, then amounts, then gaps; a sentence answers at most one."""
    found: list[tuple[int, Patterned]] = []
    for start, end in sentences(text):
        skipped = _CLAUSE.match(text, start, end)
        start = skipped.end() if skipped else start
        made = _ask(text[start:end], title)
        if made is not None:
            order = ("definition", "amount", "gap").index(made[1])
            found.append((order, Patterned(made[0], start, end, made[1])))
    yield from (item for _, item in sorted(found, key=lambda entry: (entry[0], entry[1].start)))


def _ask(sentence: str, title: str) -> tuple[str, Kind] | None:
    # A row of a table, or a record written as "field: value; field: value".
    if "|" in sentence or "\t" in sentence or sentence.count("; ") > 2:
        return None
    if detect_lang(sentence) == "zh":
        return _ask_zh(sentence, title)
    if sentence[-1] not in ".!" or not _EN_WORDS[0] <= len(sentence.split()) <= _EN_WORDS[1] or not re.match(_NO_SUBJECT, sentence):
        return None
    defined = _EN_DEFINITION.match(sentence)
    if defined and content_words(defined["what"]):
        return f"What {defined['be']} {(defined['article'] or '').lower()}{defined['what']}?", "definition"
    number = _NUMBER.search(sentence)
    return (f'{title}: which number belongs in the gap? "{_gap(sentence, number)}"', "gap") if number else None


def _ask_zh(sentence: str, title: str) -> tuple[str, Kind] | None:
    if (
        sentence[-1] not in "。！；"
        or not _ZH_CHARACTERS[0] <= len(sentence) <= _ZH_CHARACTERS[1]
        or not re.match(_ZH_NO_SUBJECT, sentence)
    ):
        return None
    defined = _ZH_DEFINITION.match(sentence)
    if defined:
        return f"什么是{defined['what']}？", "definition"
    amount = _ZH_AMOUNT.match(sentence)
    if amount:
        return f"{amount['what']}是多少？", "amount"
    number = _ZH_NUMBER.search(sentence)
    return (f"{title}：下面这句话的空白处应填什么数字？“{_gap(sentence, number)}”", "gap") if number else None


def _gap(sentence: str, number: re.Match[str]) -> str:
    return f"{sentence[: number.start()]}____{sentence[number.end() :]}"
