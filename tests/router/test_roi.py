"""The return calculation against figures worked by hand."""

import math

import pytest

from router.roi import RoiError, RoiInputs, roi, roi_json

FIGURES = {
    "gpu_hours": 200,
    "gpu_price": 2.5,
    "engineer_months": 3,
    "monthly_salary": 8000,
    "data_volume": 5000,
    "annotation_price": 0.5,
    "automated_tasks": 12_000,
    "task_value": 4,
    "process_speedup": 300,
    "time_value": 20,
}


def test_worked_example():
    # 200 x 2.5 + 3 x 8000 + 5000 x 0.5 = 27,000; 12,000 x 4 + 300 x 20 = 54,000 a year.
    result = roi(RoiInputs.from_mapping(FIGURES))
    assert (result.total_cost, result.annual_benefit) == (27_000, 54_000)
    assert result.roi_percentage == pytest.approx(100)
    assert result.payback_months == pytest.approx(6)
    assert result.notes == ()
    assert roi_json(result)["payback_months"] == pytest.approx(6)


def test_a_loss_is_negative_and_said():
    result = roi(RoiInputs(**(FIGURES | {"automated_tasks": 1000, "process_speedup": 0})))
    assert result.roi_percentage == pytest.approx((4000 - 27_000) / 27_000 * 100)
    assert result.payback_months == pytest.approx(81)
    assert "not paid back within the first year" in result.notes[0]


def test_no_benefit_never_pays_back():
    result = roi(RoiInputs(**(FIGURES | {"task_value": 0, "time_value": 0})))
    assert result.roi_percentage == -100
    assert result.payback_months is None
    assert "never paid back" in result.notes[0]


def test_running_is_taken_off_the_benefit():
    result = roi(RoiInputs.from_mapping(FIGURES | {"running_cost": 13_500}))
    # 54,000 - 13,500 = 40,500 a year.
    assert (result.annual_benefit, result.payback_months) == (40_500, pytest.approx(8))
    loss = roi(RoiInputs.from_mapping(FIGURES | {"running_cost": 60_000}))
    assert loss.annual_benefit == -6000 and loss.payback_months is None and "below zero" in loss.notes[0]


def test_no_cost_is_refused():
    with pytest.raises(RoiError, match=r"total_cost.*undefined"):
        roi(RoiInputs(**(FIGURES | {"gpu_hours": 0, "engineer_months": 0, "data_volume": 0})))


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, -math.inf, "8000", None, True])
@pytest.mark.parametrize("field", list(FIGURES))
def test_impossible_figures_name_the_field(field, value):
    with pytest.raises(RoiError, match=field):
        RoiInputs.from_mapping(FIGURES | {field: value})


def test_missing_and_unknown_figures_are_named():
    with pytest.raises(RoiError, match="gpu_price, time_value: missing"):
        RoiInputs.from_mapping({name: value for name, value in FIGURES.items() if name not in ("gpu_price", "time_value")})
    with pytest.raises(RoiError, match="gpu_cost: no such figure"):
        RoiInputs.from_mapping(FIGURES | {"gpu_cost": 1})


@pytest.mark.parametrize(
    "change", [{"gpu_hours": 1e300, "gpu_price": 1e300}, {"task_value": 1e308}, {"task_value": 5e-324, "time_value": 0}]
)
def test_sums_beyond_computing_are_refused(change):
    with pytest.raises(RoiError, match="units"):
        roi(RoiInputs(**(FIGURES | change)))
