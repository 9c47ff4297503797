"""Quantities in both languages and how they are compared."""

from decimal import Decimal

import pytest

from eval.numeric import numeric_f1, quantities


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("-232.18%", [("-232.18", "%")]),
        ("$17,116", [("17116", "USD")]),
        ("(1,234.5)", [("-1234.5", "")]),
        ("$(5.2)", [("-5.2", "USD")]),
        ("US$ 3.2 billion", [("3200000000", "USD")]),
        ("-$5 million", [("-5000000", "USD")]),
        ("占比百分之十二点五", [("12.5", "%")]),
        ("营收1.2亿元", [("120000000", "CNY")]),
        ("一千二百万元", [("12000000", "CNY")]),
        ("人民币３，０００万元", [("30000000", "CNY")]),
        ("二〇二四年", [("2024", "")]),
        ("三个月", [("3", "month")]),
        ("一般情况下十分重要", []),
        ("第一条", []),
        ("on 9/28/18 or 2026-01-31", []),
        ("from 7-10 days", [("7", ""), ("10", "s")]),
        ("COVID-19", [("19", "")]),
        ("", []),
    ],
)
def test_quantities(text: str, found: list[tuple[str, str]]) -> None:
    assert [(quantity.value, quantity.unit) for quantity in quantities(text)] == [(Decimal(value), unit) for value, unit in found]


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("34.8%", "34.8 percent"),
        ("34.8%", "It rose by 34.81%."),
        ("34.8%", "0.348"),
        ("12%", "百分之十二"),
        ("12%", "12"),
        ("0.25%", "25 basis points"),
        ("1.2亿元", "12000万元"),
        ("1.2亿元", "人民币120,000,000元"),
        ("$1,234.5 million", "1.2345 billion dollars"),
        ("5 mg", "0.005 g"),
        ("5 mg", "5"),
        ("24 hours", "1天"),
        ("1 year", "十二个月"),
        ("-5.2", "(5.20)"),
        ("17,116", "17116.00"),
    ],
)
def test_the_same_quantity_written_differently(gold: str, answer: str) -> None:
    assert numeric_f1(gold, answer) == 1


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("34.8%", "35.8%"),
        ("34.8%", "$34.8"),
        ("34.8%", "35%"),  # half a percent is the most that rounding may cost
        ("5 mg", "5 g"),
        ("5", "-5"),
        ("1.2亿元", "1.2万元"),
        ("€4.90", "$4.90"),
        ("3个月", "3天"),
        ("7", "no number"),
    ],
)
def test_another_quantity(gold: str, answer: str) -> None:
    assert numeric_f1(gold, answer) == 0


def test_surplus_quantities_cost_unless_the_question_names_them() -> None:
    question = "What was the revenue in 2018, compared with 2017?"
    assert numeric_f1("$17,116", "In 2018 it was $17,116.", question) == 1
    assert numeric_f1("$17,116", "$17,116 in 2018, after $16,000 in 2017", question) == pytest.approx(2 / 3)
    assert numeric_f1("1; 2", "1") == pytest.approx(2 / 3)
    assert numeric_f1("California", "California") is None


def test_long_texts_take_no_time_to_speak_of() -> None:
    assert len(quantities("1,000 " * 20_000)) == 20_000
    assert quantities("一" * 50_000) and quantities("(" * 50_000 + "-" * 50_000) == []
