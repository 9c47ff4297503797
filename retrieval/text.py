"""Language, words and sentences, in English and Chinese: the only place that knows how they differ.

Chinese is segmented by rjieba (the dictionary and HMM of jieba); English is stemmed by Snowball's English stemmer for the
lexical index only. Every function takes text in any mixture of scripts. A `Dictionary` adds a team's own words.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import threading
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal

from retrieval import structure

Lang = Literal["en", "zh"]

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff々〇"
_HAN_RUN = re.compile(f"[{_HAN}]+")
_LATIN_WORD = re.compile(r"[^\W\d_" + _HAN + r"]+")
_TOKEN = re.compile(
    rf"(?P<han>[{_HAN}]+)"
    r"|(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|\d+(?:[.:]\d+)*)"
    rf"|(?P<word>[^\W\d_{_HAN}][^\W_{_HAN}]*(?:['’][^\W\d_{_HAN}]+)*)"
)
# Codes such as AC-02, FG-11A or 2026-01-31: indexed whole as well as in parts.
_CODE = re.compile(r"(?<![^\W_])(?=[a-z0-9./-]{0,40}\d)[a-z0-9]{1,20}(?:[-/.][a-z0-9]{1,20}){1,6}(?![^\W_])")
# Of text longer than this, the language is judged by its beginning.
_LANG_SAMPLE = 20_000


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_EN_STOP = _word_set(
    "a an and are as at be been but by can could did do does for from had has have how i if in into is it its may me my no not of on or "
    "our shall she should so such that the their them then there these they this those to us was we were what when where which who whom "
    "whose why will with would you your he her his him"
)
_ZH_STOP = _word_set(
    "的 了 是 在 和 与 或 及 也 都 就 而 之 其 对 于 为 以 被 把 从 到 向 由 等 吗 呢 吧 啊 么 什么 怎么 怎样 如何 哪 哪个 哪些 哪里 "
    "谁 多少 几 请问 请 我 你 您 他 她 它 我们 你们 他们 这 那 这个 那个 是否 有 没有 会 能 可以 应该 需要 一个 一些 如果 因为 所以 但 但是"
)

# Words with a negating part that deny nothing, unless the characters only meet, as in 不服用 (不 + 服用) and 没收到 (没 + 收到).
NO_DENIAL = re.compile(
    r"非常(?!规)|除非|莫非|非洲|(?<![尚从还])未来|未成年|未免|无论|无线|无锡|无数|无比|不同(?![意步])|不仅|不但|不断(?![开电网])|不良|不动产|不锈钢"
    r"|不服(?![用药从务])|不久|不妨|不管|不过(?=[，,])|差不多|没收(?![到取费入])|是否|能否|可否|否则|免疫"
    r"|别[人墅名]|[分区特性级类识鉴差个辨告]别|\bnot only\b|\bno\. ?(?=\d)",
    re.IGNORECASE,
)

_ABBREVIATIONS = _word_set("mr mrs ms dr prof st vs cf e.g i.e approx ca eq ed eds al resp incl excl u.s u.k ph.d v")
# These abbreviate only before a number: "No. 5", but "She said no. He left."
_NUMBER_ABBREVIATIONS = _word_set(
    "no nos art arts sec secs fig figs p pp vol para paras cl ch ref refs ext tel jan feb mar apr jun jul aug sept oct nov dec"
)
# The name of a company goes on in brackets or quotes: "Acme Co., Ltd. (the Buyer)", but "by Acme Ltd. It pays."
_COMPANY_ABBREVIATIONS = _word_set("ltd co inc corp bros plc llc")
# The number of a clause belongs to what follows: "Section 3.2. The Buyer pays."
_CLAUSE_WORDS = _word_set("section sec article art clause paragraph para schedule annex appendix chapter part")
_ENDERS = "。！？；…!?"
_CLOSERS = "”’」』）)】》〉\"'"
_BOUNDARY = re.compile(rf"[。！？；…]+[{_CLOSERS}]*|(?<![!?])[!?]+[{_CLOSERS}]*(?=\s|$|[{_HAN}])|(?<!\.)\.+[{_CLOSERS}]*(?=\s|$)")
_LOOK_BACK = 40
# A line at least this wide that ends in the middle of a sentence was wrapped by an editor.
_WRAP_WIDTH = 50


class Dictionary:
    """A team's own words: Chinese ones are known to the segmentation and indexed whole, others are neither stemmed nor stop words.

    `words` maps each to its frequency in jieba's sense (None: high enough to be kept whole). A word in several scripts counts as its
    parts. Immutable and thread-safe; the segmentation (24 MB) is made on first use.
    """

    def __init__(self, words: Mapping[str, int | None]) -> None:
        self._han: dict[str, int | None] = {}
        kept: set[str] = set()
        for word, frequency in words.items():
            for kind, token in _tokens(_fold(word)):
                if kind == "han":
                    self._han[token] = frequency
                elif kind == "word":
                    kept.add(token)
        self._kept = frozenset(kept)
        self._jieba: Any = None
        self._lock = threading.Lock()
        content = json.dumps([sorted(self._han.items()), sorted(kept)], ensure_ascii=False)
        self.hash = hashlib.sha256(content.encode("utf-8")).hexdigest()

    def __contains__(self, token: str) -> bool:
        """Whether a token as `words` gives it is one of the team's."""
        return token in self._kept or token in self._han

    def segment(self, run: str) -> list[str]:
        """A run of Han characters in words."""
        with self._lock:
            if self._jieba is None:
                import rjieba

                made = rjieba.Jieba()
                for word, frequency in self._han.items():
                    made.add_word(word, frequency, None)
                self._jieba = made
        cut: list[str] = self._jieba.cut(run)
        return cut


def detect_lang(text: str) -> Lang:
    """The language of a text or a short question, by script: "zh" if it has at least as many Han characters as words in other letters."""
    sample = text[:_LANG_SAMPLE]
    han = sum(len(run) for run in _HAN_RUN.findall(sample))
    return "zh" if han and han >= len(_LATIN_WORD.findall(sample)) else "en"


def words(text: str, lang: str | None = None, dictionary: Dictionary | None = None) -> list[str]:
    """Lower-case NFKC words in order, without punctuation: "1,250.50" is one word ("1250.50"), "24-hour" two, "don't" one.

    Chinese runs are segmented; with `lang` "en" they are given character by character, which needs no segmentation.
    """
    found: list[str] = []
    for kind, token in _tokens(_fold(text)):
        if kind != "han":
            found.append(token)
        elif lang == "en":
            found.extend(token)
        else:
            found.extend(_segment(token, dictionary))
    return found


def index_terms(text: str, stems: dict[str, str] | None = None, dictionary: Dictionary | None = None) -> list[str]:
    """Terms of the lexical index, with repetitions: English stems without stop words, codes whole and in parts, Chinese
    characters and bigrams without stop words (so that a term no dictionary knows is found), and a team's longer words whole. `stems`
    may carry known stems from call to call; it is filled.
    """
    return _terms(text, stems, dictionary, None)


def terms_with(initials: Collection[str], text: str, stems: dict[str, str] | None = None, dictionary: Dictionary | None = None) -> set[str]:
    """The terms of `index_terms`, of English words only those with one of the initials: stemming, which takes most of the time, keeps
    the first letter of a word."""
    return set(_terms(text, stems, dictionary, frozenset(initials)))


def _terms(text: str, stems: dict[str, str] | None, dictionary: Dictionary | None, initials: frozenset[str] | None) -> list[str]:
    folded = _fold(text)
    latin: list[str] = []
    terms: list[str] = []
    for kind, token in _tokens(folded):
        if kind == "han":
            terms.extend(_han_terms(token, dictionary))
        elif kind == "number" or (dictionary is not None and token in dictionary):
            terms.append(token)
        elif token not in _EN_STOP and (initials is None or token[0] in initials):
            latin.append(token)
    terms.extend(code.group() for code in _CODE.finditer(folded))
    return _stem(latin, stems) + terms


def content_words(question: str, dictionary: Dictionary | None = None) -> list[str]:
    """The words of a question that carry meaning, once each, in the form `index_terms` gives them (Chinese: words, no bigrams)."""
    latin: list[str] = []
    other: list[str] = []
    for kind, token in _tokens(_fold(question)):
        if kind == "han":
            other.extend(word for word in _segment(token, dictionary) if not _is_stop(word, dictionary))
        elif kind == "number" or (dictionary is not None and token in dictionary):
            other.append(token)
        elif token not in _EN_STOP:
            latin.append(token)
    return list(dict.fromkeys(_stem(latin, None) + other))


def phrase_units(text: str) -> list[str]:
    """What phrases are compared by, in order: English stems, numbers, single Chinese characters.

    A stop word in capitals stays as it is, so that "WHO" and "IT" are not "who" and "it".
    """
    found: list[str] = []
    for kind, token in _tokens(unicodedata.normalize("NFKC", text)):
        lower = token.lower()
        if kind == "han":
            found.extend(token)
        elif kind == "number" or (token.isupper() and len(token) > 1 and lower in _EN_STOP):
            found.append(token)
        else:
            found.extend(_stem([lower], None))
    return found


@lru_cache(8192)
def keeps_form(char: str) -> bool:
    """Whether NFKC would make a character say something else: 10⁹ is not 109, 2ⁿ not 2n, 1½ not 11⁄2 and ① not 1."""
    return unicodedata.category(char) == "No" or unicodedata.decomposition(char).startswith(("<super>", "<sub>"))


def normalise_question(text: str) -> str:
    """The form in which two questions are the same question: NFKC, case, white space and trailing punctuation do not count.

    What `keeps_form` stays as it is.
    """
    parts = ("".join(run) if kept else unicodedata.normalize("NFKC", "".join(run)) for kept, run in itertools.groupby(text, keeps_form))
    folded = " ".join("".join(parts).casefold().split())
    folded = re.sub(rf"(?<=[{_HAN}]) (?=\S)|(?<=\S) (?=[{_HAN}])", "", folded)
    return folded.rstrip(" ?!.。…;,、，；")


def sentences(text: str) -> list[tuple[int, int]]:
    """Offsets of the sentences of `text`, in order, without surrounding white space, list bullets and heading marks.

    A sentence ends at 。！？；… or at . ! ? before white space (not after abbreviations, in numbers, or in a clause number), and with
    its line, unless the line was wrapped in the middle of the sentence. Table rows and records are one sentence each.
    """
    return list(iter_sentences(text, 0, len(text)))


def iter_sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """`sentences` of ``text[start:end]``, lazily, with offsets in `text`; `start` must be the beginning of a line."""
    for block_start, block_end in _blocks(text, start, end):
        line = text[block_start:block_end]
        if structure.is_rule(line):
            continue
        if structure.is_row(line):
            yield _trim(text, block_start, block_end)
            continue
        yield from _split(text, block_start + structure.decoration(line), block_end)


# --- inside


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _tokens(folded: str) -> Iterator[tuple[str, str]]:
    for found in _TOKEN.finditer(folded):
        kind, token = str(found.lastgroup), found.group()
        if kind == "number":
            yield kind, token.replace(",", "")
        else:
            yield kind, token.replace("’", "'")


def _segment(run: str, dictionary: Dictionary | None) -> list[str]:
    if dictionary is not None:
        return dictionary.segment(run)
    import rjieba

    cut: list[str] = rjieba.cut(run)
    return cut


def _is_stop(word: str, dictionary: Dictionary | None) -> bool:
    return word in _ZH_STOP and (dictionary is None or word not in dictionary)


def _han_terms(run: str, dictionary: Dictionary | None) -> Iterator[str]:
    """Characters and bigrams of the stretches between stop words, so that a word is found however it would be cut."""
    for is_stop, group in itertools.groupby(_segment(run, dictionary), lambda word: _is_stop(word, dictionary)):
        if not is_stop:
            cut = list(group)
            stretch = "".join(cut)
            yield from stretch
            yield from map("".join, itertools.pairwise(stretch))
            if dictionary is not None:
                yield from (word for word in cut if len(word) > 2 and word in dictionary)


def _stem(tokens: list[str], stems: dict[str, str] | None) -> list[str]:
    if stems is None:
        return [_stemmed(token) for token in tokens]
    missing = list({token for token in tokens if token not in stems})
    stems.update(zip(missing, _stemmer().stemWords(missing), strict=True))
    return [stems[token] for token in tokens]


@lru_cache(maxsize=20_000)
def _stemmed(token: str) -> str:
    """The stem of one word. Questions and the sentences compared with them have mostly the same few thousand."""
    return str(_stemmer().stemWord(token))


def _stemmer() -> Any:
    import snowballstemmer

    # A stemmer holds state while it works, so each call has its own.
    return snowballstemmer.stemmer("english")


def _blocks(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Lines, with wrapped lines joined to the line they continue."""
    begin, last = start, ""
    position = start
    while position < end:
        newline = text.find("\n", position, end)
        stop = end if newline < 0 else newline
        line = text[position:stop]
        if not (last and _continues(last, line)):
            if last:
                yield begin, position - 1
            begin = position
        last = line.strip()
        position = stop + 1
    if last:
        yield begin, end


def _continues(last: str, line: str) -> bool:
    """Whether `line` goes on with the sentence of the line `last` above it."""
    short = structure.width(last[:_WRAP_WIDTH]) < _WRAP_WIDTH
    if short or structure.starts_block(line) or structure.is_row(last) or structure.heading(last):
        return False
    first = line.lstrip()[0]
    if last[-1] in _ENDERS + ":：" + _CLOSERS or (last[-1] == "." and not first.islower()):
        return False
    return first.islower() or last[-1] in ",，、" or last[-_LOOK_BACK:].rsplit(None, 1)[-1].lower() in _EN_STOP


def _split(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    begin = start
    for found in _BOUNDARY.finditer(text, start, end):
        if text[found.start()] == "." and not _ends_here(text, begin, found, end):
            continue
        if text[found.start()] in "!?" and text[found.end() - 1] in "\"'”’" and _rest(text, found.end(), end)[:1].islower():
            continue
        span = _trim(text, begin, found.end())
        if span[0] < span[1]:
            yield span
        begin = found.end()
    span = _trim(text, begin, end)
    if span[0] < span[1]:
        yield span


def _ends_here(text: str, begin: int, found: re.Match[str], end: int) -> bool:
    """Whether the full stop at `found` ends the sentence that began at `begin`."""
    rest = _rest(text, found.end(), end)
    if not rest:
        return True
    before = text[max(begin, found.start() - _LOOK_BACK) : found.start()].split()
    token = before[-1].lstrip("([“\"'").lower() if before else ""
    if len(before) == 1 and re.fullmatch(r"[\divxlc]+(?:\.\d+)*|[a-z]", token):
        return False
    if len(before) == 2 and before[0].lower() in _CLAUSE_WORDS and re.fullmatch(r"[\divxlc]+(?:\.\d+)*", token):
        return False
    if token in _COMPANY_ABBREVIATIONS and rest[0] in '([“"':
        return False
    if token in _ABBREVIATIONS or (token in _NUMBER_ABBREVIATIONS and rest[0].isdigit()):
        return False
    return not ((len(token) == 1 and token.isalpha() and token.isascii()) or rest[0].islower())


def _rest(text: str, start: int, end: int) -> str:
    return text[start : min(end, start + _LOOK_BACK)].lstrip()


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
