from __future__ import annotations

from itertools import pairwise

import pytest

from finetune.privacy import KINDS, personal


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("email", "Write to anna.berg+ward@st-olaf.example.org, please.", "anna.berg+ward@st-olaf.example.org"),
        ("email", "请发到li.ming@example.cn谢谢", "li.ming@example.cn"),
        ("chinese_id", "身份证号11010519491231002X，已核对", "11010519491231002X"),
        ("bank_card", "Card 4111 1111 1111 1111 was charged", "4111 1111 1111 1111"),
        ("bank_card", "美国运通卡号378282246310005。", "378282246310005"),
        ("iban", "Pay to DE89 3704 0044 0532 0130 00 today", "DE89 3704 0044 0532 0130 00"),
        ("iban", "账户GB82WEST12345698765432。", "GB82WEST12345698765432"),
        ("us_ssn", "SSN 536-22-8726.", "536-22-8726"),
        ("passport", "Passport No. C01X00T47 expires", "C01X00T47"),
        ("passport", "护照号码：E12345678", "E12345678"),
        ("medical_record", "MRN: 00482913 was admitted", "00482913"),
        ("medical_record", "患者住院号：ZY2023001，已出院", "ZY2023001"),
        ("chinese_mobile", "联系电话13812345678。", "13812345678"),
        ("chinese_mobile", "手机：+86 138-1234-5678", "+86 138-1234-5678"),
        ("chinese_mobile", "电话：１３８１２３４５６７８", "１３８１２３４５６７８"),
        ("phone", "Call (212) 547-5541 or", "(212) 547-5541"),
        ("phone", "call 18003182596 for help", "18003182596"),
        ("phone", "Tel. +44 20 7946 0958", "+44 20 7946 0958"),
        ("phone", "值班电话010-62751234转3", "010-62751234"),
        ("phone", "总机（010）62751234，请拨打", "（010）62751234"),
        ("phone", "总机：010 62751234", "010 62751234"),
        ("phone", "电话021-6278 1234。", "021-6278 1234"),
        ("phone", "Ring 415 555 2671, please", "415 555 2671"),
        ("messenger", "加我微信：li_ming88", "li_ming88"),
        ("messenger", "他的QQ号是123456789。", "123456789"),
        ("messenger", "WeChat ID: anna1990", "anna1990"),
        ("number_plate", "车牌为京A·12345的轿车", "京A·12345"),
        ("number_plate", "粤BD12345已缴费", "粤BD12345"),
        ("address", "lives at 302 La Mancha Court, Santa Fe", "302 La Mancha Court"),
        ("address", "住址：北京市海淀区中关村大街27号3栋", "北京市海淀区中关村大街27号3栋"),
    ],
)
def test_each_kind_is_found(kind: str, text: str, found: str) -> None:
    (one,) = personal(text)
    assert (one.kind, one.text, text[one.start : one.end]) == (kind, found, found)


@pytest.mark.parametrize(
    "text",
    [
        "身份证号110105194912310021",  # wrong check digit
        "11010519491331002X",  # month 13
        "Order 4111 1111 1111 1112",  # fails Luhn
        "DE89 3704 0044 0532 0130 01",  # fails modulo 97
        "Revenue was 1,381,234,567 in 2019 and 13,812,345 in 2018",
        "SSN 000-12-3456 and 666-12-3456",
        "The dose is 2.5-5.0 mg, see pp. 301-496",
        "ISBN 978-7-302-51234-5",
        "2019-12-31 and 2020-01-15",
        "根据第138条第12345678号",
        "The 5 Members of the Court",
        "版本号 1.3.8.12345678",
        "Rooms 210 315 2019, rows 230 415 555 2671 1999",
        "微信是Tencent公司的产品",
        "WeChat: official account",
        "最新T12345次列车，苏州A12345678",
        "",
    ],
)
def test_what_only_looks_alike_is_not(text: str) -> None:
    assert personal(text) == []


def test_spans_do_not_overlap_and_are_masked() -> None:
    text = "张三，身份证11010519491231002X，电话13812345678，邮箱a@b.co，a@b.co。"
    found = personal(text)
    assert [one.kind for one in found] == ["chinese_id", "chinese_mobile", "email", "email"]
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert found[0].masked == "11**************2X"
    assert {one.kind for one in found} <= set(KINDS)


def test_a_huge_text_is_read_in_linear_time() -> None:
    assert personal("1" * 200_000) == personal("a1 " * 60_000) == personal("路" * 100_000) == []
