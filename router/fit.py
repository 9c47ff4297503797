"""Learning a router from labelled questions. Small samples: few, simple models, chosen and calibrated out of fold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from router.features import NAMES, Row
from router.model import ArmModel, Blend, Leads, Linear, Predictor, RouterModel, Tree, Trees
from router.types import Arm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

FOLDS: Final = 5
# From fewer questions than this the folds are too small to learn or to prove anything.
FEWEST: Final = 30
# From fewer groups of them there is no telling how other questions would fare, however many they are.
FEWEST_GROUPS: Final = 10


@dataclass(frozen=True, slots=True)
class Labelled:
    """One question as it is learnt from: its features, what each arm was worth, None where an arm could not be asked.

    Questions of one `group` (that share a document, or the wording) are never on both sides of a fold. `lang` is the question's. The arms
    that `declined` were asked and gave no answer.
    """

    id: str
    group: str
    lang: str
    row: Row
    utility: Mapping[Arm, float | None]
    declined: frozenset[Arm] = frozenset()

    def answered(self, arm: Arm) -> bool:
        """Whether choosing the arm is to give an answer, which may be wrong."""
        return arm != "refuse" and self.utility.get(arm) is not None and arm not in self.declined


@dataclass(frozen=True, slots=True)
class Family:
    """A way to fit one arm: `fit` takes rows [n, features] and utilities [n]."""

    name: str
    fit: Callable[[Floats, Floats], Predictor]


def families() -> tuple[Family, ...]:
    """What is tried, the simplest first: the arm's mean, regressions that shrink all features, few shallow trees, and both together."""
    ridges = tuple(Family(f"ridge-{strength:g}", _ridge(strength)) for strength in (30.0, 300.0))
    return (Family("mean", _mean), *ridges, Family("trees", _boosted), Family("ridge and trees", _both))


def fold_of(group: str, folds: int = FOLDS) -> int:
    """Where the questions of a group are tested; the same in every run."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) % folds


def train(questions: Sequence[Labelled], among: Sequence[Family] | None = None, target_risk: float | None = None) -> RouterModel:
    """Fit every arm with the family that predicts best out of fold, calibrated there, and choose the threshold of refusing.

    The family is the one with the smallest squared error over all arms, each relative to that of its mean. Raises ValueError where there
    are no questions.
    """
    if not questions:
        raise ValueError("there are no labelled questions to learn from")
    tried = among or families()
    out_of_fold = {family.name: _predictions(questions, family) for family in tried}
    best = min(tried, key=lambda family: _error(questions, out_of_fold[family.name]))
    arms: dict[Arm, ArmModel] = {}
    calibrated: dict[Arm, Floats] = {}
    for arm, predicted in out_of_fold[best.name].items():
        x, y, known = _matrix(questions, arm)
        offset, slope = _calibration(predicted[known], y)
        arms[arm] = ArmModel(best.fit(x, y), offset, slope, float(y.min()), float(y.max()))
        calibrated[arm] = np.clip(offset + slope * predicted, y.min(), y.max())
    rows = np.array([question.row for question in questions])
    grid = tuple(tuple(float(v) for v in np.unique(np.quantile(rows[:, k], np.linspace(0, 1, 11)))) for k in range(len(NAMES)))
    langs = tuple(sorted({question.lang for question in questions}))
    model = RouterModel(arms, langs, grid, best.name, len(questions), leads_of(questions, calibrated))
    return model.at_risk(target_risk)


def cross_validated(questions: Sequence[Labelled], fit: Callable[[Sequence[Labelled]], RouterModel]) -> list[RouterModel]:
    """For each question the router that was trained without the questions of its fold."""
    models: dict[int, RouterModel] = {}
    for fold in sorted({fold_of(question.group) for question in questions}):
        models[fold] = fit([question for question in questions if fold_of(question.group) != fold])
    return [models[fold_of(question.group)] for question in questions]


def leads_of(questions: Sequence[Labelled], predicted: Mapping[Arm, Floats]) -> Leads:
    """How far the best arm for each question leads refusing, and whether its answer is wrong, which is to be worth less than nothing;
    without questions where it gives none."""
    leads: list[tuple[float, bool]] = []
    for place, question in enumerate(questions):
        open_arms = [arm for arm in predicted if arm != "refuse" and question.utility.get(arm) is not None]
        if open_arms:
            arm = max(open_arms, key=lambda name: predicted[name][place])
            if question.answered(arm):
                leads.append((float(predicted[arm][place] - predicted["refuse"][place]), bool((question.utility[arm] or 0.0) < 0)))
    return tuple(sorted(leads, reverse=True))


def _predictions(questions: Sequence[Labelled], family: Family) -> dict[Arm, Floats]:
    """For each arm the out-of-fold prediction of every question."""
    rows = np.array([question.row for question in questions])
    folds = np.array([fold_of(question.group) for question in questions])
    made: dict[Arm, Floats] = {}
    for arm in dict.fromkeys(arm for question in questions for arm in question.utility):
        x, y, known = _matrix(questions, arm)
        if not len(y):
            continue
        predicted = np.full(len(questions), y.mean())
        for fold in np.unique(folds):
            inside, outside = folds == fold, folds[known] != fold
            if outside.any():
                predictor = family.fit(x[outside], y[outside])
                predicted[inside] = [predictor.start + sum(predictor.parts(tuple(row))) for row in rows[inside].tolist()]
        made[arm] = predicted
    return made


def _matrix(questions: Sequence[Labelled], arm: Arm) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """(rows, utilities, places) of the questions that the arm was asked."""
    known = np.array([place for place, question in enumerate(questions) if question.utility.get(arm) is not None], dtype=np.intp)
    rows = np.array([questions[place].row for place in known]).reshape(len(known), len(NAMES))
    return rows, np.array([questions[place].utility[arm] for place in known], dtype=np.float64), known


def _error(questions: Sequence[Labelled], predicted: Mapping[Arm, Floats]) -> float:
    """The squared error as a share of the variance, averaged over the arms."""
    shares = []
    for arm, values in predicted.items():
        _, y, known = _matrix(questions, arm)
        if (spread := float(((y - y.mean()) ** 2).sum())) > 0:
            shares.append(float(((y - values[known]) ** 2).sum()) / spread)
    return float(np.mean(shares)) if shares else 0.0


def _calibration(predicted: Floats, y: Floats) -> tuple[float, float]:
    """Offset and slope of the least-squares line from prediction to outcome, the slope kept within [0, 1]: predictions are only ever
    drawn towards the mean (the linear form of Platt's recalibration, 1999)."""
    spread = float(((predicted - predicted.mean()) ** 2).sum())
    slope = float(((predicted - predicted.mean()) * (y - y.mean())).sum()) / spread if spread > 1e-12 else 1.0
    slope = min(1.0, max(0.0, slope))
    return float(y.mean() - slope * predicted.mean()), slope


def _mean(x: Floats, y: Floats) -> Linear:
    width = x.shape[1]
    return Linear(float(y.mean()), (0.0,) * width, (1.0,) * width, (0.0,) * width)


def _ridge(strength: float) -> Callable[[Floats, Floats], Linear]:
    """Ridge regression (Hoerl and Kennard 1970) on standardised features."""

    def fit(x: Floats, y: Floats) -> Linear:
        from sklearn.linear_model import Ridge

        center, scale = x.mean(axis=0), x.std(axis=0)
        # A feature that never varied says nothing.
        still = scale < 1e-9
        scale[still] = 1.0
        if y.std() < 1e-9:
            return _mean(x, y)
        fitted = Ridge(alpha=strength).fit((x - center) / scale, y)
        return Linear(float(fitted.intercept_), _plain(center), _plain(scale), _plain(np.where(still, 0.0, fitted.coef_)))

    return fit


def _boosted(x: Floats, y: Floats) -> Linear | Trees:
    """Forty trees of depth 2 at a low rate, each from seven tenths of the questions; the mean where there are too few to split."""
    from sklearn.ensemble import GradientBoostingRegressor

    leaf = max(5, len(y) // 20)
    if len(y) < 2 * leaf or np.ptp(y) == 0:
        return _mean(x, y)
    settings: dict[str, Any] = {"n_estimators": 40, "max_depth": 2, "learning_rate": 0.08, "subsample": 0.7, "max_features": 0.5}
    fitted = GradientBoostingRegressor(**settings, min_samples_leaf=leaf, random_state=0).fit(x, y)
    rate = settings["learning_rate"]
    return Trees(float(y.mean()), tuple(_tree(each[0].tree_, rate) for each in fitted.estimators_))


def _both(x: Floats, y: Floats) -> Blend:
    """The mean of the weaker ridge and the trees: on three sets of questions its choices were never far behind the better one's."""
    return Blend((_ridge(30.0)(x, y), _boosted(x, y)))


def _tree(tree: Any, rate: float) -> Tree:
    leaf = tree.children_left < 0
    return Tree(
        tuple(int(f) for f in np.where(leaf, -1, tree.feature)),
        _plain(np.where(leaf, 0.0, tree.threshold)),
        tuple(int(n) for n in tree.children_left),
        tuple(int(n) for n in tree.children_right),
        _plain(tree.value[:, 0, 0] * rate),
    )


def _plain(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
