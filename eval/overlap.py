"""How much an answer's words overlap with the gold answer's: ROUGE, token F1, exact match, BLEU, chrF.

Scores of one pair of texts. `lang` "zh" cuts words with the segmenter, anything else the way the reference
implementations cut English. An empty text beside a non-empty one scores 0.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Final

from retrieval.text import words

_ASCII_WORD: Final = re.compile(r"[a-z0-9]+")
_ARTICLE: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def rouge(gold: str, answer: str, lang: str) -> dict[str, float]:
    """F measures ``rouge1``, ``rouge2`` and ``rougeL`` in [0, 1] (Lin 2004, "ROUGE: A package for automatic evaluation of
    summaries"); for English equal to the package rouge-score without stemming."""
    one, two = _rouge_words(gold, lang), _rouge_words(answer, lang)
    return {"rouge1": _ngram_f(one, two, 1), "rouge2": _ngram_f(one, two, 2), "rougeL": rouge_l(gold, answer, lang)}


def rouge_l(gold: str, answer: str, lang: str) -> float:
    """ROUGE-L F: the longest common subsequence of words against both lengths."""
    one, two = _rouge_words(gold, lang), _rouge_words(answer, lang)
    return _f_measure(_lcs(one, two), len(two), len(one))


def rouge_l_precision(gold: str, answer: str, lang: str) -> float:
    """ROUGE-L precision: the longest common subsequence of words against the length of `answer`."""
    one, two = _rouge_words(gold, lang), _rouge_words(answer, lang)
    return _lcs(one, two) / max(1, len(two))


def token_f1(gold: str, answer: str, lang: str) -> float:
    """F1 over bags of words, normalised as for SQuAD (Rajpurkar et al. 2016): case, punctuation and articles do not count.

    Chinese is cut into words. Two texts without words are equal: 1.
    """
    one, two = _plain_words(gold, lang), _plain_words(answer, lang)
    if not one or not two:
        return float(one == two)
    return _f_measure((Counter(one) & Counter(two)).total(), len(two), len(one))


def exact_match(gold: str, answer: str, lang: str) -> float:
    """1 if the normalised words are the same in the same order, else 0."""
    return float(_plain_words(gold, lang) == _plain_words(answer, lang))


def bleu(gold: Sequence[str], answers: Sequence[str], lang: str) -> float:
    """Corpus BLEU in [0, 100] by sacrebleu, tokenised "zh" or "13a". Raises ValueError when the two differ in length or are empty."""
    from sacrebleu.metrics import BLEU

    _check(gold, answers)
    return float(BLEU(tokenize=_bleu_tokenizer(lang)).corpus_score(list(answers), [list(gold)]).score)


def sentence_bleu(gold: str, answer: str, lang: str) -> float:
    """BLEU of one pair in [0, 100] by sacrebleu, with effective order: short answers have no 4-grams."""
    from sacrebleu.metrics import BLEU

    return float(BLEU(tokenize=_bleu_tokenizer(lang), effective_order=True).sentence_score(answer, [gold]).score)


def chrf(gold: Sequence[str], answers: Sequence[str]) -> float:
    """Corpus chrF2 in [0, 100] by sacrebleu; characters need no segmentation. Raises ValueError like `bleu`."""
    from sacrebleu.metrics import CHRF

    _check(gold, answers)
    return float(CHRF().corpus_score(list(answers), [list(gold)]).score)


def _check(gold: Sequence[str], answers: Sequence[str]) -> None:
    if len(gold) != len(answers) or not gold:
        raise ValueError(f"as many answers as gold answers are needed, and at least one; got {len(answers)} and {len(gold)}")


def _bleu_tokenizer(lang: str) -> str:
    return "zh" if lang == "zh" else "13a"


def _rouge_words(text: str, lang: str) -> list[str]:
    return words(text, "zh") if lang == "zh" else _ASCII_WORD.findall(text.lower())


def _plain_words(text: str, lang: str) -> list[str]:
    if lang == "zh":
        return words(text, "zh")
    return _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _ngram_f(gold: list[str], answer: list[str], n: int) -> float:
    one, two = (Counter(zip(*(tokens[i:] for i in range(n)), strict=False)) for tokens in (gold, answer))
    return _f_measure((one & two).total(), two.total(), one.total())


def _f_measure(common: int, answered: int, wanted: int) -> float:
    precision, recall = common / max(answered, 1), common / max(wanted, 1)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def _lcs(one: list[str], two: list[str]) -> int:
    """Length of the longest common subsequence, bit-parallel over `one` (Hyyrö 2004), so that long answers cost little."""
    places: dict[str, int] = {}
    for index, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << index
    full = (1 << len(one)) - 1
    row = full
    for token in two:
        hit = row & places.get(token, 0)
        row = ((row + hit) | (row - hit)) & full
    return len(one) - row.bit_count()
