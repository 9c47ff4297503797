"""What would have changed a choice: every change and condition that is named does change it."""

from __future__ import annotations

import pytest

from router.explain import explain, explanation_json
from router.features import row_of
from router.fit import Labelled, families, train
from router.learned import LearnedRouter
from router.policy import RulePolicy
from router.settings import PolicySettings
from router.signals import features
from router.types import Constraints, Costs

ASKED = "Tell me about opening an account"
POLICY = RulePolicy(PolicySettings(reading=1.0))


def test_the_rules_say_what_would_have_changed_their_choice(situation, adapter):
    asked = situation(ASKED, dense=0.90, coverage=0.3, adapter=adapter(nearest_question=0.93))
    found = explain(POLICY, asked)
    assert {"e_dense_top", "a_nearest", "q_recent"} <= {change.feature for change in found.changes}
    for change in found.changes:
        view = POLICY.view_of(asked, {**features(asked), change.feature: change.to})
        assert POLICY.verdict(view)[1].arm == change.arm != found.decision.arm
    cues = {change.feature: change.arm for change in explain(POLICY, situation(ASKED, coverage=1.0, adapter=adapter())).changes}
    assert cues["q_exact"] == "quote"


@pytest.mark.parametrize(("lang", "said"), [("en", "fees.md were as when"), ("zh", "fees.md 与适配器训练时相同")])
def test_a_changed_document_is_named_with_the_arm_it_kept_away(situation, adapter, lang, said):
    question = ASKED if lang == "en" else "请介绍开户流程"
    stale = situation(question, lang, dense=0.9, coverage=0.8, adapter=adapter(nearest_question=0.97, stale_here=("fees.md",)))
    rows = [row_of(features(situation(question, lang, adapter=adapter(nearest_question=0.97)))) for _ in range(40)]
    worth = {"hybrid": 0.9, "rag": 0.5, "finetuned": -0.5, "refuse": 0.0}
    model = train([Labelled(str(number), str(number), lang, row, worth) for number, row in enumerate(rows)], families()[:1])
    for router in (POLICY, LearnedRouter("finance@12345678", model, POLICY)):
        found = explain(router, stale)
        assert found.decision.arm == "rag"
        (condition,) = found.conditions
        assert condition.arm == "hybrid" and said in condition.said
        assert explanation_json(found)["conditions"] == [{"if": condition.said, "arm": "hybrid"}]


def test_limits_and_approved_answers_are_named(situation, adapter):
    slow = {"rag": Costs(4000, 800), "hybrid": Costs(4000, 800)}
    limits = Constraints(max_latency_ms=3000)
    found = explain(POLICY, situation(ASKED, adapter=adapter(nearest_question=0.95), constraints=limits, costs=slow))
    assert [(one.said, one.arm) for one in found.conditions] == [("more than 3000 ms were allowed", "hybrid")]
    assert found.arms["quote"]["cost"]["assumed"] and found.conditions[0].arm != found.decision.arm
    weak = situation(ASKED, dense=0.7, coverage=0.0, adapter=adapter(nearest_question=1.0), constraints=Constraints(must_cite=True))
    assert [(one.said, one.arm) for one in explain(POLICY, weak).conditions] == [("citations were not required", "finetuned")]
    approved = explain(POLICY, situation(ASKED, verified=1.0))
    assert approved.changes == () and [one.arm for one in approved.conditions] == ["rag"]
    old = situation(ASKED, adapter=adapter(nearest_question=0.95, stale_share=0.9))
    assert [(one.said, one.arm) for one in explain(POLICY, old).conditions] == [
        ("all that the adapter learnt from were as it was", "hybrid")
    ]
