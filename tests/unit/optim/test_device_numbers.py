"""Numbers that optimizers keep on a device are the same numbers, and hardly ever waited for.

Those on the CPU stand for them here.
"""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import inrun
from inrun.optim import _device_numbers, moves, rule_for
from inrun.optim._device_numbers import DeviceNumbers
from tests.settings import flat


class Waits(TorchDispatchMode):
    """Counts how often a number is asked for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def elsewhere(monkeypatch):
    """Takes numbers on the CPU for such on a device from now on, and lists what is fetched."""
    fetches, fetch = [], _device_numbers._fetched

    def fetched(held):
        found = fetch(held)
        fetches.append(found)
        return found

    def take():
        monkeypatch.setattr(_device_numbers, "_on_device", lambda t: True)
        monkeypatch.setattr(_device_numbers, "_fetched", fetched)
        return fetches

    return take


def built(kind, **options):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(4, dtype=torch.float64)) for _ in range(5)]
    params.append(nn.Parameter(torch.randn((), dtype=torch.float64)))
    optimizer = kind([{"params": params[:3]}, {"params": params[3:], "lr": 0.5}], **options)
    return params, optimizer


def step(params, optimizer, number=0):
    for p in params:
        p.grad = p.detach() * (number + 1)
    optimizer.step()


NUMBERED = [
    (torch.optim.AdamW, {"lr": torch.tensor(0.01, dtype=torch.float64), "foreach": False}),
    (torch.optim.AdamW, {"lr": torch.tensor(0.01), "foreach": False, "weight_decay": 0.1}),
    (torch.optim.AdamW, {"fused": True, "amsgrad": True}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.ASGD, {"t0": 1.0}),
    (torch.optim.Adagrad, {"fused": True}),
    (torch.optim.Adadelta, {}),
    (torch.optim.RMSprop, {}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
]


@pytest.mark.parametrize(("kind", "options"), NUMBERED, ids=lambda x: getattr(x, "__name__", ""))
def test_moves_are_the_same_and_nothing_is_read_one_by_one(kind, options, elsewhere):
    params, optimizer = built(kind, **options)
    rule = rule_for(optimizer)
    for number in range(3):
        step(params, optimizer, number)
    with Waits() as one_by_one:
        want = [move for _, move in moves(optimizer, rule)]
    elsewhere()
    with Waits() as together:
        found = [move for _, move in moves(optimizer, rule, DeviceNumbers(optimizer).now())]
    assert bool(one_by_one.count) == (kind is not torch.optim.SGD)
    assert not together.count
    for a, b in zip(found, want, strict=True):
        assert a.setting == b.setting
        for x, y in zip(a.state, b.state, strict=True):
            assert x.equal(y) if isinstance(x, torch.Tensor) else x == y
        assert a.displacement(a.gradient).equal(b.displacement(b.gradient))


def counted(numbers, optimizer):
    """What is known of each parameter's counter, which must be so."""
    known = numbers.now()
    states = [state["step"] for state in optimizer.state.values()]
    assert [known[t] for t in states] == [float(t) for t in states]
    return known


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_steps_are_counted_without_asking(options, elsewhere):
    fetches = elsewhere()
    params, optimizer = built(torch.optim.AdamW, **options)
    numbers = DeviceNumbers(optimizer)
    assert counted(numbers, optimizer) == {}
    for number in range(6):
        step(params if number != 3 else params[:2], optimizer, number)
        numbers.stepped()
        counted(numbers, optimizer)
        counted(numbers, optimizer)
        optimizer.zero_grad()
    assert len(fetches) == 1  # after the first step, which makes them


def unseen_step(params, optimizer):
    step(params, optimizer)


def edited(params, optimizer):
    optimizer.state[params[1]]["step"].fill_(40)


def loaded(params, optimizer):
    state = optimizer.state_dict()
    for one in state["state"].values():
        one["step"] = torch.tensor(7.0)
    optimizer.load_state_dict(state)


def taken_back(params, optimizer):
    """As a fused step does where a scaler finds infinity."""
    for p in params:
        optimizer.state[p]["step"].sub_(1)


@pytest.mark.parametrize("change", [unseen_step, edited, loaded, taken_back])
@pytest.mark.parametrize("within", [False, True], ids=["between steps", "in a step"])
def test_whatever_else_becomes_of_a_counter_is_seen(change, within, elsewhere):
    fetches = elsewhere()
    params, optimizer = built(torch.optim.AdamW, fused=True)
    numbers = DeviceNumbers(optimizer)
    for number in range(2):
        step(params, optimizer, number)
        numbers.stepped()
        counted(numbers, optimizer)
    before = len(fetches)
    if within:
        step(params, optimizer)
    change(params, optimizer)
    if within:
        numbers.stepped()
    counted(numbers, optimizer)
    assert len(fetches) == before + 1


def test_a_learning_rate_that_is_written_to_is_seen(elsewhere):
    fetches = elsewhere()
    rate = torch.tensor(0.5, dtype=torch.float64)
    _, optimizer = built(torch.optim.AdamW, lr=rate, foreach=False)
    numbers = DeviceNumbers(optimizer)
    assert numbers.now()[rate] == numbers.now()[rate] == 0.5
    rate.fill_(0.25)
    numbers.stepped()
    assert numbers.now()[rate] == numbers.now()[rate] == 0.25
    assert len(fetches) == 2


def test_a_rule_of_one_s_own_is_given_its_state_as_it_is(elsewhere):
    elsewhere()
    seen = []

    class Own(torch.optim.SGD):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                self.state[p]["step"] = torch.ones(())
                p.data.sub_(self.param_groups[0]["lr"] * p.grad)

    def rule(gradient, weight, state, group):
        seen.extend(type(t) for t in state.values())
        return group["lr"] * gradient

    inrun.optim.register(Own, rule)
    p = nn.Parameter(torch.ones(3))
    together = inrun.optim.Together(Own([p], lr=0.1))
    for _ in range(2):
        p.grad = torch.ones(3)
        for _, _, move in together.moves():
            move.displacement(move.gradient)
        together.members[0].step()
        together.stepped(0)
    assert seen == [torch.Tensor]


@pytest.mark.parametrize(
    "options", [{"capture": "hold"}, {"capture": "stream"}, {"every": 2}], ids=str
)
def test_after_two_steps_a_run_asks_for_nothing(options, elsewhere):
    def steps():
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(4)))
        x, y = torch.randn(40, 5), torch.randn(40, 5)
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-2), fused=True)

        def loss_fn(model, batch):
            return nn.functional.mse_loss(model(batch[0]), batch[1])

        utility = inrun.Utility(loss_fn, (x[32:], y[32:]))
        attribution = inrun.attach(
            model, optimizer, utility, **flat(progress=False, smoothed_steps=0, **options)
        )
        for ids in torch.arange(32).split(4):
            with attribution.batch(ids):
                loss_fn(model, (x[ids], y[ids])).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield attribution

    want = list(steps())[-1].values()
    fetches = elsewhere()
    run = steps()
    first = [next(run) for _ in range(2)]
    so_far = len(fetches)
    last = [*first, *run][-1]
    assert last.values().equals(want)
    assert 0 < so_far == len(fetches)
