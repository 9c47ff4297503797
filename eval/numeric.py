"""Quantities in English and Chinese text, and how well an answer's agree with the gold answer's.

A quantity is a number with its scale (thousand, 万, 亿 …) and its unit: percent, a currency, or a measure of time, mass, length or volume.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

# Beyond this relative error an answer that is written with fewer digits than the gold answer is wrong, whatever it was rounded to.
_COARSE: Final = Decimal("0.005")

_SCALES: Final = {
    **dict.fromkeys(("thousand", "thousands", "k", "千"), Decimal(10) ** 3),
    **dict.fromkeys(("万", "萬"), Decimal(10) ** 4),
    **dict.fromkeys(("million", "millions", "mn", "m", "mm", "百万"), Decimal(10) ** 6),
    **dict.fromkeys(("千万",), Decimal(10) ** 7),
    **dict.fromkeys(("亿", "億"), Decimal(10) ** 8),
    **dict.fromkeys(("billion", "billions", "bn", "b", "十亿"), Decimal(10) ** 9),
    **dict.fromkeys(("trillion", "trillions", "tn", "万亿"), Decimal(10) ** 12),
    **dict.fromkeys(("百",), Decimal(100)),
}
# Written form: (unit it is compared in, how many of those one is).
_UNITS: Final = {
    **dict.fromkeys(("%", "percent", "per cent", "pct", "个百分点", "百分点", "percentage points", "percentage point"), ("%", "1")),
    **dict.fromkeys(("basis points", "basis point", "bps", "bp", "个基点", "基点"), ("%", "0.01")),
    "‰": ("%", "0.1"),
    **dict.fromkeys(("usd", "us dollars", "dollars", "dollar", "美元", "美金"), ("USD", "1")),
    **dict.fromkeys(("eur", "euros", "euro", "欧元"), ("EUR", "1")),
    **dict.fromkeys(("gbp", "pounds", "pound", "英镑"), ("GBP", "1")),
    **dict.fromkeys(("cny", "rmb", "yuan", "元人民币", "人民币元", "元", "块"), ("CNY", "1")),
    **dict.fromkeys(("港元", "港币", "hkd"), ("HKD", "1")),
    **dict.fromkeys(("日元", "jpy", "yen"), ("JPY", "1")),
    **dict.fromkeys(("seconds", "second", "秒钟", "秒"), ("s", "1")),
    **dict.fromkeys(("minutes", "minute", "分钟"), ("s", "60")),
    **dict.fromkeys(("hours", "hour", "个小时", "小时"), ("s", "3600")),
    **dict.fromkeys(("business days", "working days", "个工作日", "工作日"), ("working day", "1")),
    **dict.fromkeys(("days", "day", "天", "日"), ("s", "86400")),
    **dict.fromkeys(("weeks", "week", "周", "个星期", "星期"), ("s", "604800")),
    **dict.fromkeys(("months", "month", "个月"), ("month", "1")),
    **dict.fromkeys(("years", "year", "周年", "年"), ("month", "12")),
    **dict.fromkeys(("µg", "μg", "mcg", "micrograms", "微克"), ("g", "0.000001")),
    **dict.fromkeys(("mg", "milligrams", "milligram", "毫克"), ("g", "0.001")),
    **dict.fromkeys(("g", "grams", "gram", "克"), ("g", "1")),
    **dict.fromkeys(("kg", "kilograms", "kilogram", "千克", "公斤"), ("g", "1000")),
    **dict.fromkeys(("tonnes", "tonne", "吨"), ("g", "1000000")),
    **dict.fromkeys(("mm", "millimetres", "millimeters", "毫米"), ("m", "0.001")),
    **dict.fromkeys(("cm", "centimetres", "centimeters", "厘米"), ("m", "0.01")),
    **dict.fromkeys(("metres", "meters", "米"), ("m", "1")),
    **dict.fromkeys(("km", "kilometres", "kilometers", "千米", "公里"), ("m", "1000")),
    **dict.fromkeys(("ml", "millilitres", "milliliters", "毫升"), ("l", "0.001")),
    **dict.fromkeys(("l", "litres", "liters", "升"), ("l", "1")),
}
_SYMBOLS: Final = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "CNY", "US$": "USD", "HK$": "HKD", "USD": "USD", "EUR": "EUR", "GBP": "GBP"}
_SYMBOLS_ZH: Final = {"CNY": "CNY", "RMB": "CNY", "HKD": "HKD", "人民币": "CNY"}
_DIGITS: Final = {
    sign: value for value, signs in enumerate(("〇零", "一", "二两", "三", "四", "五", "六", "七", "八", "九")) for sign in signs
}
_WORDS: Final = {
    **{"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11},
    **{"twelve": 12, "fourteen": 14, "fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "ninety": 90},
}
_TENS: Final = {"十": 10, "百": 100, "千": 1000}
_MYRIADS: Final = {"万": 10**4, "亿": 10**8}


def _either(words: Sequence[str]) -> str:
    """A pattern for any of the words, the longest first; one of Latin letters ends where the word ends."""
    ordered = sorted(words, key=len, reverse=True)
    return "|".join(re.escape(word) + (r"(?![a-z])" if word[-1].isascii() and word[-1].isalpha() else "") for word in ordered)


_HAN_NUMBER: Final = "[〇零一二两三四五六七八九十百千]+(?:[万亿][〇零一二两三四五六七八九十百千]*)*(?:点[〇零一二三四五六七八九]+)?"
_QUANTITY: Final = re.compile(
    rf"(?P<share>百分之|千分之)?(?P<open>\()?(?P<sign>[-−–]|负|(?<=百分之)负)?\s?"
    rf"(?P<symbol>{_either([*_SYMBOLS, *_SYMBOLS_ZH])})?\s?(?P<inner>[-−(])?"
    rf"(?:(?P<number>(?<![a-z0-9.])\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?|\.\d+)|(?P<han>{_HAN_NUMBER})"
    rf"|\b(?P<word>{'|'.join(_WORDS)})\b)"
    rf"[ -]?(?P<scale>{_either(list(_SCALES))})?[ -]?(?:of )?(?P<unit>{_either(list(_UNITS))})?(?P<close>\))?",
    re.IGNORECASE,
)
_DATE: Final = re.compile(r"\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its scale; `step` is what its last digit stands for. `unit` is what it is compared in ('' if none is written), `one`
    how many of those its own unit is: 5 mg is 5, with unit "g" and one 0.001. `written` are its digits in the text, '' if it is in words.
    """

    value: Decimal
    step: Decimal
    unit: str = ""
    one: Decimal = Decimal(1)
    written: str = ""

    def percent(self) -> Quantity:
        """A share, as 0.12, in percent."""
        return Quantity(self.value * 100, self.step * 100, self.unit)


def quantities(text: str) -> list[Quantity]:
    """The quantities of a text, in order. Dates in digits are not quantities; numbers in words need a unit, Chinese ones two characters or
    a unit.
    """
    folded = _DATE.sub(" ", unicodedata.normalize("NFKC", text))
    found = (_read(match) for match in _QUANTITY.finditer(folded))
    return [quantity for quantity in found if quantity is not None]


def same(gold: Quantity, answer: Quantity) -> bool:
    """Whether `answer` is the gold quantity, up to rounding, a missing unit, and a percentage written as a share (12 % and 0.12).

    An answer with as many digits or more must round to the gold value; one with fewer must be the gold value rounded and within half a
    percent of it.
    """
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if gold.unit == answer.unit and gold.one == answer.one:
        return _close(gold, answer)
    if gold.unit == answer.unit:
        # 48 hours are 2 days, but 49 are not rounded to them.
        one, two = gold.value * gold.one, answer.value * answer.one
        return abs(one - two) <= _COARSE * abs(one)
    # "0.12" for "12 %", but also "12" where the question asks for percent.
    as_share = (gold.unit == "%" and _close(gold, answer.percent())) or (answer.unit == "%" and _close(gold.percent(), answer))
    return as_share or _close(gold, answer)


def numeric_f1(gold: str, answer: str, question: str = "") -> float | None:
    """F1 in [0, 1] over the quantities of both texts; None if the gold answer has none.

    Quantities that the question already names (years, thresholds) do not count against the answer, other surplus ones do: who lists
    every number of a table has not answered. Matched as bags of numbers, as DROP does (Dua et al. 2019), with units and rounding.
    """
    wanted, given = quantities(gold), quantities(answer)
    if not wanted:
        return None
    left = list(given)
    hits = 0
    for quantity in wanted:
        match = next((other for other in left if same(quantity, other)), None)
        if match is not None:
            left.remove(match)
            hits += 1
    named = quantities(question)
    surplus = sum(not any(same(known, other) for known in named) for other in left)
    return 2 * hits / (len(wanted) + hits + surplus)


def _read(match: re.Match[str]) -> Quantity | None:
    han, unit, scale = match["han"], (match["unit"] or "").lower(), (match["scale"] or "").lower()
    symbol = (match["symbol"] or "").upper()
    if han is not None:
        if not (match["share"] or unit or symbol or len(han) > 3 or (len(han) > 1 and set(han) & set(_TENS | _MYRIADS))):
            return None
        value, step = _han(han)
    elif match["word"] is not None:
        if not unit:
            return None
        value, step = Decimal(_WORDS[match["word"].lower()]), Decimal(1)
    else:
        written = match["number"].replace(",", "")
        value, step = Decimal(written), Decimal(1).scaleb(-len(written.partition(".")[2]))
    if scale == "mm" and not symbol and not unit:
        scale, unit = "", "mm"
    factor, one = _SCALES[scale] if scale else Decimal(1), Decimal(1)
    name = _SYMBOLS.get(symbol) or _SYMBOLS_ZH.get(symbol) or ""
    if unit == "年" and value >= 1000:
        unit = ""  # a year, not a time of so many
    if unit:
        name, size = _UNITS[unit]
        one = Decimal(size)
    if match["share"]:
        name, one = "%", Decimal(1) if match["share"] == "百分之" else Decimal("0.1")
    # Accountants write losses in brackets.
    bracketed = bool(match["open"] and match["close"]) and (bool(symbol) or "," in match[0] or "." in match[0] or name == "%")
    negative = bool(match["inner"]) or _is_minus(match) or bracketed
    return Quantity((-value if negative else value) * factor, step * factor, name, one, match["number"] or "")


def _is_minus(match: re.Match[str]) -> bool:
    """A sign, unless it is the dash of a range ("3-5 days") or of a compound ("COVID-19")."""
    if not match["sign"]:
        return False
    before = match.string[: match.start("sign")][-1:]
    return match["sign"] == "负" or not before.isalnum()


def _close(gold: Quantity, answer: Quantity) -> bool:
    apart = abs(gold.value - answer.value)
    if apart <= gold.step / 2:
        return True
    return apart <= answer.step / 2 and apart <= _COARSE * abs(gold.value)


def _han(text: str) -> tuple[Decimal, Decimal]:
    """A number in Chinese numerals, and what its last digit stands for."""
    whole, _, rest = text.partition("点")
    # 二〇二四 is written digit by digit.
    total = Decimal(_grouped(whole) if set(whole) & set(_TENS | _MYRIADS) else "".join(str(_DIGITS[sign]) for sign in whole))
    step = Decimal(1).scaleb(-len(rest))
    return total + (Decimal("".join(str(_DIGITS[sign]) for sign in rest)) * step if rest else 0), step


def _grouped(text: str) -> int:
    total = section = digit = 0
    for sign in text:
        if sign in _DIGITS:
            digit = _DIGITS[sign]
        elif sign in _TENS:
            section, digit = section + (digit or 1) * _TENS[sign], 0
        else:
            total, section, digit = (total + section + digit) * _MYRIADS[sign], 0, 0
    return total + section + digit
