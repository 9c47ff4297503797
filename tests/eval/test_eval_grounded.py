"""Support of a sentence by passages, in both languages."""

import pytest

from eval.grounded import claims_of, features, grounded, has_numbers, source, support

EN = (
    "Emergency prescriptions are limited to 3 days of treatment. Chronic conditions may be extended to 28 days if the physician states the "
    "reason. Dr. Okafor leads the clinic."
)
ZH = "急诊处方一般不超过3日用量。慢性病患者经医师注明理由，处方用量可延长至28日。门诊部主任为陈立新。"


@pytest.mark.parametrize(
    ("sentence", "passage"),
    [
        ("Emergency prescriptions are limited to 3 days.", EN),
        ("Chronic conditions may be extended to 4 weeks if the physician states the reason.", EN),
        ("No, emergency prescriptions are limited to 3 days of treatment.", EN),
        ("急诊处方一般不超过三日用量。", ZH),
        ("慢性病患者的处方用量可延长至28日。", ZH),
        ("慢性病患者的处方用量未来可延长至28日。", ZH),
    ],
)
def test_supported(sentence: str, passage: str) -> None:
    assert support(sentence, [source("Something else. 其他。"), source(passage)]) >= 0.5


@pytest.mark.parametrize(
    ("sentence", "passage"),
    [
        ("Emergency prescriptions are limited to 5 days.", EN),
        ("Emergency prescriptions are limited to 3 weeks of treatment.", EN),
        ("Emergency prescriptions are not limited to 3 days of treatment.", EN),
        ("Dr. Lindqvist leads the clinic.", EN),
        ("Visitors may come from noon.", EN),
        ("急诊处方一般不超过5日用量。", ZH),
        ("慢性病患者的处方用量不可以延长至28日。", ZH),
        ("门诊部主任为王建国。", ZH),
        ("患者饭后不服用此药。", "患者饭后服用此药。"),
        ("房东没收到押金。", "房东收到押金。"),
        ("业主不同意转让车位。", "业主同意转让车位。"),
        ("探视人员进入病区前应当洗手。", ZH),
    ],
)
def test_not_supported(sentence: str, passage: str) -> None:
    assert support(sentence, [source(passage)]) < 0.5


def test_the_share_of_an_answer() -> None:
    assert grounded("急诊处方一般不超过3日用量。门诊部主任为王建国。", [ZH]) == 0.5
    assert grounded("Anything at all happens.", []) == 0
    assert grounded(" ... ", [EN]) is None and grounded("", [EN]) is None
    assert claims_of("Yes. Emergency prescriptions.") == ["Yes.", "Emergency prescriptions."]


def test_odd_texts() -> None:
    assert support("Anything", [source("")]) == 0
    assert 0 <= support("x" * 5000, [source("y " * 2000)]) <= 1
    assert all(0 <= value <= 1 for value in features("急诊处方3日", source(EN)))
    # A rounded number stands for the exact one, and not the other way round.
    assert has_numbers("Revenue rose 12%.", source("Revenue rose 12.04% in 2020."))
    assert not has_numbers("Revenue rose 12.4%.", source("Revenue rose 12% in 2020."))
    assert not has_numbers("It opens on 2026-01-31.", source("It opens on 2026-02-01."))


def test_numbers_in_words_and_what_they_are_for_each_of() -> None:
    assert has_numbers("Revenue rose 35 percent.", source("Revenue rose thirty-five percent in 2020."))
    assert not has_numbers("Revenue rose 5 percent.", source("Revenue rose thirty-five percent in 2020."))
    assert not has_numbers("The dose is 5 mg/day.", source("The dose is 5 mg/kg."))
    assert has_numbers("营收为3.5亿元。", source("公司营收为3亿5000万元。"))
    assert not has_numbers("营收为5000万元。", source("公司营收为3亿5000万元。"))
