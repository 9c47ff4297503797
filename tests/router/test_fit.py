"""Learning a router: it finds what there is to find, finds nothing in noise, and never tests on what it learnt from."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from router_support import labelled
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import Ridge

from router.features import NAMES
from router.fit import Family, Labelled, cross_validated, families, fold_of, leads_of, train
from router.model import NEVER, Blend, Linear, ModelError, Predictor, model_from_json, risk_threshold

FAMILIES = {family.name: family for family in families()}


def matrix(questions: list[Labelled], arm: str) -> tuple[np.ndarray, np.ndarray]:
    known = [question for question in questions if question.utility[arm] is not None]  # type: ignore[index]
    return np.array([question.row for question in known]), np.array([question.utility[arm] for question in known])  # type: ignore[index]


def predicted(model: Predictor, rows: np.ndarray) -> np.ndarray:
    return np.array([model.start + sum(model.parts(tuple(row))) for row in rows])


def test_ridge_in_plain_python_is_scikit_learns() -> None:
    x, y = matrix(labelled(80), "quote")
    x[:, 3] = 2.0
    ours = FAMILIES["ridge-30"].fit(x, y)
    varied = np.delete(x, 3, axis=1)
    theirs = Ridge(alpha=30).fit((varied - varied.mean(axis=0)) / varied.std(axis=0), y)
    expected = theirs.predict((varied - varied.mean(axis=0)) / varied.std(axis=0))
    assert np.allclose(predicted(ours, x), expected)
    assert isinstance(ours, Linear) and ours.weight[3] == 0.0


def test_trees_in_plain_python_are_scikit_learns() -> None:
    x, y = matrix(labelled(120), "rag")
    ours = FAMILIES["trees"].fit(x, y)
    settings = {"n_estimators": 40, "max_depth": 2, "learning_rate": 0.08, "subsample": 0.7, "max_features": 0.5}
    theirs = GradientBoostingRegressor(**settings, min_samples_leaf=6, random_state=0).fit(x, y)  # type: ignore[arg-type]
    # scikit-learn compares in single precision.
    assert np.allclose(predicted(ours, x.astype(np.float32).astype(float)), theirs.predict(x))


def test_both_together_are_the_mean_of_each() -> None:
    x, y = matrix(labelled(120), "rag")
    both, ridge, trees = (FAMILIES[name].fit(x, y) for name in ("ridge and trees", "ridge-30", "trees"))
    assert isinstance(both, Blend) and len(both.members) == 2
    assert np.allclose(predicted(both, x), (predicted(ridge, x) + predicted(trees, x)) / 2)


@pytest.mark.parametrize("among", [None, *FAMILIES])
def test_what_is_there_is_found_and_stored_without_loss(among: str | None) -> None:
    questions = labelled(120)
    model = train(questions, None if among is None else [FAMILIES[among]])
    again = model_from_json(json.loads(json.dumps(model.to_json())))
    assert again == model and (among or model.kind != "mean") and model.langs == ("en", "zh") and model.questions == 120
    for question in questions[:20]:
        assert again.expected(question.row) == model.expected(question.row)


def test_it_learns_whom_to_ask() -> None:
    questions = labelled(120)
    models = cross_validated(questions, lambda inside: train(inside, [FAMILIES["mean"], FAMILIES["trees"]]))
    worth = [
        question.utility[max(found, key=lambda arm: found[arm])]
        for question, each in zip(questions, models, strict=True)
        if (found := {arm: value for arm, value in each.expected(question.row).items() if question.utility[arm] is not None})
    ]
    best = max(fmean(question.utility[arm] or 0.0 for question in questions) for arm in ("quote", "rag", "refuse"))
    assert fmean(value or 0.0 for value in worth) > best + 0.15


def test_in_noise_the_arms_means_are_all_there_is() -> None:
    generator = np.random.default_rng(1)
    noisy = [replace(one, row=tuple(generator.normal(size=len(NAMES)).tolist())) for one in labelled(60)]
    model = train(noisy, [*FAMILIES.values()][:-1])
    spread = [max(values) - min(values) for values in zip(*(list(model.expected(one.row).values()) for one in noisy), strict=True)]
    assert max(spread) < 0.3


def test_questions_of_a_group_are_never_on_both_sides() -> None:
    questions = labelled(60)
    seen: list[set[str]] = []

    def fit(inside: object) -> object:
        seen.append({question.group for question in inside})  # type: ignore[attr-defined]
        return len(seen)

    models = cross_validated(questions, fit)  # type: ignore[arg-type]
    for question, number in zip(questions, models, strict=True):
        assert question.group not in seen[int(number) - 1]  # type: ignore[call-overload]
    assert {fold_of(question.group) for question in questions} == set(range(5))


def test_one_question_and_none() -> None:
    assert train(labelled(1), [FAMILIES["mean"], FAMILIES["trees"]]).questions == 1
    with pytest.raises(ValueError, match="no labelled questions"):
        train([])


def test_the_threshold_keeps_the_risk_where_that_can_be_done() -> None:
    questions = [Labelled(str(n), str(n), "en", (0.0,) * len(NAMES), {"rag": 0.5 if n < 60 else -0.5, "refuse": 0.0}) for n in range(100)]
    leads = {"rag": np.linspace(1, 0, 100), "refuse": np.zeros(100)}
    for target in (0.1, 0.3):
        threshold = risk_threshold(leads_of(questions, leads), target)  # type: ignore[arg-type]
        given = [question.utility["rag"] or 0 for question, lead in zip(questions, leads["rag"], strict=True) if lead >= threshold]
        assert sum(value < 0 for value in given) / len(given) <= target
        # As many as the risk allows, not fewer.
        assert len(given) >= 60
    wrong = [replace(question, utility={"rag": -0.5, "refuse": 0.0}) for question in questions]
    assert risk_threshold(leads_of(wrong, leads), 0.05) == NEVER  # type: ignore[arg-type]
    model = train(wrong, [FAMILIES["mean"]], target_risk=0.05)
    assert model.threshold == NEVER
    # The risk that is allowed may change without training anew.
    assert model_from_json(model.to_json()).threshold == 0.0 and model_from_json(model.to_json()).at_risk(0.05) == model


def test_who_declines_gives_no_answer_that_could_be_right() -> None:
    """Ninety that decline, and ten answers of which half are wrong: that half is the risk."""
    questions = [
        Labelled(str(n), str(n), "en", (0.0,) * len(NAMES), {"rag": -0.5 if n % 20 == 0 else 0.5, "refuse": 0.0}) for n in range(0, 100, 10)
    ]
    declined = [replace(one, id=f"d{one.id}.{k}", utility={"rag": 0.0}, declined=frozenset({"rag"})) for one in questions for k in range(9)]
    asked = [*questions, *declined]
    leads = {"rag": np.full(100, 0.5), "refuse": np.zeros(100)}
    found = leads_of(asked, leads)  # type: ignore[arg-type]
    assert len(found) == 10 and sum(wrong for _, wrong in found) == 5
    assert risk_threshold(found, 0.3) == NEVER and risk_threshold(found, 0.6) == 0.5
    assert questions[0].answered("rag") and not declined[0].answered("rag") and not questions[0].answered("refuse")
    assert not questions[0].answered("base")


def test_answers_of_equal_leads_are_given_or_refused_together() -> None:
    # Twenty good ones surely, then thirty of one and the same lead, of which half are wrong.
    questions = [
        Labelled(str(n), str(n), "en", (0.0,) * len(NAMES), {"rag": -0.5 if n >= 20 and n % 2 else 0.5, "refuse": 0.0}) for n in range(50)
    ]
    leads = {"rag": np.array([1.0] * 20 + [0.5] * 30), "refuse": np.zeros(50)}
    assert risk_threshold(leads_of(questions, leads), 0.1) == 1.0  # type: ignore[arg-type]


def test_a_prediction_stays_within_what_was_seen() -> None:
    model = train(labelled(80), [Family("ridge", FAMILIES["ridge-30"].fit)])
    far = tuple(1e9 for _ in NAMES)
    assert all(-0.5 <= value <= 1.0 and math.isfinite(value) for value in model.expected(far).values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"feature_version": 0}, "other features"),
        ({"features": ["q_words"]}, "other features"),
        ({"grid": []}, "missing"),
        ({"arms": {}}, "missing"),
        ({"langs": None}, "damaged"),
        ({"arms": {"refuse": {"predictor": {"kind": "linear"}}}}, "damaged"),
        ({"arms": {"refuse": {"predictor": {"kind": "blend", "members": []}}}}, "of nothing"),
        ({"arms": {"refuse": {"predictor": {"kind": "blend", "members": [{"kind": "blend", "members": []}]}}}}, "damaged"),
        ({"arms": []}, "missing"),
        ({"arms": "refuse"}, "damaged"),
        ({"leads": "high"}, "damaged"),
        ({"leads": [[math.nan, True]]}, "not finite"),
        ({"questions": math.inf}, "damaged"),
    ],
)
def test_a_damaged_router_is_told(change: dict[str, object], said: str) -> None:
    data = train(labelled(40), [FAMILIES["ridge-30"]]).to_json()
    with pytest.raises(ModelError, match=said):
        model_from_json({**data, **change})


def test_a_tree_that_would_never_end_is_not_read() -> None:
    data = json.loads(json.dumps(train(labelled(80), [FAMILIES["trees"]]).to_json()))
    data["arms"]["quote"]["predictor"]["trees"][0]["left"][0] = 0
    with pytest.raises(ModelError, match="not whole"):
        model_from_json(data)
