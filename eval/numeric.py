"""Quantities in English and Chinese text, and how well an answer's agree with the gold answer's.

A quantity is a number with its scale (thousand, 万, 亿 …) and its unit: percent, a currency, or a measure of time, mass, length or volume.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

# Beyond this relative error an answer that is written with fewer digits than the gold answer is wrong, whatever it was rounded to.
_COARSE: Final = Decimal("0.005")
# The same for one with more digits, which must round to the gold answer: 6000万 rounds to 1亿, and is not what was asked for.
_FINE: Final = Decimal("0.1")

_SCALES: Final = {
    **dict.fromkeys(("thousand", "thousands", "k", "千"), Decimal(10) ** 3),
    **dict.fromkeys(("万", "萬"), Decimal(10) ** 4),
    **dict.fromkeys(("million", "millions", "mn", "m", "mm", "百万"), Decimal(10) ** 6),
    **dict.fromkeys(("千万",), Decimal(10) ** 7),
    **dict.fromkeys(("亿", "億"), Decimal(10) ** 8),
    **dict.fromkeys(("billion", "billions", "bn", "b", "十亿"), Decimal(10) ** 9),
    **dict.fromkeys(("trillion", "trillions", "tn", "万亿"), Decimal(10) ** 12),
    **dict.fromkeys(("百", "hundred"), Decimal(100)),
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
    **dict.fromkeys(("metres", "meters", "metre", "meter", "m", "米"), ("m", "1")),
    **dict.fromkeys(("square metres", "square meters", "m2", "平方米"), ("m2", "1")),
    **dict.fromkeys(("cubic metres", "cubic meters", "m3", "立方米"), ("m3", "1")),
    **dict.fromkeys(("km", "kilometres", "kilometers", "千米", "公里"), ("m", "1000")),
    **dict.fromkeys(("ml", "millilitres", "milliliters", "毫升"), ("l", "0.001")),
    **dict.fromkeys(("l", "litres", "liters", "升"), ("l", "1")),
}
# What a quantity is for each of ("5 mg/kg", "$3 a month", "每日"), by its written forms.
_PER: Final = {
    **dict.fromkeys(("hours", "hour", "hr", "h", "小时"), "hour"),
    **dict.fromkeys(("days", "day", "d", "天", "日"), "day"),
    **dict.fromkeys(("weeks", "week", "周"), "week"),
    **dict.fromkeys(("months", "month", "月"), "month"),
    **dict.fromkeys(("years", "year", "yr", "annum", "年"), "year"),
    **dict.fromkeys(("minutes", "minute", "min", "分钟"), "minute"),
    **dict.fromkeys(("seconds", "second", "s", "秒"), "second"),
    **dict.fromkeys(("kg", "kilogram", "公斤", "千克"), "kg"),
    **dict.fromkeys(("ml", "毫升"), "ml"),
    **dict.fromkeys(("l", "litre", "liter", "升"), "l"),
    **dict.fromkeys(("person", "人"), "person"),
    **dict.fromkeys(("dose", "次"), "dose"),
}
_SYMBOLS: Final = {"$": "USD", "€": "EUR", "£": "GBP", "¥": "CNY", "US$": "USD", "HK$": "HKD", "USD": "USD", "EUR": "EUR", "GBP": "GBP"}
_SYMBOLS_ZH: Final = {"CNY": "CNY", "RMB": "CNY", "HKD": "HKD", "人民币": "CNY"}
_DIGITS: Final = {
    sign: value for value, signs in enumerate(("〇零", "一", "二两", "三", "四", "五", "六", "七", "八", "九")) for sign in signs
}
_ONES: Final = {name: value for value, name in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine"), start=1)}
_TEENS: Final = {
    **{"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17},
    **{"eighteen": 18, "nineteen": 19},
}
_TIES: Final = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_WORDS: Final = {**_ONES, **_TEENS, **_TIES, "zero": 0, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_TENS: Final = {"十": 10, "百": 100, "千": 1000}
_MYRIADS: Final = {"万": 10**4, "亿": 10**8}
# The numerals of contracts and cheques: 人民币伍拾万圆整. One sign alone may be part of a name, so it needs the currency.
_FORMAL_DIGITS: Final = "壹贰貳叁參肆伍陆陸柒捌玖拾"
_FORMAL: Final = re.compile(rf"(?:[{_FORMAL_DIGITS}佰仟][{_FORMAL_DIGITS}佰仟零万亿]+|[{_FORMAL_DIGITS}])[元圆圓]?")
_PLAIN: Final = str.maketrans("壹贰貳叁參肆伍陆陸柒捌玖拾佰仟圆圓", "一二二三三四五六六七八九十百千元元")
_SIMPLE: Final = str.maketrans("萬億兩點", "万亿两点")


def _either(words: Sequence[str]) -> str:
    """A pattern for any of the words, the longest first; one of Latin letters ends where the word ends."""
    ordered = sorted(words, key=len, reverse=True)
    return "|".join(re.escape(word) + (r"(?![a-z])" if word[-1].isascii() and word[-1].isalpha() else "") for word in ordered)


_BELOW_100: Final = rf"(?:(?:{'|'.join(_TIES)})(?:[ -](?:{'|'.join(_ONES)})\b)?|{'|'.join(_TEENS)}|{'|'.join(_ONES)})"
_BELOW_1000: Final = rf"(?:(?:(?:{_BELOW_100}|an?)[ -])?hundred(?:[ -](?:and[ -])?{_BELOW_100}\b(?! hundred))?|{_BELOW_100})"
_REST: Final = rf",?[ -](?:and[ -])?{_BELOW_1000}\b"
_LAST: Final = "(?![ -](?:thousand|million|billion))"
_THOUSANDS: Final = rf"[ -]thousand\b(?:{_REST}{_LAST})?"
_MILLIONS: Final = rf"[ -]million\b(?:{_REST}(?:{_THOUSANDS}|{_LAST}))?"
_BILLIONS: Final = rf"[ -]billion\b(?:{_REST}(?:{_MILLIONS}|{_THOUSANDS}|{_LAST}))?"
_POINT: Final = rf" point(?: (?:zero|{'|'.join(_ONES)})\b)+"
_WORD_NUMBER: Final = rf"{_BELOW_1000}(?:{_BILLIONS}|{_MILLIONS}|{_THOUSANDS}|{_POINT})?"
_HAN_NUMBER: Final = "[〇零一二两三四五六七八九十百千]+(?:[万亿][〇零一二两三四五六七八九十百千]*)*(?:点[〇零一二三四五六七八九]+)?"
_QUANTITY: Final = re.compile(
    rf"(?P<share>百分之|千分之)?(?P<open>\()?(?P<sign>[-−–]|负|(?<=百分之)负)?\s?"
    rf"(?P<symbol>{_either([*_SYMBOLS, *_SYMBOLS_ZH])})?\s?(?P<inner>[-−(])?"
    rf"(?:(?P<number>(?<![a-z0-9.])\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?(?!\d)|\d+(?:\.\d+)?|\.\d+)|(?P<han>{_HAN_NUMBER})"
    rf"|\b(?P<word>{_WORD_NUMBER})\b)"
    rf"(?P<gap>[ -])?(?:(?P<scale>{_either(list(_SCALES))})(?!(?<=m)[23]))?[ -]?(?:of )?(?P<unit>{_either(list(_UNITS))})?"
    rf"(?P<per>(?: ?/ ?(?:{_either(list(_PER))}|[a-z]+)"
    rf"|(?:(?: |(?<= ))(?:per|an?|each|every) | ?每 ?)(?:{_either(list(_PER))}))*)(?P<close>\))?",
    re.IGNORECASE,
)
_ONE_PER: Final = re.compile(rf"(?:/ ?|(?:per|an?|each|every) |每 ?)({_either(list(_PER))}|[a-z]+)", re.IGNORECASE)
_DATE: Final = re.compile(r"\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its scale; `step` is what its last digit stands for. `unit` is what it is compared in ('' if none is written), `one`
    how many of those its own unit is: 5 mg is 5, with unit "g" and one 0.001. `per` is what it is for each of: ("kg", "day") for
    5 mg/kg/day. `written` are its digits in the text, '' if it is in words.
    """

    value: Decimal
    step: Decimal
    unit: str = ""
    one: Decimal = Decimal(1)
    written: str = ""
    per: tuple[str, ...] = ()

    def percent(self) -> Quantity:
        """A share, as 0.12, in percent."""
        return replace(self, value=self.value * 100, step=self.step * 100)


def quantities(text: str) -> list[Quantity]:
    """The quantities of a text, in order. Dates in digits are not quantities; a single number word needs a unit, Chinese numerals two
    characters or a unit.
    """
    folded = _FORMAL.sub(_plain, _DATE.sub(" ", unicodedata.normalize("NFKC", text)).translate(_SIMPLE))
    found: list[Quantity] = []
    before: re.Match[str] | None = None
    for match in _QUANTITY.finditer(folded):
        quantity = _read(match)
        if quantity is not None and before is not None and _goes_on(before, match):
            # 3亿5000万元 is one quantity.
            high = found.pop()
            quantity = replace(quantity, value=high.value + quantity.value, written=f"{high.written} {quantity.written}")
        if quantity is not None:
            found.append(quantity)
        before = match if quantity is not None else None
    return found


def same(gold: Quantity, answer: Quantity) -> bool:
    """Whether `answer` is the gold quantity, up to rounding, what is missing of a unit, and a percentage written as a share (0.12).

    An answer with as many digits or more must round to the gold value; one with fewer must be the gold value rounded and within half a
    percent of it.
    """
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if gold.per and answer.per and gold.per != answer.per:
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


def _plain(formal: re.Match[str]) -> str:
    """Formal numerals as usual ones, where they are a number."""
    said = formal[0]
    return said.translate(_PLAIN) if len(said) > 1 else said


def _read(match: re.Match[str]) -> Quantity | None:
    han, unit, scale = match["han"], (match["unit"] or "").lower(), (match["scale"] or "").lower()
    symbol = (match["symbol"] or "").upper()
    if han is not None:
        if not (match["share"] or unit or symbol or len(han) > 3 or (len(han) > 1 and set(han) & set(_TENS | _MYRIADS))):
            return None
        value, step = _han(han)
    elif match["word"] is not None:
        if not unit and match["word"].isalpha():
            return None
        value, step = _in_words(match["word"])
    else:
        written = match["number"].replace(",", "")
        value, step = Decimal(written), Decimal(1).scaleb(-len(written.partition(".")[2]))
    per = tuple(_PER.get(name.lower(), name.lower()) for name in _ONE_PER.findall(match["per"]))
    if not symbol and not unit and (scale == "mm" or (match["scale"] == "m" and (match["gap"] or per))):
        scale, unit = "", scale  # a height of 5 m; 5m and $5 m are millions
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
    return Quantity((-value if negative else value) * factor, step * factor, name, one, match["number"] or "", per)


def _goes_on(before: re.Match[str], match: re.Match[str]) -> bool:
    """Whether a number with a Chinese scale, as 3亿, goes on with a smaller one, as 5000万."""
    high, low = (_SCALES.get(found["scale"] or "", Decimal(1)) for found in (before, match))
    at_once = before.end() == match.start() and (before["scale"] or "")[-1:] in ("万", "亿") and before["number"] and match["number"]
    # 3万5 may be 35,000.
    return bool(at_once and not before["unit"] and not before["per"] and low < high and (match["scale"] or len(match["number"]) > 2))


def _in_words(text: str) -> tuple[Decimal, Decimal]:
    """An English number in words, and what its last word stands for: a hundred and five, two million, three point five."""
    whole, _, rest = text.lower().replace("-", " ").replace(",", "").partition(" point ")
    total = section = step = 0
    for word in whole.split():
        value = _WORDS.get(word)
        if value is None:  # "and", "a"
            continue
        step = value if value >= 1000 else 1
        if step > 1:
            total, section = total + section * value, 0
        else:
            section = (section or 1) * 100 if word == "hundred" else section + value
    digits = "".join(str(_WORDS[word]) for word in rest.split())
    number = Decimal(f"{total + section}.{digits}") if digits else Decimal(total + section)
    return number, Decimal(1).scaleb(-len(digits)) if digits else Decimal(step)


def _is_minus(match: re.Match[str]) -> bool:
    """A sign, unless it is the dash of a range ("3-5 days") or of a compound ("COVID-19")."""
    if not match["sign"]:
        return False
    before = match.string[: match.start("sign")][-1:]
    return match["sign"] == "负" or not before.isalnum()


def _close(gold: Quantity, answer: Quantity) -> bool:
    apart = abs(gold.value - answer.value)
    if apart <= gold.step / 2 and (not gold.value or apart <= _FINE * abs(gold.value)):
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
            part, factor = section + digit, _MYRIADS[sign]
            # 万 after 亿 counts what stands between them (一亿二千万), 亿 all that was said (三万亿).
            total = total + part * factor if total >= 10**8 > factor else (total + part) * factor
            section = digit = 0
    if (left_out := (_TENS | _MYRIADS).get(text[-2:-1], 0)) > 10:
        digit *= left_out // 10  # 三万五 is 35,000; 30,005 is 三万零五
    return total + section + digit
