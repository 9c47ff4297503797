"""Personal data in a text: what has a recognisable form, in English and Chinese.

Names are not looked for: they have no form. Check digits are verified where there are any, so that an order number is not a card.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal, get_args

Kind = Literal[
    "email",
    "chinese_id",
    "bank_card",
    "iban",
    "us_ssn",
    "passport",
    "medical_record",
    "chinese_mobile",
    "phone",
    "messenger",
    "number_plate",
    "address",
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Personal:
    """A span of a text that looks like personal data: ``text[start:end]``."""

    kind: Kind
    start: int
    end: int
    text: str

    @property
    def masked(self) -> str:
        """The span with all but its first and last two characters hidden, so that a report does not spread it."""
        return self.text if len(self.text) < 5 else f"{self.text[:2]}{'*' * (len(self.text) - 4)}{self.text[-2:]}"


# GB 11643-1999: the weights of the first 17 digits and the check character by the sum modulo 11.
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_CHECK = "10X98765432"
# The first two digits: province-level divisions (GB/T 2260).
_PROVINCES = frozenset(
    str(division)
    for region in (range(11, 16), range(21, 24), range(31, 38), range(41, 47), range(50, 55), range(61, 66), (71, 81, 82, 83))
    for division in region
)
# Length of an IBAN by country (ISO 13616 registry).
_IBAN_LENGTHS: Mapping[str, int] = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "FO", "GL", "NL", "SD"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "MN", "XK"), 20),
    **dict.fromkeys(("CH", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "CR", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "OM", "SO", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("LY", "PT", "ST"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("BI", "DJ", "FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "NI", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU", "YE"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
    **dict.fromkeys(("LC",), 32),
    **dict.fromkeys(("RU",), 33),
}
_STREET = r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Parkway|Pkwy|Highway|Hwy|Square|Sq|Terrace|Plaza)"
# North American toll-free numbers written without gaps look like Chinese mobile numbers.
_TOLL_FREE = re.compile(r"18(?:00|33|44|55|66|77|88)\d{7}")
# Of Chinese landlines: Beijing, the other large cities, the rest.
_AREA = r"(?:010|02\d|0[3-9]\d\d)"
# What stands between the groups of a number.
_GAP = r"[ \u00a0.-]?"
# Full-width letters and digits as Chinese input methods write them; one character for one, so that offsets stay.
_NARROW = {0xFEE0 + code: code for code in range(0x21, 0x7F)}


def _always(_: str) -> bool:
    return True


def _is_chinese_id(text: str) -> bool:
    if text[:2] not in _PROVINCES:
        return False
    try:
        born = date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(text, _ID_WEIGHTS, strict=False))
    return born.year >= 1890 and _ID_CHECK[total % 11] == text[17].upper()


def _is_card(text: str) -> bool:
    """Luhn's check (ISO/IEC 7812-1) over a number of the length and beginning of the large card schemes."""
    digits = [int(character) for character in text if character.isdigit()]
    if not 15 <= len(digits) <= 19:
        return False
    doubled = [digit if place % 2 == 0 else sum(divmod(2 * digit, 10)) for place, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    """ISO 13616: the country's length, and 1 modulo 97 with letters as numbers from 10."""
    plain = text.replace(" ", "").upper()
    if len(plain) != _IBAN_LENGTHS.get(plain[:2]):
        return False
    return int("".join(str(int(character, 36)) for character in plain[4:] + plain[:4])) % 97 == 1


def _is_phone(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 8 <= len(digits) <= 15 and len(set(digits)) > 2


def _form(*parts: str) -> re.Pattern[str]:
    # ASCII, so that a Chinese character beside a number is no part of it.
    return re.compile("".join(parts), re.ASCII)


_NO_DIGIT_AFTER = r"(?![\w-]|[.,]\d)"
# In order: what an earlier kind has taken, a later one leaves. A group "it" or "it2" is the finding, else the whole match.
_FORMS: tuple[tuple[Kind, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", _form(r"(?<![\w.+-])[A-Za-z0-9][\w.%+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,4}\.[A-Za-z]{2,}(?!\w)"), _always),
    ("chinese_id", _form(r"(?<!\w)[1-9]\d{16}[0-9Xx](?!\w)"), _is_chinese_id),
    (
        "bank_card",
        _form(
            rf"(?<![\w.,-])(?:(?:4\d\d\d|5[1-5]\d\d|2[2-7]\d\d|62\d\d|6011|65\d\d|35\d\d)(?:{_GAP}\d{{4}}){{3}}(?:{_GAP}\d{{1,3}})?",
            rf"|3[47]\d\d{_GAP}\d{{6}}{_GAP}\d{{5}}){_NO_DIGIT_AFTER}",
        ),
        _is_card,
    ),
    ("iban", _form(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"), _is_iban),
    ("us_ssn", _form(r"(?<![\w.-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}", _NO_DIGIT_AFTER), _always),
    (
        "passport",
        _form(
            r"(?i:\bpassport(?: (?:no|number|num))?)\.?[ :：#]{0,3}(?P<it>(?=(?:[A-Z]*\d){5})[A-Z0-9]{7,9})(?!\w)",
            r"|护照(?:号码?|编号)?[ :：为是]{0,3}(?P<it2>[A-Za-z]{1,2}\d{7,8})(?!\d)",
        ),
        _always,
    ),
    (
        "medical_record",
        _form(
            r"(?i:\bMRN|\bmedical record (?:no|number)|\bpatient (?:id|no|number))\.?[ :：#]{1,3}(?P<it>(?=[A-Z-]*\d{4})[A-Z0-9-]{5,14})\b",
            r"|(?:病历|住院|门诊|病案|就诊卡|就诊)号码?[ :：为是]{0,3}(?P<it2>(?=[A-Za-z-]*\d{4})[A-Za-z0-9-]{5,14})",
        ),
        _always,
    ),
    ("chinese_mobile", _form(r"(?<![\w.+-])(?:\+?86[ -]?|0086[ -]?)?1[3-9]\d(?:\d{8}|[ -]\d{4}[ -]\d{4})(?![\w-]|\.\d)"), _always),
    (
        "phone",
        _form(
            r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(0?\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}",
            r"|(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}|0\d{2,3}[-—]\d{7,8}|[48]00-\d{3}-?\d{4}",
            rf"|(?:\({_AREA}\) ?|{_AREA}[ —-])[2-8]\d{{2,3}}[ -]?\d{{4}}",
            # With mere spaces, only where no other number stands beside it and the end is no year.
            r"|(?<!\d )(?:1 )?[2-9][0-8]\d [2-9]\d\d (?!19|20)\d{4}(?! \d))",
            _NO_DIGIT_AFTER,
        ),
        _is_phone,
    ),
    (
        "messenger",
        _form(
            # What follows may be a word like any other: an account has a digit or an underscore.
            r"(?i:(?:微信(?:号|ID)?|\bWeChat(?: ID)?) ?:|微信(?:号|ID)[是为]) ?(?P<it>(?=[A-Za-z-]*[\d_])[A-Za-z][\w-]{5,19})(?!\w)",
            r"|(?<!\w)(?i:QQ)(?:号码?)? ?[:是为] ?(?P<it2>[1-9]\d{4,10})(?!\w)",
        ),
        _always,
    ),
    (
        "number_plate",
        _form(
            r"(?<![最全更创])[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-HJ-NP-Z][·•]?",
            r"(?=[A-Z]*(?:\d[A-Z]*){3})[A-HJ-NP-Z0-9]{5,6}(?![\w-])",
        ),
        _always,
    ),
    (
        "address",
        _form(
            rf"\b\d{{1,5}}(?: [NSEW]\.?)?(?: (?:[A-Z][a-z'’]+|\d{{1,3}}(?:st|nd|rd|th))){{1,3}} {_STREET}\b\.?(?!\s[a-z])",
            r"|[\u4e00-\u9fff]{1,8}[市区县镇][\u4e00-\u9fff]{1,10}(?:大道|[路街巷弄]|胡同)\d{1,5}号(?:[\u4e00-\u9fff\d-]{0,6}(?:[栋幢楼室]|单元))?",
        ),
        _always,
    ),
)


def personal(text: str) -> list[Personal]:
    """Every span of `text` that looks like personal data, in its order; spans do not overlap."""
    from retrieval.text import detect_lang

    taken: list[Personal] = []
    narrow = text.translate(_NARROW)
    for kind, form, holds in _FORMS:
        for start, end in _spans(form, narrow):
            if holds(narrow[start:end]) and not any(start < other.end and other.start < end for other in taken):
                foreign = kind == "chinese_mobile" and _TOLL_FREE.fullmatch(narrow[start:end]) and detect_lang(text) == "en"
                taken.append(Personal("phone" if foreign else kind, start, end, text[start:end]))
    return sorted(taken, key=lambda found: found.start)


def _spans(form: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    for match in form.finditer(text):
        group = next((name for name in ("it", "it2") if name in form.groupindex and match.group(name)), 0)
        yield match.span(group)
