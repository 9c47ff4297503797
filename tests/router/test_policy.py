"""The rule policy: each rule, constraints, availability, freshness, wording, and what must hold for every decision."""

import itertools
import math

import pytest

from router.policy import RULES, RulePolicy
from router.settings import PolicySettings
from router.types import ARMS, CITING, Constraints, Costs

# A model that reads passages well; the embedded one has a test of its own.
POLICY = RulePolicy(PolicySettings(reading=1.0))
OPEN = "Tell me about opening an account"
WHY = "Why should we keep the account open?"


def test_exact_verified_answer_is_served(situation):
    decision = POLICY.decide(situation(verified=1.0))
    assert (decision.arm, decision.rule) == ("verified", "verified_match")
    assert POLICY.decide(situation(verified=0.85)).arm != "verified"


@pytest.mark.parametrize(("lang", "words"), [("en", "own words"), ("zh", "原文")])
def test_a_model_that_reads_badly_leaves_supported_questions_to_quotes(situation, lang, words):
    decision = RulePolicy().decide(situation(OPEN if lang == "en" else "介绍一下开户", lang))
    assert (decision.arm, decision.rule) == ("quote", "supported")
    assert any(words in reason for reason in decision.reasons)
    assert RulePolicy().decide(situation(WHY)).arm == "rag"


def test_nothing_found_is_refused_and_base_never_guesses(situation):
    decision = POLICY.decide(situation(dense=None))
    assert (decision.arm, decision.rule) == ("refuse", "no_evidence")
    assert {"quote", "rag", "hybrid"} <= set(decision.unavailable)
    assert "base" in decision.predicted


def test_weak_evidence_is_refused_with_the_numbers(situation):
    decision = POLICY.decide(situation(dense=0.79, coverage=0.1))
    assert decision.arm == "refuse"
    assert "0.79" in decision.reasons[0] and "10%" in decision.reasons[0]


def test_weak_evidence_goes_to_an_adapter_trained_on_the_question(situation, adapter):
    assert POLICY.decide(situation(dense=0.79, coverage=0.1, adapter=adapter(nearest_question=0.97))).arm == "finetuned"
    assert POLICY.decide(situation(dense=0.79, coverage=0.1, adapter=adapter(nearest_question=0.85))).arm == "refuse"
    assert POLICY.decide(situation(dense=0.79, coverage=0.1, adapter=adapter())).arm == "refuse"


@pytest.mark.parametrize(
    ("question", "lang"),
    [
        ("How much is the monthly fee?", "en"),
        ("By when must a complaint be filed?", "en"),
        ("每月管理费是多少？", "zh"),
        ("第八条的原文", "zh"),
    ],
)
def test_a_precise_fact_with_strong_evidence_is_quoted(situation, adapter, question, lang):
    decision = POLICY.decide(situation(question, lang, adapter=adapter()))
    assert (decision.arm, decision.rule) == ("quote", "precise_fact")


def test_a_passage_in_another_language_is_not_quoted_while_something_can_be_generated(situation):
    decision = POLICY.decide(situation("每月管理费是多少？", "zh", coverage=0.0, passage_lang="en"))
    assert decision.arm == "rag"
    silent = dict.fromkeys(("base", "rag", "finetuned", "hybrid"), "the engine does not declare zh")
    quoted = POLICY.decide(situation("每月管理费是多少？", "zh", coverage=0.0, passage_lang="en", unavailable=silent))
    assert (quoted.arm, quoted.rule) == ("quote", "quote_only")
    assert "the engine does not declare zh" in quoted.reasons[1]


def test_strong_evidence_takes_a_fresh_adapter_along(situation, adapter):
    assert POLICY.decide(situation(OPEN)).arm == "rag"
    decision = POLICY.decide(situation(OPEN, adapter=adapter(nearest_question=0.95)))
    assert decision.arm == "hybrid"
    assert any("finance@3f2a91c0" in reason for reason in decision.reasons)


def test_a_changed_document_flips_the_route_and_says_why(situation, adapter):
    stale = adapter(nearest_question=0.95, stale_here=("fees.md",))
    decision = POLICY.decide(situation(OPEN, adapter=stale))
    assert decision.arm == "rag"
    assert "fees.md" in decision.unavailable["finetuned"]
    assert "fees.md changed or went after it was trained" in decision.reasons[-1]
    # Not even a question the adapter was trained on, when its source has changed.
    assert (
        POLICY.decide(situation(OPEN, dense=0.7, coverage=0, adapter=adapter(nearest_question=1.0, stale_here=("fees.md",)))).arm
        == "refuse"
    )


def test_a_mostly_stale_adapter_is_not_used(situation, adapter):
    decision = POLICY.decide(situation(OPEN, adapter=adapter(nearest_question=0.95, stale_share=0.8)))
    assert decision.arm == "rag"
    assert "80%" in decision.reasons[-1]


def test_recency_prefers_retrieval(situation, adapter):
    fresh = adapter(nearest_question=0.95)
    assert POLICY.decide(situation(OPEN + " today", adapter=fresh)).rule == "present_state"
    assert (
        POLICY.decide(situation("目前开户需要准备哪些材料，请介绍", "zh", dense=0.91, coverage=0.4, adapter=fresh)).rule == "present_state"
    )


def test_reasoning_uses_the_adapter(situation, adapter):
    assert POLICY.decide(situation(WHY, adapter=adapter(nearest_question=0.9))).rule == "learned_reasoning"
    assert POLICY.decide(situation(WHY, adapter=adapter(nearest_question=0.9))).arm == "hybrid"
    weak = {"dense": 0.88, "coverage": 0.3}
    known = adapter(nearest_question=0.99)
    assert RulePolicy().decide(situation(WHY, **weak, adapter=known, prior="finetuning")).arm == "finetuned"
    assert POLICY.decide(situation("为什么要保留账户？", "zh", 0.92, 0.3, adapter=known)).rule == "learned_reasoning"


def test_the_prior_tips_a_near_tie_and_is_named(situation, adapter):
    near = adapter(nearest_question=0.82)
    plain, tipped = (POLICY.decide(situation(OPEN, adapter=near, prior=prior)) for prior in (None, "rag"))
    assert (plain.arm, tipped.arm) == ("hybrid", "rag")
    assert any("(rag)" in reason for reason in tipped.reasons)
    assert not any("scenario" in reason for reason in plain.reasons)


def test_must_cite_leaves_only_arms_that_cite(situation, adapter):
    known = adapter(nearest_question=1.0)
    decision = POLICY.decide(situation(dense=0.7, coverage=0, adapter=known, constraints=Constraints(must_cite=True)))
    assert decision.arm == "refuse"
    assert "citations are required" in decision.unavailable["base"] and "citations are required" in decision.unavailable["finetuned"]
    assert set(decision.predicted) <= CITING | {"refuse"}


def test_max_latency_removes_slow_arms_with_measured_or_assumed_costs(situation):
    decision = POLICY.decide(situation(OPEN, constraints=Constraints(max_latency_ms=500)))
    assert decision.arm == "quote"
    assert "500 ms" in decision.unavailable["rag"]
    quick = {"rag": Costs(400, 900)}
    assert POLICY.decide(situation(OPEN, constraints=Constraints(max_latency_ms=500), costs=quick)).arm == "rag"
    assert POLICY.decide(situation(OPEN, constraints=Constraints(max_latency_ms=1))).arm == "refuse"


def test_given_reasons_pass_through_and_refusing_is_always_possible(situation):
    given = dict.fromkeys(ARMS, "the engine is down")
    decision = POLICY.decide(situation(unavailable=given))
    assert (decision.arm, decision.rule) == ("refuse", "nothing_left")
    assert set(decision.predicted) == {"refuse"}
    assert set(decision.unavailable.values()) == {"the engine is down"}


def test_reasons_are_in_the_language_of_the_question(situation, adapter):
    stale = adapter(stale_here=("收费标准.md", "a", "b", "c"))
    decision = POLICY.decide(situation("请介绍开户流程", "zh", adapter=stale, constraints=Constraints(max_latency_ms=8000)))
    said = [*decision.reasons, decision.unavailable["finetuned"], decision.unavailable["hybrid"]]
    assert all(any("\u4e00" <= char <= "\u9fff" for char in text) for text in said)
    assert "收费标准.md、a、b 等 4 份文档" in decision.reasons[-1]


def test_what_holds_for_every_decision(situation, adapter):
    adapters = [
        None,
        adapter(),
        adapter(nearest_question=0.97),
        adapter(nearest_question=0.97, stale_here=("fees.md",)),
        adapter(stale_share=1.0),
    ]
    questions = [("How much is the fee now?", "en"), (OPEN, "en"), (WHY, "en"), ("比较两种账户", "zh"), ("手续费多少", "zh"), ("", "en")]
    fixed = [None, (0.7, 0.0), (0.88, 0.35), (0.93, 1.0)]
    conditions = [Constraints(), Constraints(must_cite=True), Constraints(max_latency_ms=300)]
    for facts, (question, lang), found, limits, prior in itertools.product(
        adapters, questions, fixed, conditions, (None, "rag", "finetuning", "hybrid")
    ):
        dense, coverage = found or (None, 0.0)
        decision = POLICY.decide(situation(question, lang, dense, coverage, adapter=facts, prior=prior, constraints=limits))
        assert decision.arm in decision.predicted and decision.arm != "base"
        assert set(decision.predicted) | set(decision.unavailable) == set(ARMS)
        assert not set(decision.predicted) & set(decision.unavailable)
        assert "refuse" in decision.predicted
        assert decision.reasons and all(decision.reasons)
        assert decision.rule in {rule.__name__ for rule in RULES}
        assert all(0 <= entry.quality <= 1 and math.isfinite(entry.latency_ms) for entry in decision.predicted.values())
        if facts is not None and facts.stale_here:
            assert decision.arm not in ("finetuned", "hybrid")
        if limits.must_cite:
            assert decision.arm in CITING | {"refuse"}
        assert all(math.isfinite(value) for value in decision.features.values())


def test_a_huge_question(situation):
    assert POLICY.decide(situation("手续费是多少？" * 15_000, "zh")).arm in ("quote", "rag")


def test_settings_are_checked_and_named_in_the_version():
    assert RulePolicy(PolicySettings(weak=0.2)).version != POLICY.version == RulePolicy(PolicySettings(reading=1.0)).version
    with pytest.raises(ValueError, match=r"weak: 1\.5"):
        PolicySettings(weak=1.5)
    with pytest.raises(ValueError, match=r"weak .* must be below strong"):
        PolicySettings(weak=0.6, strong=0.5)
    with pytest.raises(ValueError, match="dense_floor"):
        PolicySettings(dense_floor=float("nan"))
