"""The trained router decides within the conditions, says why in the question's language, and leaves to the rules what it cannot know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from router_support import labelled

from router.drift import bins_of, mix_shift, recorded, shift, shifts
from router.explain import explain, explanation_json
from router.features import FEATURES, NAMES, row_of, say_feature
from router.fit import Labelled, families, train
from router.learned import LearnedRouter, pick
from router.model import NEVER, RouterModel
from router.policy import RulePolicy
from router.settings import Prices
from router.signals import features
from router.types import Constraints, Costs

ASKED = "What do the documents say about the monthly fee?"
CHINESE = "文件里关于每月的费用是怎么说的？"


@pytest.fixture
def model(situation) -> RouterModel:
    """Learnt from situations with strong, weak and no evidence, in both languages: `rag` is right on strong ones, refusing on weak ones."""
    questions: list[Labelled] = []
    for number in range(120):
        lang = "zh" if number % 2 else "en"
        dense = 0.80 + 0.12 * (number % 10) / 9
        row = row_of(features(situation(CHINESE if lang == "zh" else ASKED, lang, dense=dense, coverage=(number % 10) / 9)))
        good = number % 10 >= 5
        worth = {"rag": 0.8 if good else -0.5, "quote": 0.5 if good else -0.5, "hybrid": 0.9 if good else -0.5}
        questions.append(Labelled(str(number), str(number), lang, row, {**worth, "finetuned": -0.5, "refuse": 0.0 if good else 1.0}))
    return train(questions, [families()[1]])


def router(model: RouterModel, **prices: float) -> LearnedRouter:
    return LearnedRouter("finance@12345678", model, RulePolicy(), Prices(**prices))


@pytest.mark.parametrize(("question", "lang", "worth"), [(ASKED, "en", "expected to be worth"), (CHINESE, "zh", "预期价值")])
def test_it_answers_from_strong_evidence_and_refuses_on_weak(model, situation, adapter, question, lang, worth):
    strong = router(model).decide(situation(question, lang, dense=0.92, coverage=1.0, adapter=adapter(nearest_question=0.9)))
    assert strong.arm == "hybrid" and strong.rule == "learned" and strong.router_version == "finance@12345678"
    assert worth in strong.reasons[0] and "120" in strong.reasons[0]
    assert strong.predicted["hybrid"].utility > strong.predicted["quote"].utility and 0 <= strong.predicted["finetuned"].quality <= 1
    weak = router(model).decide(situation(question, lang, dense=0.80, coverage=0.0, adapter=adapter(nearest_question=0.9)))
    assert weak.arm == "refuse"
    assert ("主要依据" if lang == "zh" else "What spoke for it") in weak.reasons[1]


def test_conditions_of_the_caller_hold(model, situation, adapter):
    found = situation(ASKED, adapter=adapter(), constraints=Constraints(must_cite=True, max_latency_ms=500))
    decision = router(model).decide(found)
    assert decision.arm == "quote" and set(decision.unavailable) >= {"base", "finetuned", "rag", "hybrid", "verified"}
    nothing = situation(ASKED, dense=None, unavailable={"finetuned": "no", "hybrid": "no", "base": "no"})
    assert router(model).decide(nothing).arm == "refuse"


def test_what_was_never_measured_is_not_chosen(model, situation):
    decision = router(model).decide(situation(ASKED))
    assert "base" in decision.unavailable and "evaluation" in decision.unavailable["base"]


def test_a_stale_adapter_is_not_trusted_and_the_reason_is_given(model, situation, adapter):
    fresh = router(model).decide(situation(ASKED, adapter=adapter()))
    changed = router(model).decide(situation(ASKED, adapter=adapter(stale_here=("fees.md",))))
    assert (fresh.arm, changed.arm) == ("hybrid", "rag")
    assert "fees.md" in changed.unavailable["hybrid"] and any("fees.md" in reason for reason in changed.reasons)
    old = router(model).decide(situation(CHINESE, "zh", adapter=adapter(stale_share=0.9)))
    assert old.arm == "rag" and "90%" in old.unavailable["finetuned"] and any("90%" in reason for reason in old.reasons)


def test_an_approved_answer_comes_first(model, situation):
    decision = router(model).decide(situation(ASKED, verified=1.0))
    assert decision.arm == "verified" and decision.rule == "verified_match" and decision.router_version == "finance@12345678"


def test_a_language_it_never_saw_is_left_to_the_rules(model, situation):
    only_english = replace(model, langs=("en",))
    decision = router(only_english).decide(situation(CHINESE, "zh"))
    assert decision.rule != "learned" and "没有见过这种语言" in decision.reasons[-1]


def test_the_allowed_risk_makes_it_refuse(model, situation, adapter):
    never, asked = replace(model, threshold=NEVER), situation(ASKED, adapter=adapter())
    decision = router(never).decide(asked)
    assert decision.arm == "refuse" and "None of the 120 evaluated questions" in decision.reasons[0] and "3.00" not in decision.reasons[0]
    assert "120 个已评测的问题都没有" in router(never).decide(situation(CHINESE, "zh")).reasons[0]
    high = router(replace(model, threshold=1.9)).decide(asked)
    assert high.arm == "refuse" and "asks for 1.90" in high.reasons[0]
    free = router(model).decide(asked).arm
    found = explain(router(never), asked)
    assert free != "refuse" and [(one.said, one.arm) for one in found.conditions] == [("any risk were allowed", free)]
    assert "允许任何风险" in explain(router(never), situation(CHINESE, "zh", adapter=adapter())).conditions[0].said


def test_cost_decides_between_equals():
    costs = {"rag": Costs(100, 800), "quote": Costs(10, 0), "refuse": Costs(0, 0)}
    even = {"rag": 0.505, "quote": 0.5, "refuse": 0.0}
    assert pick(even, costs, Prices(tokens=0), 0.0).arm == "rag"
    assert pick(even, costs, Prices(tokens=0.02), 0.0).arm == "quote"
    assert pick(even, costs, Prices(tokens=0, seconds=10), 0.0).arm == "quote"
    with pytest.raises(ValueError, match="tokens"):
        Prices(tokens=-1)


def test_an_explanation_adds_up_and_its_changes_change_the_choice(model, situation, adapter):
    asked = situation(ASKED, dense=0.92, coverage=1.0, adapter=adapter())
    found = explain(router(model), asked)
    assert set(found.arms) == set(found.decision.predicted) and found.changes
    row = row_of(found.decision.features)
    for change in found.changes:
        place = NAMES.index(change.feature)
        changed = (*row[:place], change.to, *row[place + 1 :])
        utility = {arm: value for arm, value in model.expected(changed).items() if arm in found.arms}
        costs = {arm: Costs(found.arms[arm]["cost"]["latency_ms"], found.arms[arm]["cost"]["tokens"]) for arm in found.arms}
        assert pick(utility, costs, Prices(), model.threshold).arm == change.arm != found.decision.arm
    told = explanation_json(found)
    assert told["arms"]["hybrid"]["because"] and told["changes"][0]["means"]
    rules = explain(RulePolicy(), asked)
    assert "because" not in rules.arms["rag"]


def test_every_feature_has_a_name_in_both_languages(situation, adapter):
    assert len(set(NAMES)) == len(NAMES) and all(feature.en and feature.zh for feature in FEATURES)
    assert say_feature("q_zh", "zh") == "问题为中文"
    found = features(situation(CHINESE, "zh", adapter=adapter(nearest_question=0.9, near_questions=0.8), prior="rag"))
    row = row_of(found)
    assert row[NAMES.index("a_near")] == 0.8 and row[NAMES.index("p_rag")] == 1.0 and row[NAMES.index("q_zh")] == 1.0
    assert row_of({}) == (0.0,) * len(NAMES)


def test_drift_is_told_from_chance():
    even = [0.1] * 10
    assert shift("q", even, even, 500, 500).state == "stable"
    assert shift("q", even, [0.55, *[0.05] * 9], 500, 500).state == "moved"
    # The same shares of ten questions say nothing.
    assert shift("q", even, [0.2, 0.2, 0.2, 0.2, 0.2, 0, 0, 0, 0, 0], 500, 10).state == "stable"
    assert shift("q", [1.0], [1.0], 10, 10).psi == 0.0
    with pytest.raises(ValueError, match="cannot be compared"):
        shift("q", even, even, 500, 0)
    assert mix_shift({"rag": 1.0}, {"quote": 1.0}, 300, 300).state == "moved"


def test_the_same_questions_have_not_moved():
    rows = [row_of({"q_zh": 1.0, "e_title_asked": (number % 3 + 1) / 3, "q_words": 8.0 + number % 5}) for number in range(60)]
    # Far more of them than were learnt from, and as the log keeps them.
    again = [recorded(row) for row in rows * 40]
    assert max(one.psi for one in shifts(bins_of(rows), again, len(rows))) < 1e-9


def test_a_feature_that_was_always_the_same_may_rise_or_fall():
    rows = [row_of({"q_zh": 1.0, "a_stale_share": 0.5}) for _ in range(60)]
    now = [recorded(row_of({"q_zh": 0.0, "a_stale_share": 0.7})) for _ in range(60)]
    assert {one.name for one in shifts(bins_of(rows), now, 60) if one.state == "moved"} == {"q_zh", "a_stale_share"}


def test_chance_hardly_ever_asks_for_new_labels():
    """Of so many features compared at once, in small samples, one of them was almost always above the bound of a single one."""
    alarms = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        learnt, now = (
            [recorded(tuple(row)) for row in generator.normal(size=(count, len(NAMES))).tolist()] for count in (60, 100)
        )  # fmt: skip
        alarms += any(one.state == "moved" for one in shifts(bins_of(learnt), now, len(learnt)))
    assert alarms <= 4


def test_shifts_are_of_the_features_that_vary():
    rows = [one.row for one in labelled(300)]
    borders = [-1.0, 0.0, 1.0]
    bins = {name: {"borders": borders, "shares": [0.16, 0.34, 0.34, 0.16]} for name in NAMES}
    bins["q_zh"] = {"borders": [], "shares": [1.0]}
    assert {one.state for one in shifts(bins, rows, 300)} == {"stable"}
    moved = [tuple(value + 2 * (place == 1 + NAMES.index("q_zh")) for place, value in enumerate(row)) for row in rows]
    worst = shifts(bins, moved, 300)[0]
    assert worst.name == "q_numbers" and worst.state == "moved" and worst.ks > 0.5
