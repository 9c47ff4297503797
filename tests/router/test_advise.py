"""The scenario framework: rules in order, conflicts, and inputs that are wrong."""

import itertools
import json

import pytest

from router.advise import ALLOWED, ScenarioError, ScenarioInputs, advice_json, advise

STRONGEST = {
    "knowledge_update_frequency": ("high", "rag"),
    "reasoning_complexity": ("high", "finetuning"),
    "deployment_environment": ("offline", "finetuning"),
    "development_timeline": ("urgent", "rag"),
    "accuracy_requirement": ("critical", "finetuning"),
}


def test_neutral_inputs_give_hybrid_and_only_the_last_rule_fires():
    advice = advise(ScenarioInputs())
    assert advice.choice == "hybrid"
    assert [rule.fired for rule in advice.rules] == [False] * 5 + [True]
    assert advice.conflicts == ()


@pytest.mark.parametrize(("field", "value", "choice"), [(field, *rest) for field, rest in STRONGEST.items()])
def test_each_condition_alone_decides(field, value, choice):
    advice = advise(ScenarioInputs(**{field: value}))
    assert advice.choice == choice
    assert [rule.name for rule in advice.rules if rule.fired] == [f"{field}={value}"]
    assert value in next(rule.why for rule in advice.rules if rule.fired)


def test_first_match_wins_over_every_combination():
    for values in itertools.product(*ALLOWED.values()):
        inputs = dict(zip(ALLOWED, values, strict=True))
        advice = advise(ScenarioInputs(**inputs))
        expected = next((choice for field, (value, choice) in STRONGEST.items() if inputs[field] == value), "hybrid")
        assert advice.choice == expected
        assert sum(rule.fired for rule in advice.rules) == 1
        assert [rule.held for rule in advice.rules[:5]] == [inputs[field] == value for field, (value, _) in STRONGEST.items()]
        sides = [choice for field, (value, choice) in STRONGEST.items() if inputs[field] == value]
        assert len(advice.conflicts) == sides.count("rag") * sides.count("finetuning")


def test_a_rule_that_held_but_came_later_says_which_one_decided():
    advice = advise(ScenarioInputs(knowledge_update_frequency="high", accuracy_requirement="critical"))
    assert advice.choice == "rag"
    last = advice.rules[4]
    assert last.held and not last.fired and "knowledge_update_frequency=high comes first" in last.why
    assert len(advice.conflicts) == 1
    assert "knowledge_update_frequency=high" in advice.conflicts[0] and "accuracy_requirement=critical" in advice.conflicts[0]


def test_unknown_value_names_field_allowed_and_nearest():
    with pytest.raises(ScenarioError, match=r"reasoning_complexity: 'hihg' is not known; allowed: low, medium, high; did you mean 'high'"):
        ScenarioInputs(reasoning_complexity="hihg")


def test_unknown_field_names_the_nearest():
    with pytest.raises(ScenarioError, match="did you mean 'accuracy_requirement'"):
        ScenarioInputs.from_mapping({"accuracy_requirment": "high"})


@pytest.mark.parametrize("value", ["", "高", None, 3, True, ["high"]])
def test_other_values_are_refused(value):
    with pytest.raises(ScenarioError, match="accuracy_requirement"):
        ScenarioInputs.from_mapping({"accuracy_requirement": value})


def test_case_and_blanks_do_not_matter():
    assert ScenarioInputs.from_mapping({"development_timeline": " Urgent "}).development_timeline == "urgent"


def test_json_form():
    form = json.loads(json.dumps(advice_json(advise(ScenarioInputs(deployment_environment="offline")))))
    assert form["choice"] == "finetuning"
    assert form["conflicts"] == [] and form["roi"] is None
    assert all({"name", "fired", "why"} <= set(rule) for rule in form["rules"])
