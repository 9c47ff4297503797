"""Language, words, terms and sentences."""

from __future__ import annotations

import pytest

from retrieval.text import content_words, detect_lang, index_terms, normalise_question, sentences, terms_with, words


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("What is the notice period?", "en"),
        ("付款期限是多少？", "zh"),
        ("MSA的付款期限是多少", "zh"),
        ("Vancomycin 是什么", "zh"),
        ("What does 甲方 mean in the contract?", "en"),
        ("", "en"),
        ("2026-01-31 / 08:00", "en"),
    ],
)
def test_language(text: str, lang: str) -> None:
    assert detect_lang(text) == lang


def test_words() -> None:
    assert words("The fee is 1,250.50 USD (24-hour) — don’t pay 500mg.") == [
        *["the", "fee", "is", "1250.50", "usd", "24", "hour", "don't", "pay", "500", "mg"]
    ]
    assert words("乙方支付违约金。ＡＢＣ") == ["乙方", "支付", "违约金", "abc"]
    assert words("甲方付款", "en") == ["甲", "方", "付", "款"]
    assert words("1, 2 and 08:00") == ["1", "2", "and", "08:00"]
    assert words(" \n") == []


def test_index_terms() -> None:
    terms = index_terms("The policies of Form AC-02; 付款的期限")
    assert {"polici", "form", "ac", "02", "ac-02", "付", "款", "付款", "期限"} <= set(terms)
    assert not {"the", "of", "的", "款的"} & set(terms)
    assert index_terms("running runs ran") == ["run", "run", "ran"]
    known: dict[str, str] = {}
    assert index_terms("hospitals", known) == ["hospit"] and known == {"hospitals": "hospit"}


def test_an_unknown_chinese_term_shares_terms_with_its_other_segmentations() -> None:
    assert set(index_terms("瑞戈非尼")) <= set(index_terms("口服瑞戈非尼片的剂量"))


def test_content_words() -> None:
    assert content_words("What is the notice period for MSA-0417?") == ["notic", "period", "msa", "0417"]
    assert content_words("合同的付款期限是多少天？") == ["合同", "付款", "期限", "天"]


def test_normalised_questions_are_equal() -> None:
    same = ["What is the Fee?", "what is  the fee", "ＷＨＡＴ is the fee？", "What is the fee ?!"]
    assert {normalise_question(text) for text in same} == {"what is the fee"}
    assert normalise_question("差旅费 报销 标准是多少？？ ") == normalise_question("差旅费报销标准是多少")
    assert normalise_question("fee 2025?") != normalise_question("fee 2026?")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10⁹", "109"),
        ("2³", "23"),
        ("10⁻⁹", "10\u22129"),
        ("2ⁿ", "2n"),
        ("a₁₂", "a12"),
        ("1½ tablets", "11\u20442 tablets"),
        ("½", "1⁄2"),
        ("第①条", "第1条"),
    ],
)
def test_powers_indices_fractions_and_circled_numbers_are_no_plain_digits(one: str, other: str) -> None:
    assert normalise_question(one) != normalise_question(other)
    assert normalise_question(f"Ｗhat is　{one}？") == normalise_question(f"what is {one}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("１０９", "109"),
        ("ﬁne", "fine"),
        ("５㎎", "5mg"),
        ("第Ⅳ条", "第IV条"),
        ("ｶﾞ", "ガ"),
        ("cafe\u0301²", "café²"),
        ("10\u3000mg", "10 mg"),
        ("（甲）", "(甲)"),
    ],
)
def test_ordinary_compatible_forms_do_not_count(one: str, other: str) -> None:
    assert normalise_question(one) == normalise_question(other)


def _split(text: str) -> list[str]:
    return [text[start:end] for start, end in sentences(text)]


def test_english_sentences() -> None:
    assert _split("Dr. Smith saw e.g. five patients. He left at 5.30 p.m. and No. 5 stayed! “Why?” she asked.") == [
        "Dr. Smith saw e.g. five patients.",
        "He left at 5.30 p.m. and No. 5 stayed!",
        "“Why?” she asked.",
    ]
    assert _split("1. Meropenem needs a code. It is valid.\n2.1 The term is three years.") == [
        *["1. Meropenem needs a code.", "It is valid.", "2.1 The term is three years."]
    ]


def test_an_abbreviation_of_number_is_also_a_word() -> None:
    assert _split("She said no. He saw No. 5 on p. 7 and left.") == ["She said no.", "He saw No. 5 on p. 7 and left."]


def test_companies_and_clauses_go_on_after_their_full_stop() -> None:
    assert _split("The buyer is Acme Co., Ltd. (the “Buyer”). It was sold by Acme Inc. The price is due.") == [
        *["The buyer is Acme Co., Ltd. (the “Buyer”).", "It was sold by Acme Inc.", "The price is due."]
    ]
    assert _split("Section 3.2. The Buyer shall pay. This is Section 3. It ends.") == [
        *["Section 3.2. The Buyer shall pay.", "This is Section 3.", "It ends."]
    ]


def test_chinese_sentences() -> None:
    assert _split("甲方应在15日内付款。乙方（含）说：“可以。”然后离开；疗程3.5天！体温38.5℃……") == [
        *["甲方应在15日内付款。", "乙方（含）说：“可以。”", "然后离开；", "疗程3.5天！", "体温38.5℃……"]
    ]


def test_lines_end_sentences_unless_they_were_wrapped() -> None:
    wrapped = "A current account is classed as dormant when there has been no transaction\nor contact for 24 months. Then it ends."
    assert _split(wrapped)[0].endswith("24 months.")
    assert _split("# Title. One\n\nOwner: Legal\n- item one\n* item two") == ["Title.", "One", "Owner: Legal", "item one", "item two"]


def test_rows_and_records_are_one_sentence() -> None:
    row = "| Amoxicillin. First | 5 mg. More |"
    record = "药品: 布洛芬; 说明: 脱水患儿禁用。疗程3天；复诊"
    assert _split(f"{row}\n|---|---|\n{record}\n") == [row, record]


HOSTILE = ["a" * 100_000, "a-" * 50_000, "." * 100_000 + "x", "合同付款" * 25_000, "# " + " " * 100_000 + "x", "(" * 100_000]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_handled_in_linear_time(text: str) -> None:
    covered = sum(end - start for start, end in sentences(text))
    assert covered <= len(text)
    assert len(index_terms(text)) <= 3 * len(text)
    assert len(words(text)) <= len(text)


def test_terms_with_initials_are_the_index_terms_with_them() -> None:
    """Stemming never changes the first letter, the irregular words of the stemmer included."""
    text = "The skies were dying, lying and tying; idly an ugly news sky succeeds. Generously early canning! 20 mg AC-02 剂量与剂量"
    every = set(index_terms(text))
    latin = {term for term in every if term.isalpha() and term.isascii()}
    assert len(latin) > 10
    for initial in "abcdefghijklmnopqrstuvwxyz":
        assert terms_with({initial}, text) == every - {term for term in latin if term[0] != initial}
    assert terms_with(set("abcdefghijklmnopqrstuvwxyz"), text) == every
