"""Approved answers to questions in other words: what is one question and what is not, and that nothing else changes for them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import ScriptedEngine
from helpers import answering_with

from appliance.answers.answering import Answering
from appliance.answers.same_question import meaning, same
from appliance.answers.verified import VerifiedAnswers
from appliance.knowledge.knowledge import Knowledge
from appliance.store import schema
from appliance.types import Answer, Caller, Request
from retrieval.text import normalise_question
from retrieval.types import DocumentKey, Scope

ROOT = Path(__file__).parent.parent.parent
sys.path += [str(ROOT / "tests" / "gateway"), str(ROOT / "benchmarks")]
from gateway_real import make_knowledge  # noqa: E402
from verified_matches import ALIKE, pairs  # noqa: E402

ASKED, OTHERWISE = "When may visitors come to the ward?", "When can visitors come to the ward?"
ASKED_ZH, OTHERWISE_ZH = "普通门诊挂号费是多少？", "请问普通门诊的挂号费多少"


def test_at_most_one_in_a_hundred_of_the_pairs_that_differ_matches() -> None:
    found = pairs()
    differing = [pair for pair in found if pair.kind != ALIKE]
    wrong = [pair for pair in differing if same(meaning(pair.one), meaning(pair.other))]
    assert len(differing) >= 250 and {"number", "negation", "age group", "role"} < {pair.kind for pair in differing}
    assert sum(pair.kind == "role" for pair in differing) >= 30
    assert all(sum(pair.lang == lang for pair in differing) >= 90 for lang in ("en", "zh"))
    assert len(wrong) <= len(differing) / 100, wrong
    alike = [pair for pair in found if pair.kind == ALIKE]
    assert sum(same(meaning(pair.one), meaning(pair.other)) for pair in alike) >= 0.6 * len(alike)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Take 5 mg twice a day for 10 days?", "Take 10 mg twice a day for 5 days?"),
        ("Does the nurse call the doctor?", "Does the doctor call the nurse?"),
        ("What is the fee before 8:00?", "What is the fee after 8:00?"),
        ("Is paracetamol safe?", "Is ibuprofen safe?"),
        ("Must I register?", "Can I register?"),
        ("How often may I take it?", "How much may I take?"),
        ("What is 0.5 mg?", "What is 5 mg?"),
        ("What is the rate for men?", "What is the rate for women?"),
        ("Can I pay by card?", "Can I pay by cheque?"),
        ("医生可以通知家属吗？", "家属可以通知医生吗？"),
        ("年满十八岁可以投保吗？", "年满十六岁可以投保吗？"),
        ("需要空腹吗？", "可以空腹吗？"),
        ("饭前吃药吗？", "饭后吃药吗？"),
        ("一次吃半片可以吗？", "一次吃一片可以吗？"),
        ("What does it cost?", "多少钱？"),
        ("Is a temperature of -5 °C safe?", "Is a temperature of 5 °C safe?"),
        ("Is >5 mg safe?", "Is <5 mg safe?"),
        ("Is 1,5 mg ok?", "Is 15 mg ok?"),
        ("What is 2²?", "What is 22?"),
        ("Is ½ tablet ok?", "Is 12 tablet ok?"),
        ("What is due on 3/4/2023?", "What is due on 4/3/2023?"),
        ("Is $5 enough?", "Is €5 enough?"),
        ("Is Rh+ blood given?", "Is Rh- blood given?"),
        ("Can he sign?", "Can she sign?"),
        ("Can we cancel?", "Can you cancel?"),
        ("Can I sue my employer?", "Can my employer sue me?"),
        ("May a man marry a woman?", "May a woman marry a man?"),
        ("Is it required not to eat?", "Is it not required to eat?"),
        ("What is the daily maximum for a weekly dose?", "What is the weekly maximum for a daily dose?"),
        ("When may nurses and why may doctors come?", "Why may nurses and when may doctors come?"),
        ("What is the US rate?", "What is the rate?"),
        ("What is due in May?", "What is due?"),
        ("Is a will valid?", "Is it valid?"),
        ("Is vitamin A safe?", "Is vitamin safe?"),
        ("What are Schedule I drugs?", "What are schedule drugs?"),
        ("What is the charge for theft?", "What is the price for theft?"),
        ("Can I stop insulin?", "Can I finish insulin?"),
        ("Was it paid?", "Will it be paid?"),
        ("Is it due by Monday?", "Is it due on Monday?"),
        ("不可以吃吗？", "可以不吃吗？"),
        ("甲未到庭乙到庭怎么判？", "甲到庭乙未到庭怎么判？"),
        ("买方无过错卖方有过错怎么办？", "买方有过错卖方无过错怎么办？"),
        ("每天3次还是每周3次？", "每周3次还是每天3次？"),
        ("请假一天扣多少钱？", "请假每天扣多少钱？"),
        ("我可以告你吗？", "你可以告我吗？"),
        ("公司能告我吗？", "公司能告吗？"),
        ("本金可以退吗？", "金可以退吗？"),
        ("股东会可以罢免吗？", "股东可以罢免吗？"),
        ("在职可以申请吗？", "职可以申请吗？"),
        ("我方违约怎么办？", "你方违约怎么办？"),
        ("这药可以吃吗？", "那药可以吃吗？"),
        ("他有罪吗？", "他无罪吗？"),
        ("公司可以没收押金吗？", "公司可以不收押金吗？"),
        ("这种病非常见吗？", "这种病非常常见吗？"),
        ("他未来要赔偿吗？", "他不来要赔偿吗？"),
        ("＞5克可以吗？", "＜5克可以吗？"),
        ("-5度可以吗？", "5度可以吗？"),
        ("What is 2ⁿ?", "What is 2n?"),
        ("Who examined before surgery?", "Who is examined before surgery?"),
        ("Which patients are not treated?", "Which patients do not treat?"),
        ("Has the tenant evicted?", "Has the tenant been evicted?"),
        ("Can a patient hurt?", "Can a patient be hurt?"),
        ("Has the company freed?", "Has the company been freed?"),
        ("Has the doctor recommended?", "Is the doctor recommended?"),
        ("When is the manager informed?", "When does the manager inform?"),
        ("What is an organ?", "What is an organization?"),
        ("Which important documents are there?", "Which import documents are there?"),
        ("May a relative sign?", "May a relation sign?"),
        ("Does the landlord's agent pay?", "Does the agent's landlord pay?"),
        ("What can harm children?", "What can children harm?"),
        ("Which patients may I refuse?", "Which patients may refuse?"),
        ("What does a nurse need?", "What needs a nurse?"),
        ("May I know the doctor?", "May the doctor know?"),
        ("How much do you pay for a donation?", "How much do you charge for a donation?"),
        ("Is it allowed for nurses to leave?", "Is it allowed for patients to leave?"),
        ("公司遭投诉怎么办？", "公司投诉怎么办？"),
        ("什么会伤害儿童？", "儿童会伤害什么？"),
        ("谁欠钱？", "欠谁钱？"),
        ("甲方由谁通知？", "甲方通知谁？"),
        ("男人打女人怎么办？", "女人打男人怎么办？"),
        ("", ""),
        ("???", "!!!"),
        ("the", "of"),
    ],
)
def test_these_are_two_questions(one: str, other: str) -> None:
    assert not same(meaning(one), meaning(other)) and not same(meaning(other), meaning(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("May tenants be evicted?", "Can a tenant be evicted?"),
        ("When will the fee be charged?", "When is the fee charged?"),
        ("Why was my claim denied?", "For what reason was my claim denied?"),
        ("Who is required to sign?", "Who needs to sign?"),
        ("Is a visa required?", "Do I need a visa?"),
        ("What is the recommended dose?", "Which dose is recommended?"),
        ("What's the employer's contribution?", "What is the employer's contribution?"),
        ("How many operators are needed?", "What number of operators is needed?"),
        ("Which policies can be cancelled?", "Which policy can be cancelled?"),
        ("Are nurses allowed to visit?", "Can nurses visit?"),
        ("Please tell me when the office opens", "When does the office open?"),
        ("What is the dose for adults?", "For adults, what is the dose?"),
        ("Who can I call at night?", "Whom can I call at night?"),
        ("What must I bring to surgery?", "What do I have to bring to surgery?"),
        ("租客能不能被解约？", "租客可以被解约吗？"),
        ("合同被解除怎么办？", "请问合同被解除了如何办？"),
        ("谁可以探视儿童？", "哪位可以探视小孩？"),
    ],
)
def test_these_are_one_question(one: str, other: str) -> None:
    assert same(meaning(one), meaning(other))


def test_a_huge_question_is_read_in_good_time() -> None:
    for text in (
        "the dose of 5 mg " * 3000,
        "which who is needed what " * 2000,
        "what" + " " * 50_000 + "helps",
        "x" * 50_000 + "ations",
        "每天最多吃几片" * 4000,
        "how much " * 1500,
        "9" * 50_000,
        "一" * 20_000 + "天",
    ):
        assert same(meaning(text), meaning(text))


@pytest.fixture
def knowledge(tmp_path: Path) -> Iterator[Knowledge]:
    made = make_knowledge(tmp_path)
    verified = VerifiedAnswers(made)
    verified.add("medical", ASKED, "Visitors may come from 14:00 to 20:00.", ["visiting.md"], "Dr. Moss", 0.6)
    verified.add("medical", ASKED_ZH, "普通门诊挂号费为20元。", ["zh/registration.md"], "王医生", 0.6)
    yield made
    made.workspace.close()


@pytest.fixture
def answering(knowledge: Knowledge) -> Answering:
    return answering_with(knowledge, ScriptedEngine("no"))


def ask(answering: Answering, question: str, caller: Caller | None = None) -> Answer:
    return asyncio.run(answering.ask(Request(question, domain="medical"), caller))


@pytest.mark.parametrize(("asked", "otherwise"), [(ASKED, OTHERWISE), (ASKED_ZH, OTHERWISE_ZH)])
def test_the_approved_answer_is_served_and_says_what_it_was_approved_for(answering: Answering, asked: str, otherwise: str) -> None:
    exact, other = ask(answering, asked), ask(answering, otherwise)
    assert (exact.arm, other.arm) == ("verified", "verified") and other.text == exact.text and other.citations == exact.citations
    assert exact.warnings == () and len(other.warnings) == 1 and asked in other.warnings[0]
    assert exact.decision.features["verified"] == 1.0 and 0.9 <= other.decision.features["verified"] <= 1.0


POWERS = [
    ("What is done at 10⁹ platelets per litre?", "What is done at 109 platelets per litre?"),
    ("血小板低于10⁹时怎么办？", "血小板低于109时怎么办？"),
]


@pytest.mark.parametrize(("asked", "other"), [*POWERS, *((plain, power) for power, plain in POWERS)])
def test_a_power_is_another_number_in_the_very_words_too(answering: Answering, asked: str, other: str) -> None:
    answering.verified.add("medical", asked, "Call the doctor.", [], "Dr. Moss", 0.6)
    assert ask(answering, asked).arm == "verified" and ask(answering, other).arm != "verified"


@pytest.mark.parametrize(("asked", "other"), POWERS)
def test_what_an_earlier_release_approved_is_found_by_its_own_words_only(
    answering: Answering, knowledge: Knowledge, asked: str, other: str
) -> None:
    made = answering.verified.add("medical", asked, "Call the doctor.", [], "Dr. Moss", 0.6)
    with knowledge.workspace.db.write() as connection:
        stored = schema.verified.update().where(schema.verified.c.id == made.id)
        connection.execute(stored.values(normalised=normalise_question(other)))
    verified, scope = VerifiedAnswers(knowledge), Scope(frozenset({"medical"}), frozenset())
    assert verified.match(asked, scope) == made and verified.match(other, scope) is None


def test_a_question_that_differs_is_not_answered_so(answering: Answering) -> None:
    for question in ("When may visitors not come to the ward?", "When may children come to the ward?", "专家门诊挂号费是多少？"):
        assert ask(answering, question).arm != "verified"


def test_labels_and_changes_hold_for_other_words_too(answering: Answering, knowledge: Knowledge, tmp_path: Path) -> None:
    everyone, scope = Caller(), Scope(frozenset({"medical"}), frozenset())
    assert knowledge.workspace and answering.verified.similar(OTHERWISE, scope) is not None
    assert answering.verified.similar(OTHERWISE, Scope(frozenset({"law"}), frozenset())) is None
    knowledge.ingest([tmp_path / "documents"], domain="medical", labels=frozenset({"management"}))
    assert answering.verified.similar(OTHERWISE, scope) is None and ask(answering, OTHERWISE, everyone).arm != "verified"
    assert answering.verified.similar(OTHERWISE, Scope(None, frozenset({"management"}))) is not None
    knowledge.remove([DocumentKey("medical", "visiting.md")])
    assert answering.verified.similar(OTHERWISE, Scope(None, frozenset({"management"}))) is None
