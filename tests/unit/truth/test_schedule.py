"""An audit's steps: random, spread, within the time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inrun.errors import MisuseError
from inrun.truth._schedule import AuditSchedule


def checked(schedule, steps, cost):
    found = []
    for step in range(1, steps + 1):
        if schedule.wants(step):
            found.append(step)
            schedule.done(step, cost)
    return found


@given(st.integers(1, 3000), st.floats(0.01, 5), st.floats(0.5, 100), st.integers(0, 20))
def test_time_is_kept_to_within_one_check(steps, cost, seconds, seed):
    schedule = AuditSchedule(seconds, steps, 1, seed)
    found = checked(schedule, steps, cost)
    assert len(found) * cost <= seconds + cost
    assert found == sorted(set(found))


@given(st.integers(0, 50))
def test_checks_use_the_time_and_cover_the_run(seed):
    found = checked(AuditSchedule(20.0, 1000, 1, seed), 1000, 1.0)
    assert 12 <= len(found) <= 20
    assert max(found) > 700
    assert all(sum(a < step <= a + 250 for step in found) >= 2 for a in (0, 250, 500, 750))


def test_every_step_can_be_drawn():
    first = {checked(AuditSchedule(5.0, 40, 1, seed), 40, 1.0)[0] for seed in range(60)}
    assert first == {1, 2, 3, 4}


def test_a_run_that_goes_on_is_still_checked():
    found = checked(AuditSchedule(100.0, 10, 1, 0), 40, 1.0)
    assert found == list(range(1, 41))


def test_it_begins_where_it_was_asked_for():
    assert checked(AuditSchedule(3.0, 10, 21, 0), 40, 1.0)[0] > 20


def test_no_time_is_refused():
    with pytest.raises(MisuseError, match="seconds=0"):
        AuditSchedule(0, 10, 1, 0)
