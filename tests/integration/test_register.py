"""Optimizers of one's own and of other packages: found, compared with their step, scored."""

import numpy as np
import pytest
import pytorch_optimizer
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD
from transformers.optimization import Adafactor

import inrun
from inrun.errors import InvariantError, MisuseError, NotSupportedError
from inrun.optim import moves, register, rule_for
from tests.settings import flat
from tests.unit.optim import published_muon
from tests.unit.optim.optimizers import ELEMENTWISE, MATRIX, MUONS, PUBLISHED


class Tamed(torch.optim.Optimizer):
    """Momentum, each element tamed by its own mean size; state is made in the first step."""

    def __init__(self, params, lr=0.05, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "beta": 0.9})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["mean"], state["size"] = torch.zeros_like(p), torch.zeros_like(p)
                state["size"].lerp_(p.grad.abs(), 1 - group["beta"])
                state["mean"].lerp_(p.grad, 1 - group["beta"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * state["mean"] / (1.0 + state["size"]))


def tamed(gradient, weight, state, group):
    keep = group["beta"]
    nothing = torch.zeros_like(weight)
    size = keep * state.get("size", nothing) + (1 - keep) * gradient.abs()
    mean = keep * state.get("mean", nothing) + (1 - keep) * gradient
    return group["lr"] * (mean / (1.0 + size)) + group["lr"] * group["weight_decay"] * weight


class Normed(SGD):
    """SGD whose step has length lr in each parameter: its elements depend on each other."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad / p.grad.norm())


def normed(gradient, weight, state, group):
    return group["lr"] * gradient / gradient.norm().clamp(min=1e-30)


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr("inrun.optim._reader._REGISTERED", {})


class Loop:
    def __init__(self, optimizer, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.x, self.y = torch.randn(60, 6).double(), torch.randint(3, (60,))
        self.optimizer = optimizer(self.model.parameters())
        utility = inrun.Utility(self.loss, torch.arange(40, 60))
        self.attribution = inrun.attach(
            self.model, self.optimizer, utility, **flat(progress=False, **options)
        )

    def loss(self, model, rows):
        return F.cross_entropy(model(self.x[rows]), self.y[rows])

    def step(self, step=0):
        rows = torch.arange(6) + 6 * step
        with self.attribution.batch(rows):
            self.loss(self.model, rows).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def books(loop):
    row = loop.attribution.ledger().to_pylist()[-1]
    return row, sum(abs(row[k]) for k in ("samples", "momentum", "weight_decay"))


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize(
    ("kind", "rule", "elementwise"), [(Tamed, tamed, True), (Normed, normed, False)]
)
def test_a_registered_optimizer_is_scored_and_its_books_close(kind, rule, elementwise, capture):
    register(kind, rule, elementwise=elementwise)
    loop = Loop(lambda p: kind(p, lr=0.05, weight_decay=0.1), capture=capture)
    for step in range(5):
        loop.step(step)
    row, size = books(loop)
    assert abs(row["residual"]) < (0.02 if capture == "hold" else 0.2) * size
    assert (row["weight_decay"] != 0) == (kind is Tamed)
    assert np.isfinite(loop.attribution.values()["value"].to_numpy()).all()


def test_a_rule_that_is_not_the_step_is_refused_before_it_counts():
    register(Tamed, lambda g, w, state, group: 0.5 * tamed(g, w, state, group))
    loop = Loop(Tamed)
    with pytest.raises(InvariantError, match=r"Tamed is not what the optimizer did to 0\.weight"):
        loop.step()
    assert not len(loop.attribution.values())


def test_a_rule_that_goes_wrong_later_is_found_out():
    def forgetful(gradient, weight, state, group):
        return tamed(gradient, weight, {}, group)  # right in the first step only

    register(Tamed, forgetful)
    loop = Loop(Tamed)
    loop.step(0)
    with pytest.raises(InvariantError, match="Tamed"):
        loop.step(1)


@pytest.mark.parametrize(
    "rule",
    [
        lambda g, w, state, group: group["lr"] * g / g.square().sum().sqrt(),
        lambda g, w, state, group: g * float(g[0]),
        lambda g, w, state, group: torch.where(g > 0, g, 2 * g),
        lambda g, w, state, group: w @ g,
    ],
)
def test_a_rule_that_is_not_elementwise_must_say_so(rule):
    register(Normed, rule)
    loop = Loop(lambda p: Normed(p, lr=0.05))
    with pytest.raises(NotSupportedError, match="elementwise=False"):
        loop.step()


def test_operations_without_a_divided_difference_are_named():
    register(Tamed, lambda g, w, state, group: tamed(g, w, state, group) + 0 * torch.tanh(g))
    with pytest.raises(NotSupportedError, match=r"torch's tanh.*elementwise=False"):
        Loop(Tamed).step()


def test_sign_like_rules_are_smoothed():
    register(Tamed, tamed, sign_like=True)
    loop = Loop(Tamed)
    loop.step()
    assert loop.attribution.ledger()["estimator"].to_pylist() == ["path-smoothed"]


def test_registering_checks_what_it_is_given():
    with pytest.raises(MisuseError, match="not a class"):
        register("Tamed", tamed)
    with pytest.raises(MisuseError, match="must be a function"):
        register(Tamed, 3)
    with pytest.raises(MisuseError, match="SGD has a rule"):
        register(SGD, tamed)


def test_subclasses_go_by_the_nearest_rule_whose_step_they_inherit():
    class Renamed(Tamed):
        pass

    class Louder(Tamed):
        def step(self):
            return super().step()

    p = nn.Parameter(torch.zeros(2))
    register(Tamed, tamed)
    assert rule_for(Renamed([p])) is rule_for(Tamed([p]))
    with pytest.raises(NotSupportedError, match=r"Louder has no update rule.*Tamed"):
        rule_for(Louder([p]))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (torch.optim.LBFGS, "line search"),
        (torch.optim.SparseAdam, "sparse gradients"),
        (pytorch_optimizer.SOAP, "roots of matrices"),
        (pytorch_optimizer.Shampoo, "roots of matrices"),
        (type("AdamW8bit", (SGD,), {"step": lambda self: None}), "8 bits"),
        (type("Own", (SGD,), {"step": lambda self: None}), r"inrun\.optim\.register"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_scored_is_refused_with_the_reason(kind, why):
    with pytest.raises(NotSupportedError, match=why):
        rule_for(kind([nn.Parameter(torch.zeros(2, 2))]))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (pytorch_optimizer.Lion, {"cautious": True}),
        (pytorch_optimizer.Lamb, {"rectify": True}),
        (pytorch_optimizer.Lamb, {"pre_norm": True}),
    ],
)
def test_options_without_a_rule_are_refused(kind, options):
    with pytest.raises(NotSupportedError, match=next(iter(options))):
        rule_for(kind([nn.Parameter(torch.zeros(2))], **options))


def test_a_namesake_that_steps_otherwise_is_found_out():
    class Lion(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.0})

        @torch.no_grad()
        def step(self):
            for p in self.param_groups[0]["params"]:
                p.sub_(0.01 * p.grad)

    with pytest.raises(InvariantError, match="Lion is not what the optimizer did"):
        Loop(Lion).step()


class Muon(torch.optim.Optimizer):
    """Of no package, with arguments that none of the known ones has."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.01, "momentum": 0.9, "rank": 3})

    def step(self):
        pass


@pytest.mark.parametrize(
    "build",
    [Muon, lambda p: pytorch_optimizer.Muon([{"params": p, "use_muon": True}])],
    ids=["own", "package"],
)
def test_a_namesake_without_a_rule_is_named_in_full_and_told_how_to_get_one(build):
    optimizer = build([nn.Parameter(torch.zeros(2, 2))])
    kind = type(optimizer)
    with pytest.raises(NotSupportedError) as raised:
        rule_for(optimizer)
    text = str(raised.value)
    assert text.startswith(f"{kind.__module__}.Muon has no update rule here")
    line = text.splitlines()[-1]
    assert line == "inrun.optim.register(Muon, lambda gradient, weight, state, group: ...)"
    rule = "group['lr'] * gradient"
    exec(line.replace("...", rule), {"inrun": inrun, "Muon": kind})  # the line is code
    assert rule_for(optimizer) is not None


def test_muon_that_is_divided_among_processes_is_refused_with_the_one_that_is_not(monkeypatch):
    optimizer = published_muon.Muon([nn.Parameter(torch.zeros(2, 2))])
    assert rule_for(optimizer) is not None
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(NotSupportedError, match="Use SingleDeviceMuon"):
        rule_for(optimizer)


@pytest.mark.parametrize("axes", [(4, 3, 3, 3), (5, 6, 4)], ids=["kernel", "stack"])
def test_muon_of_kernels_and_of_stacks_of_matrices_is_its_step(axes):
    p = nn.Parameter(torch.randn(axes))
    optimizer = published_muon.SingleDeviceMuon([p], weight_decay=0.1)
    for _ in range(3):
        p.grad = torch.randn(axes)
        ((_, move),) = moves(optimizer, rule_for(optimizer))
        expected = p.detach() - move.displacement(move.gradient)
        pulled = move.slope().transposed(torch.randn(1, *axes))
        assert torch.isfinite(pulled).all()
        optimizer.step()
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-6)


def test_transformers_adafactor_computes_in_single_precision():
    p = nn.Parameter(torch.randn(6, 4, dtype=torch.bfloat16))
    optimizer = Adafactor([p], lr=0.05, relative_step=False, beta1=0.9)
    for _ in range(3):
        p.grad = torch.randn_like(p)
        ((_, move),) = moves(optimizer, rule_for(optimizer))
        expected = p.detach().float() - move.displacement(move.gradient)
        optimizer.step()
        assert torch.equal(p.detach(), expected.bfloat16())


EACH = {case.kind.__module__.split(".")[0] + case.kind.__name__: case
        for case in [*ELEMENTWISE, *MATRIX] if case not in [*MUONS, *PUBLISHED]}  # fmt: skip


@pytest.mark.parametrize("estimator", ["path", "path-given", "tangent", "sgd"])
@pytest.mark.parametrize("name", EACH)
def test_every_optimizer_is_scored_by_every_estimator(name, estimator):
    loop = Loop(lambda p: EACH[name].build(list(p), lr=1e-3), estimator=estimator)
    for step in range(3):
        loop.step(step)
    row, size = books(loop)
    assert np.isfinite(loop.attribution.values()["value"].to_numpy()).all()
    if estimator == "path":
        assert abs(row["residual"]) < 0.03 * size


def test_linearized_is_refused_where_it_is_not_defined():
    with pytest.raises(NotSupportedError, match=r"linearized.*RMSprop"):
        Loop(torch.optim.RMSprop, estimator="linearized")
