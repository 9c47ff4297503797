"""The adapters of one layer, for any mix of rows."""

from __future__ import annotations

import random

import pytest
import torch

from appliance.engines.layers import Rows, ServedLinear
from appliance.engines.low_rank import planned

INPUTS, OUTPUTS = 12, 20
RANKS = {"a": 4, "b": 2, "c": 7, "d": 1, "e": 4, "f": 3, "g": 5, "h": 2}


def layer(rows: Rows, names: list[str]) -> tuple[ServedLinear, dict[str | None, torch.Tensor]]:
    """A layer with these adapters, and the weights that rows of each have in all."""
    torch.manual_seed(1)
    weight = torch.randn(OUTPUTS, INPUTS)
    served = ServedLinear(weight, torch.zeros(OUTPUTS), "float32", rows)
    right: dict[str | None, torch.Tensor] = {None: weight}
    for name in names:
        down, up = torch.randn(RANKS[name], INPUTS), torch.randn(OUTPUTS, RANKS[name])
        served.add(name, down, up, None)
        right[name] = weight + up @ down
    return served, right


def check(served: ServedLinear, right: dict[str | None, torch.Tensor], rows: Rows, has: list[str | None], positions: int = 1) -> None:
    rows.set(has)
    x = torch.randn(len(has), positions, INPUTS)
    with torch.inference_mode():
        made = served(x)
    for row, name in enumerate(has):
        assert torch.allclose(made[row], x[row] @ right.get(name, right[None]).t(), atol=1e-4), (has, row)


@pytest.mark.parametrize("positions", [1, 3])
def test_each_row_has_what_its_adapter_adds(positions: int) -> None:
    rows = Rows()
    served, right = layer(rows, list(RANKS))
    fixed: list[list[str | None]] = [[None], ["a"], ["h"] * 5, list(RANKS), list(RANKS)[::-1], ["a", "h"], [None, "h", None, "a", "a"]]
    chance = random.Random(4)
    drawn = [[chance.choice([None, *RANKS]) for _ in range(chance.randint(1, 9))] for _ in range(60)]
    for has in [*fixed, *drawn, ["not in this layer", "c"]]:
        check(served, right, rows, has, positions)


def test_what_stays_after_others_go_is_right() -> None:
    rows = Rows()
    served, right = layer(rows, ["a", "c", "d"])
    assert torch.allclose(served.difference("c"), right["c"] - right[None], atol=1e-4)
    served.remove("c")
    served.remove("never there")
    rows.set([])
    assert served.difference("c") is None
    del right["c"]
    check(served, right, rows, ["d", None, "a", "c"])
    for name in ("a", "d"):
        served.remove(name)
    rows.set([])
    check(served, {None: right[None]}, rows, ["a", None])


def test_rows_without_the_merged_adapter_do_not_have_it() -> None:
    rows = Rows()
    served, right = layer(rows, ["a", "b", "c"])
    served.set_weight(right["b"])
    rows.merge("b")
    for has in (["b"], ["b", "b"], [None], ["a"], ["b", None, "a", "c", "b"], ["a", "c"]):
        check(served, right, rows, list(has), 2)


def test_a_row_that_overflows_spoils_no_other() -> None:
    rows = Rows()
    served, right = layer(rows, list(RANKS))
    has = ["a", "a", "b", None, "h"]
    rows.set(has)
    x = torch.randn(len(has), 1, INPUTS)
    x[0] = torch.inf
    with torch.inference_mode():
        made = served(x)
    assert not made[0].isfinite().any()
    for row in range(1, len(has)):
        assert torch.allclose(made[row], x[row] @ right[has[row]].t(), atol=1e-4)


def test_no_place_is_made_for_adapters_far_from_the_used_ones() -> None:
    near, far = planned([0, 2, 1]), planned([0, 7])
    assert near is not None and near.used == slice(0, 3)
    # Read in place those between would cost more than a copy of the two.
    assert far is not None and far.adapters == 2 and far.used.tolist() == [0, 7]
    alike = planned([3, 3, 3])
    assert alike is not None and alike.used == slice(3, 4) and alike.rows is None and alike.shares is None
    assert planned([None, None]) is None
