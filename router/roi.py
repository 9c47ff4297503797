"""The return on building a question-answering system, in the currency of the inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields


class RoiError(ValueError):
    """Impossible figures; the message names the field and what is expected."""


@dataclass(frozen=True, slots=True)
class RoiInputs:
    """Costs are for the whole project, benefits for one year.

    `gpu_hours` at `gpu_price` an hour; `engineer_months` at `monthly_salary`; `data_volume` examples at
    `annotation_price` each; `automated_tasks` a year worth `task_value` each; `process_speedup` hours saved a year
    worth `time_value` each, less `running_cost` a year, 0 where it is not given. All are finite and not negative, else RoiError.
    """

    gpu_hours: float
    gpu_price: float
    engineer_months: float
    monthly_salary: float
    data_volume: float
    annotation_price: float
    automated_tasks: float
    task_value: float
    process_speedup: float
    time_value: float
    running_cost: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise RoiError(f"{field.name}: {value!r} is not a number; give a number that is zero or more")
            if not math.isfinite(value) or value < 0:
                raise RoiError(f"{field.name}: {value} is impossible; give a finite number that is zero or more")

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> RoiInputs:
        """Read the figures of a `[roi]` table. Raises RoiError on missing, unknown or impossible ones."""
        known = [field.name for field in fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            raise RoiError(f"{', '.join(unknown)}: no such figure; known: {', '.join(known)}")
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        missing = [name for name in needed if name not in values]
        if missing:
            raise RoiError(f"{', '.join(missing)}: missing; the return needs all of {', '.join(needed)} (0 where there is none)")
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Roi:
    """`roi_percentage` is of the first year; `annual_benefit` is what remains of it after a year's running; `payback_months` is None when
    that is not above zero; `notes` say what is special."""

    roi_percentage: float
    payback_months: float | None
    total_cost: float
    annual_benefit: float
    notes: tuple[str, ...] = ()


def roi(inputs: RoiInputs) -> Roi:
    """Return on investment of the first year, (benefit - cost) / cost, and months until the benefit has paid the cost.

    Raises RoiError when the cost is zero (the return is undefined) or a sum is too large to compute.
    """
    cost = (
        inputs.gpu_hours * inputs.gpu_price + inputs.engineer_months * inputs.monthly_salary + inputs.data_volume * inputs.annotation_price
    )
    benefit = inputs.automated_tasks * inputs.task_value + inputs.process_speedup * inputs.time_value - inputs.running_cost
    if cost == 0:
        raise RoiError(
            "total_cost: gpu_hours x gpu_price + engineer_months x monthly_salary + data_volume x annotation_price is zero, "
            "so the return is undefined; give at least one cost"
        )
    percentage = (benefit - cost) / cost * 100
    if not all(map(math.isfinite, (cost, benefit, percentage))):
        raise RoiError("the figures multiply to more than can be computed; check the units of each pair")
    if benefit <= 0:
        return Roi(
            percentage, None, cost, benefit, (f"the annual benefit is {'below ' if benefit else ''}zero: the cost is never paid back",)
        )
    payback = cost / (benefit / 12)
    if not math.isfinite(payback):
        raise RoiError("the annual benefit is too small beside the cost to compute a payback; check the units of each pair")
    notes = ("the cost is not paid back within the first year",) if payback > 12 else ()
    return Roi(percentage, payback, cost, benefit, notes)


def roi_json(value: Roi) -> dict[str, object]:
    """The `roi` object of `advise --json`."""
    return {
        "roi_percentage": value.roi_percentage,
        "payback_months": value.payback_months,
        "total_cost": value.total_cost,
        "annual_benefit": value.annual_benefit,
        "notes": list(value.notes),
    }
