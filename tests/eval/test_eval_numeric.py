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
        ("thirty-five percent", [("35", "%")]),
        ("one hundred and twenty days", [("120", "s")]),
        ("a hundred days", [("100", "s")]),
        ("thirteen, sixteen or nineteen weeks", [("19", "s")]),
        ("Thirteen weeks", [("13", "s")]),
        ("seventy two hours and eighty minutes", [("72", "s"), ("80", "s")]),
        ("two thousand five hundred euros", [("2500", "EUR")]),
        ("one million, two hundred thousand dollars", [("1200000", "USD")]),
        ("two and a half million people", []),
        ("three point zero five percent", [("3.05", "%")]),
        ("5 hundred dollars", [("500", "USD")]),
        ("one million, two million dollars", [("1000000", ""), ("2000000", "USD")]),
        ("one thousand three thousand days", [("1000", ""), ("3000", "s")]),
        ("two billion three million four thousand and five euros", [("2003004005", "EUR")]),
        ("one of the two", []),
        ("between five and ten days", [("10", "s")]),
        ("forty-five", [("45", "")]),
        ("fifty", []),
        ("often a hundredfold, the sixth", []),
        ("5 mg/kg/day", [("5", "g")]),
        ("3亿5000万元", [("350000000", "CNY")]),
        ("1万2千元", [("12000", "CNY")]),
        ("2亿3000", [("200003000", "")]),
        ("3万5", [("30000", ""), ("5", "")]),
        ("3亿元5000万元", [("300000000", "CNY"), ("50000000", "CNY")]),
        ("2万人和3000元", [("20000", ""), ("3000", "CNY")]),
        ("一亿二千万", [("120000000", "")]),
        ("两亿五千三百万零四十元", [("253000040", "CNY")]),
        ("三万亿元，一万二千亿元", [("3000000000000", "CNY"), ("1200000000000", "CNY")]),
        ("三万五，二亿五，一千五百，一百二", [("35000", ""), ("250000000", ""), ("1500", ""), ("120", "")]),
        ("三万零五，一百零二，二十五", [("30005", ""), ("102", ""), ("25", "")]),
        ("人民币伍拾万圆整", [("500000", "CNY")]),
        ("叁仟贰佰零伍元，壹亿贰仟万元", [("3205", "CNY"), ("120000000", "CNY")]),
        ("伍元，大陆的陆先生参加，拾起", [("5", "CNY")]),
        ("三萬五千億元，1.2億元", [("3500000000000", "CNY"), ("120000000", "CNY")]),
        ("5 m", [("5", "m")]),
        ("5m", [("5000000", "")]),
        ("$5 m", [("5000000", "USD")]),
        ("5 M", [("5000000", "")]),
        ("3 m/s", [("3", "m")]),
        ("50 m² or 50平方米", [("50", "m2"), ("50", "m2")]),
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
        ("35%", "thirty-five percent"),
        ("120 days", "It takes one hundred and twenty days."),
        ("120", "one hundred and twenty"),
        ("2.5 million dollars", "two million five hundred thousand dollars"),
        ("3.5亿元", "3亿5000万元"),
        ("350,000,000元", "3亿5000万元"),
        ("5 mg/kg", "5 mg per kg"),
        ("5 mg/kg", "每次5毫克/公斤"),
        ("5 mg/kg", "5 mg"),
        ("4.90 a month", "€4.90 per month"),
        ("50元/次", "每次50元"),
        ("7%", "7.4%"),
        ("0", "0.4"),
        ("50万元", "伍拾万元整"),
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
        ("5 percent", "thirty-five percent"),
        ("20 days", "one hundred and twenty days"),
        ("5 mg/kg", "5 mg/day"),
        ("5 mg/kg/day", "5 mg/kg"),
        ("5毫克/公斤", "5毫克/日"),
        ("$5 a month", "$5 a year"),
        ("5 m", "5 million"),
        ("3亿5000万元", "3亿元"),
        ("1亿元", "6000万元"),  # rounds to it
        ("2%", "1.6%"),
        ("1 million", "1.4 million"),
        ("5000万元", "3亿5000万元"),
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


def test_what_a_quantity_is_for_each_of() -> None:
    said = "5 mg/kg/day, $3 a month, 10 mg and 3 times, 每次50元, 50元/次, 7 and/or 8, two per cent per annum"
    assert [quantity.per for quantity in quantities(said)] == [("kg", "day"), ("month",), (), (), (), ("dose",), (), (), ("year",)]


def test_long_texts_take_no_time_to_speak_of() -> None:
    assert len(quantities("1,000 " * 20_000)) == 20_000
    assert len(quantities("one hundred and " * 10_000)) == 10_000 and len(quantities("5 mg" + "/kg" * 20_000)) == 1
    assert quantities("一" * 50_000) and quantities("(" * 50_000 + "-" * 50_000) == []
