"""Large shares are compared in turn, small ones always; what is wrong is found in a few steps."""

import pytest
import torch
from torch import nn

import inrun
from inrun.capture import _block_sums
from inrun.capture._block_sums import FIRST_STEPS, PHASES, CheckSchedule
from inrun.errors import InvariantError

SMALL, BIG = 40, 81  # numbers that factors hold


@pytest.fixture(autouse=True)
def _low_bar(monkeypatch):
    monkeypatch.setattr(_block_sums, "LARGE", 80)


def asked(schedule, names):
    found = {name for name, size in names.items() if schedule.asks(name, size)}
    schedule.next_step(1)
    return found


@pytest.mark.parametrize("large", [1, 2, 5, 9])
def test_after_the_first_steps_each_has_its_turn(large):
    schedule, names = (
        CheckSchedule(always=False),
        {f"p{k}": BIG for k in range(large)} | {"bias": SMALL},
    )
    for _ in range(FIRST_STEPS):
        assert asked(schedule, names) == set(names)
    rounds = [asked(schedule, names) for _ in range(3 * PHASES)]
    assert all("bias" in r and len(r) > 1 for r in rounds)
    phases = min(PHASES, large)
    for begin in range(0, len(rounds) - phases, phases):
        assert set().union(*rounds[begin : begin + phases]) == set(names)
        assert sum(len(r) - 1 for r in rounds[begin : begin + phases]) == large


def test_all_blocks_of_a_step_are_answered_alike():
    schedule = CheckSchedule(always=False)
    for _ in range(FIRST_STEPS + 1):
        asked(schedule, {"a": BIG, "b": BIG})
    for step in range(5):
        names = ("a", "b", f"new in step {step}")
        first = [schedule.asks(name, BIG) for name in names]
        assert first[2]
        # a block of few samples holds little, and is a part of the same sum
        assert [schedule.asks(name, SMALL) for name in names] == first
        schedule.next_step(1)


def test_where_blocks_accumulate_all_are_compared():
    schedule, names = CheckSchedule(always=False), {f"p{k}": BIG for k in range(5)}
    for _ in range(FIRST_STEPS + 3):
        asked(schedule, names)
    assert asked(schedule, names) != set(names)
    schedule.next_step(2)
    assert asked(schedule, names) == set(names)
    assert asked(schedule, names) != set(names)


def test_steps_that_are_not_scored_are_no_turn(monkeypatch):
    compared = []
    asks = CheckSchedule.asks

    def noting(self, name, size):
        found = asks(self, name, size)
        compared.extend([name] if found else [])
        return found

    _, attribution, step = trained()
    for _ in range(FIRST_STEPS):
        step()
    monkeypatch.setattr(CheckSchedule, "asks", noting)
    for _ in range(PHASES):
        step()
        with attribution.paused():
            step()
    assert set(WEIGHTS) <= set(compared)


def test_several_processes_compare_everything_always():
    schedule, names = CheckSchedule(always=True), {"a": BIG, "b": BIG}
    assert all(asked(schedule, names) == {"a", "b"} for _ in range(FIRST_STEPS + 9))


WEIGHTS = [f"{k}.weight" for k in (0, 2, 4, 6, 8)]


def trained(accumulate=1):
    torch.manual_seed(0)
    layers = [layer for _ in range(5) for layer in (nn.Linear(6, 6), nn.Tanh())]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = torch.randn(12, 6)
    utility = inrun.Utility(lambda m, b: m(b).square().mean(), x)
    attribution = inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))

    def step():
        for part in torch.randn(12, 6).chunk(accumulate):
            with attribution.batch(range(len(part))):
                model(part).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, attribution, step


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_gradient_that_is_changed_later_on_is_found(name, accumulate):
    model, attribution, step = trained(accumulate)
    for _ in range(FIRST_STEPS + 3):
        step()
    handle = model.get_parameter(name).register_hook(lambda g: 1.5 * g)
    with pytest.raises(InvariantError, match=name):
        for _ in range(2 * PHASES):  # along a random direction a step's difference may be small
            step()
    handle.remove()


def test_what_is_not_compared_in_a_step_is_covered_all_the_same(recwarn):
    _, attribution, step = trained()
    for _ in range(FIRST_STEPS + 2 * PHASES):
        step()
        assert set(attribution.coverage()["status"].to_pylist()) == {"captured"}
    assert not [w for w in recwarn if issubclass(w.category, inrun.errors.InRunWarning)]
