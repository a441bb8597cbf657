"""Which states are kept: never more than fit, always enough, whatever the length."""

from hypothesis import given
from hypothesis import strategies as st

from inrun.replay._snapshot import Schedule, interval_for, stops


@given(st.integers(1, 500), st.integers(2, 60), st.booleans())
def test_kept_states_fit_the_budget(steps, capacity, known):
    schedule, kept = Schedule(capacity, steps if known else None), []
    for state in range(steps):
        if schedule.due(state):
            kept.append(state)
            for gone in schedule.keep(state):
                kept.remove(gone)
            assert len(kept) < capacity  # room for the last one
    assert kept == schedule.kept
    assert kept[0] == 0
    assert all(state % schedule.interval == 0 for state in kept)
    gaps = [b - a for a, b in zip([*kept, steps][:-1], [*kept, steps][1:], strict=True)]
    assert max(gaps) <= schedule.interval


@given(st.integers(1, 10**6), st.integers(2, 10**4))
def test_interval_is_the_shortest_that_pays(steps, capacity):
    interval = interval_for(steps, capacity)
    assert -(-steps // interval) + 1 <= capacity
    if interval > 1:
        assert steps + 1 > capacity
        assert interval >= min(int(steps**0.5), -(-steps // (capacity - 1)))


@given(st.integers(0, 50), st.integers(1, 300), st.integers(2, 20))
def test_stops_are_few_and_start_at_the_first(first, length, copies):
    held = stops(first, first + length, copies)
    assert held[0] == first
    assert len(held) <= copies
    assert held[-1] < first + length
