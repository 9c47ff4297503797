"""How many threads the local engine takes: from what steps take, whatever the machine does."""

from __future__ import annotations

import pytest

from appliance.engines.team import Team, asleep, stay_awake


class Machine:
    """Steps of 10 ms on one thread; `many` says what a step takes on two, by the clock."""

    def __init__(self, many: float) -> None:
        self.now, self.many = 0.0, many
        self.team = Team(1, 2, lambda: self.now)
        self.steps: list[int] = []

    def run(self, steps: int, shape: int | None = 1) -> list[int]:
        """The numbers of threads that so many steps of this shape were given."""
        begun = len(self.steps)
        for _ in range(steps):
            threads = self.team.threads(shape)
            seconds = 0.01 if threads == 1 else self.many
            self.now += seconds
            self.steps.append(threads)
            if shape is not None:
                self.team.took(shape, seconds)
        return self.steps[begun:]


def test_every_core_is_used_where_that_is_faster() -> None:
    machine = Machine(many=0.006)
    assert machine.run(10) == [1, 2] * 5
    assert set(machine.run(100)) == {2}


@pytest.mark.parametrize("many", [0.0098, 0.01, 0.05])
def test_one_core_is_left_alone_where_it_brings_little(many: float) -> None:
    machine = Machine(many)
    machine.run(10)
    assert set(machine.run(100)) == {1}


def test_a_machine_that_becomes_busy_is_noticed_within_seconds_and_so_is_one_that_becomes_idle() -> None:
    machine = Machine(many=0.006)
    machine.run(100)
    machine.many = 0.05
    busy = machine.now
    while machine.run(1) == [2] or machine.now < busy + 4:
        assert machine.now < busy + 5
    assert machine.run(100).count(2) == 0
    machine.many = 0.006
    idle = machine.now
    while set(machine.run(20)) != {2}:
        assert machine.now < idle + 50


def test_trials_that_bring_nothing_become_rare() -> None:
    """Of ten minutes on a busy machine, where a step on both cores takes five times as long, fewer than one second in a hundred."""
    machine = Machine(many=0.05)
    while machine.now < 600:
        machine.run(1)
    assert machine.steps.count(2) * 0.05 < 6


def test_a_trial_compares_steps_that_do_the_same_work() -> None:
    """A pair of steps with the same rows is enough; prompts are never part of one."""
    machine = Machine(many=0.006)
    for rows in range(1, 5):
        assert [*machine.run(1, shape=9), *machine.run(2, shape=rows), *machine.run(1, shape=None)] == [1, 1, 2, 1]
    machine.run(2)
    assert machine.run(1, shape=None) == [2]


def test_a_given_number_is_kept() -> None:
    team = Team(3, 3)
    for _ in range(20):
        assert team.threads(1) == 3
        team.took(1, 0.01)


def test_what_waits_awake_is_a_default_of_the_environment_and_not_for_other_work() -> None:
    environ: dict[str, str] = {"PATH": "/bin"}
    stay_awake(environ)
    assert int(environ["GOMP_SPINCOUNT"]) > 0 and asleep(environ) == {"PATH": "/bin"}
    own = {"GOMP_SPINCOUNT": "5"}
    stay_awake(own)
    assert own == {"GOMP_SPINCOUNT": "5"}
