"""Word measures against the reference implementations and examples worked by hand."""

import random

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from eval.overlap import bleu, chrf, exact_match, rouge, rouge_l, rouge_l_precision, sentence_bleu, token_f1
from retrieval.text import words

ENGLISH = [
    ("The monthly fee is €4.90 from 1 February 2026.", "From 1 February 2026 the fee is €4.90 a month."),
    ("police killed the gunman", "police kill the gunman"),
    ("police killed the gunman", "the gunman kill police"),
    ("Don't re-use a 24-hour sample", "don't reuse the 24 hour sample"),
    ("the the the cat", "the cat the"),
    ("naïve café", "naive cafe"),
    ("", "something"),
    ("something", ""),
    ("", ""),
    ("...", "!?"),
    ("same words here", "same words here"),
]
CHINESE = [
    ("普通门诊处方一般不超过7日用量。", "普通门诊的处方不超过7日用量"),
    ("每人每晚450元", "每晚450元"),
    ("转账手续费为5元", "违约金为贷款余额的百分之一"),
    ("", "没有"),
    ("全角１２３ＡＢＣ", "全角123abc"),
]


class Segmenter:
    """The interface rouge-score expects of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return words(text, "zh")


@pytest.mark.parametrize(("gold", "answer"), ENGLISH)
def test_english_rouge_equals_the_reference(gold, answer):
    reference = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(gold, answer)
    assert rouge(gold, answer, "en") == {name: score.fmeasure for name, score in reference.items()}


@pytest.mark.parametrize(("gold", "answer"), CHINESE)
def test_chinese_rouge_equals_the_reference_over_segmented_words(gold, answer):
    reference = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Segmenter()).score(gold, answer)
    assert rouge(gold, answer, "zh") == {name: score.fmeasure for name, score in reference.items()}


def test_rouge_equals_the_reference_on_random_word_sequences():
    generator = random.Random(7)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for _ in range(300):
        gold, answer = (" ".join(generator.choices("abcdef", k=generator.randrange(0, 80))) for _ in range(2))
        assert rouge(gold, answer, "en") == {name: score.fmeasure for name, score in scorer.score(gold, answer).items()}


def test_rouge_l_published_example():
    # Lin 2004, section 3.1: S1 "police killed the gunman" against S2 and S3: 3/4 and 2/4.
    assert rouge_l("police killed the gunman", "police kill the gunman", "en") == 0.75
    assert rouge_l("police killed the gunman", "the gunman kill police", "en") == 0.5


def test_rouge_l_of_huge_texts():
    text = " ".join(str(number) for number in range(20_000))
    assert rouge_l(text, text, "en") == 1.0
    assert 0 < rouge_l("手续费和违约金" * 5000, "违约金和手续费" * 5000, "zh") < 1


@pytest.mark.parametrize(
    ("gold", "answer", "lang", "f1", "same"),
    [
        ("The Eiffel Tower", "eiffel tower!", "en", 1.0, 1.0),
        ("40 mg once daily", "40 mg twice daily", "en", 0.75, 0.0),
        # 2 common words of 3 given and 2 wanted (the article does not count): P 2/3, R 1.
        ("a red car", "the red car stops", "en", 0.8, 0.0),
        ("yes", "no", "en", 0.0, 0.0),
        ("", "", "en", 1.0, 1.0),
        ("", "x", "en", 0.0, 0.0),
        ("the", "a", "en", 1.0, 1.0),
        ("每晚450元。", "每晚450元", "zh", 1.0, 1.0),
        ("四百元", "", "zh", 0.0, 0.0),
    ],
)
def test_token_f1_and_exact_match(gold, answer, lang, f1, same):
    assert token_f1(gold, answer, lang) == pytest.approx(f1)
    assert exact_match(gold, answer, lang) == same


def test_chinese_f1_is_over_words_not_one_long_token():
    assert 0 < token_f1("转账手续费为每笔5元", "每笔转账收费5元", "zh") < 1


@pytest.mark.parametrize(("pairs", "lang", "tokenizer"), [(ENGLISH, "en", "13a"), (CHINESE, "zh", "zh")])
def test_bleu_and_chrf_equal_sacrebleu(pairs, lang, tokenizer):
    gold, answers = [gold for gold, _ in pairs], [answer for _, answer in pairs]
    assert bleu(gold, answers, lang) == sacrebleu.corpus_bleu(answers, [gold], tokenize=tokenizer).score
    assert chrf(gold, answers) == sacrebleu.corpus_chrf(answers, [gold]).score
    for one, two in pairs:
        assert sentence_bleu(one, two, lang) == sacrebleu.sentence_bleu(two, [one], tokenize=tokenizer, use_effective_order=True).score


def test_nothing_to_compare_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        bleu([], [], "en")
    with pytest.raises(ValueError, match="1 and 2"):
        chrf(["a", "b"], ["a"])


@pytest.mark.parametrize(("gold", "answer"), ENGLISH)
def test_rouge_l_precision_is_that_of_rouge_score(gold, answer):
    theirs = RougeScorer(["rougeL"]).score(gold, answer)["rougeL"].precision
    assert rouge_l_precision(gold, answer, "en") == pytest.approx(theirs)
