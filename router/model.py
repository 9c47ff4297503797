"""A trained router's predictions: small models of the utility of each arm, kept as plain JSON and evaluated in plain Python.

Three kinds are known. A linear model is ``intercept + sum(weight * (x - center) / scale)``. Trees are a sum of regression trees
(gradient boosting: Friedman 2001, "Greedy function approximation"). A blend is the mean of others. All say how much each feature
contributed: for a linear model its term, for trees the changes of the node values along the path (Saabas 2014, "Interpreting random
forests"), for a blend the mean of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from router.features import NAMES, VERSION, Row
from router.types import ARMS, Arm

FORMAT: Final = 3
# No answer can lead by so much: utilities are in [-1, 1].
NEVER: Final = 3.0
# For each question how far the best answer led refusing, and whether it was wrong; the largest leads first.
Leads = tuple[tuple[float, bool], ...]


class ModelError(ValueError):
    """A stored router cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Linear:
    """One number per feature each; `scale` is never 0."""

    intercept: float
    center: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[float, ...]

    def parts(self, row: Row) -> list[float]:
        """What each feature adds to `start`."""
        return [w * (x - c) / s for x, c, s, w in zip(row, self.center, self.scale, self.weight, strict=True)]

    @property
    def start(self) -> float:
        return self.intercept


@dataclass(frozen=True, slots=True)
class Tree:
    """Node 0 is the root; a leaf has `feature` -1, another node goes `left` where its feature is at most `threshold`."""

    feature: tuple[int, ...]
    threshold: tuple[float, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]
    value: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Trees:
    """The sum of `trees` on top of `base`."""

    base: float
    trees: tuple[Tree, ...]

    @property
    def start(self) -> float:
        return self.base + sum(tree.value[0] for tree in self.trees)

    def parts(self, row: Row) -> list[float]:
        """What each feature adds to `start`."""
        added = [0.0] * len(row)
        for tree in self.trees:
            node = 0
            while (feature := tree.feature[node]) >= 0:
                child = tree.left[node] if row[feature] <= tree.threshold[node] else tree.right[node]
                added[feature] += tree.value[child] - tree.value[node]
                node = child
        return added


@dataclass(frozen=True, slots=True)
class Blend:
    """The mean of at least one other; each is off in its own way, which the mean evens out (Breiman 1996, "Stacked regressions")."""

    members: tuple[Linear | Trees, ...]

    @property
    def start(self) -> float:
        return math.fsum(member.start for member in self.members) / len(self.members)

    def parts(self, row: Row) -> list[float]:
        """What each feature adds to `start`."""
        each = [member.parts(row) for member in self.members]
        return [math.fsum(column) / len(self.members) for column in zip(*each, strict=True)]


Predictor = Linear | Trees | Blend


@dataclass(frozen=True, slots=True)
class ArmModel:
    """The utility expected of one arm: ``offset + slope * prediction``, kept within [low, high]; offset and slope calibrate it."""

    predictor: Predictor
    offset: float
    slope: float
    low: float
    high: float

    def expected(self, row: Row) -> float:
        """Expected utility."""
        return self.explained(row)[0]

    def explained(self, row: Row) -> tuple[float, list[float]]:
        """Expected utility, and what each feature contributed to it before it was kept within bounds."""
        parts = [self.slope * part for part in self.predictor.parts(row)]
        raw = self.offset + self.slope * self.predictor.start + math.fsum(parts)
        return min(self.high, max(self.low, raw)), parts


@dataclass(frozen=True, slots=True)
class RouterModel:
    """What was learnt from one or more evaluation runs of a domain.

    `grid` has for each feature the values that stand for its training distribution (its deciles), which a counterfactual may use. `langs`
    are the languages of the `questions` it learnt from, `leads` those of the out-of-fold predictions. `threshold` is how much more utility
    than that of refusing an answer must promise; it is not stored, as it follows from the risk that is allowed now (see `at_risk`).
    """

    arms: Mapping[Arm, ArmModel]
    langs: tuple[str, ...]
    grid: tuple[tuple[float, ...], ...]
    kind: str
    questions: int
    leads: Leads
    threshold: float = 0.0

    def at_risk(self, target: float | None) -> RouterModel:
        """The same, refusing so that the share of wrong answers stays at `target`; None: wherever refusing promises more."""
        return replace(self, threshold=0.0 if target is None else max(0.0, risk_threshold(self.leads, target)))

    def expected(self, row: Row) -> dict[Arm, float]:
        """The expected utility of every arm that was measured."""
        within = self.within(row)
        return {arm: model.expected(within) for arm, model in self.arms.items()}

    def within(self, row: Row) -> Row:
        """The row with each number kept within what training saw: beyond it nothing was learnt."""
        return tuple(min(values[-1], max(values[0], value)) for value, values in zip(row, self.grid, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        arms = {arm: {**asdict(model), "predictor": _plain(model.predictor)} for arm, model in self.arms.items()}
        return {
            "format": FORMAT,
            "feature_version": VERSION,
            "features": list(NAMES),
            "kind": self.kind,
            "questions": self.questions,
            "langs": list(self.langs),
            "leads": [[lead, wrong] for lead, wrong in self.leads],
            "grid": [list(values) for values in self.grid],
            "arms": arms,
        }


def risk_threshold(leads: Leads, target: float) -> float:
    """The least lead over refusing from which the share of wrong answers stays at `target` or below; NEVER where there is none.

    With k wrong among the n answers with the largest leads, (k + 1) / (n + 1) must be at most `target` there: the correction for the
    next, unseen question of conformal risk control (Angelopoulos et al. 2022, arXiv:2208.02814), whose guarantee needs a loss that only
    grows with coverage, which this share need not do; answers are taken from the surest downward as long as it holds somewhere further
    down. Answers of equal leads are given or refused together.
    """
    found, wrong = NEVER, 0
    for count, (lead, bad) in enumerate(leads, 1):
        wrong += bad
        last_of_equals = count == len(leads) or leads[count][0] < lead
        if last_of_equals and (wrong + 1) / (count + 1) <= target:
            found = lead
    return found


def model_from_json(data: Mapping[str, Any]) -> RouterModel:
    """The inverse of `RouterModel.to_json`. Raises ModelError when it was made with other features or is damaged."""
    try:
        if data["format"] != FORMAT or data["feature_version"] != VERSION or tuple(data["features"]) != NAMES:
            raise ModelError(
                "it was trained with other features than this version has, or stored otherwise; "
                "measure and train it again: appliance eval run, appliance router train"
            )
        arms = {arm: _arm(data["arms"][arm]) for arm in ARMS if arm in data["arms"]}
        grid = tuple(_numbers(values) for values in data["grid"])
        if len(grid) != len(NAMES) or not all(grid) or len(arms) != len(data["arms"]) or "refuse" not in arms:
            raise ModelError("arms or features are missing")
        langs = tuple(map(str, data["langs"]))
        leads = tuple((_number(lead), bool(wrong)) for lead, wrong in data["leads"])
        return RouterModel(arms, langs, grid, str(data["kind"]), int(data["questions"]), leads)
    except ModelError:
        raise
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(f"it is damaged ({error!r}); train it again: appliance router train") from error


def _plain(predictor: Predictor) -> dict[str, Any]:
    if isinstance(predictor, Blend):
        return {"kind": "blend", "members": [_plain(member) for member in predictor.members]}
    return {"kind": "linear" if isinstance(predictor, Linear) else "trees", **asdict(predictor)}


def _arm(data: Mapping[str, Any]) -> ArmModel:
    given = data["predictor"]
    predictor = _blend(given) if given["kind"] == "blend" else _single(given)
    return ArmModel(predictor, *(_number(data[name]) for name in ("offset", "slope", "low", "high")))


def _blend(data: Mapping[str, Any]) -> Blend:
    members = tuple(_single(member) for member in data["members"])
    if not members:
        raise ModelError("a blend is of nothing")
    return Blend(members)


def _single(data: Mapping[str, Any]) -> Linear | Trees:
    return _linear(data) if data["kind"] == "linear" else _trees(data)


def _linear(data: Mapping[str, Any]) -> Linear:
    model = Linear(_number(data["intercept"]), *(_numbers(data[name]) for name in ("center", "scale", "weight")))
    if not len(model.center) == len(model.scale) == len(model.weight) == len(NAMES) or 0 in model.scale:
        raise ModelError("a linear model does not have one weight for each feature")
    return model


def _trees(data: Mapping[str, Any]) -> Trees:
    trees = []
    for each in data["trees"]:
        feature, left, right = (tuple(map(int, each[name])) for name in ("feature", "left", "right"))
        tree = Tree(feature, _numbers(each["threshold"]), left, right, _numbers(each["value"]))
        nodes = len(feature)
        whole = nodes and all(len(column) == nodes for column in (tree.threshold, left, right, tree.value))
        # Children come after their parent, so every path ends.
        if not whole or not all(
            f == -1 or (0 <= f < len(NAMES) and node < left[node] < nodes and node < right[node] < nodes) for node, f in enumerate(feature)
        ):
            raise ModelError("a tree is not whole")
        trees.append(tree)
    return Trees(_number(data["base"]), tuple(trees))


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(map(_number, values))


def _number(value: Any) -> float:
    found = float(value)
    if not math.isfinite(found):
        raise ModelError("it holds a number that is not finite")
    return found
