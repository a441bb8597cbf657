"""Every rule at the edge of its arguments: finite wherever the real step is, and the real step."""

import inspect

import lion_pytorch
import pytest
import pytorch_optimizer
import schedulefree
import torch
from torch import optim
from transformers.optimization import Adafactor

from inrun.directions import PathSmoothed
from inrun.optim import Along, Move, derivative_of, moves, rule_for
from inrun.optim._adam_variants import BitsAndBytesRule, RoundedAdamRule, TorchAORule
from inrun.optim._moments import MomentsRule
from inrun.optim._muon import AuxAdamRule
from inrun.optim._outside import WrittenElementwise, WrittenMatrix
from inrun.optim._rule import Rule
from tests.unit.optim.adam_moves import settles, terms
from tests.unit.optim.optimizers import MUONS, grid
from tests.unit.optim.published_muon import SingleDeviceMuon, SingleDeviceMuonWithAuxAdam

EPS = (0.0, 1e-30)
EDGES = [
    *grid(optim.Adam, betas=((0.9, 0.999), (0.0, 0.999), (0.9, 0.0), (0.0, 0.0)), eps=(*EPS, 1e-8),
          weight_decay=(0.0, 1e4), amsgrad=(False, True)),
    *grid(optim.AdamW, betas=((0.9, 0.999), (0.9, 0.0), (0.0, 0.0)), eps=(*EPS, 1e-8),
          weight_decay=(0.0, 0.1, 100.0, 1e4), amsgrad=(False, True), maximize=(False, True)),
    *grid(optim.Adamax, betas=((0.9, 0.999), (0.0, 0.0)), eps=EPS, weight_decay=(0.0, 1e4)),
    *grid(optim.NAdam, betas=((0.9, 0.999), (0.0, 0.0)), eps=EPS, weight_decay=(0.0, 1e4),
          decoupled_weight_decay=(False, True)),
    *grid(optim.RAdam, betas=((0.9, 0.999), (0.0, 0.0), (0.9, 0.9)), eps=EPS,
          weight_decay=(0.0, 1e4)),
    *grid(optim.Adadelta, rho=(0.9, 0.0), eps=(0.0, 1e-30, 1e-6), weight_decay=(0.0, 1e4)),
    *grid(optim.Adagrad, eps=EPS, weight_decay=(0.0, 1e4)),
    *grid(optim.RMSprop, alpha=(0.99, 0.0), eps=(*EPS, 1e-8), momentum=(0.0, 0.9),
          weight_decay=(0.0, 1e4)),
    *grid(optim.RMSprop, alpha=(0.99,), eps=EPS, momentum=(0.0, 0.9), centered=(True,)),
    *grid(optim.SGD, momentum=(0.0, 1.0), dampening=(0.0, 1.0), weight_decay=(0.0, 1e4)),
    *grid(optim.ASGD, lambd=(0.0, 10.0), alpha=(0.0, 0.75)),
    *grid(schedulefree.AdamWScheduleFree, betas=((0.9, 0.999), (0.0, 0.999), (0.9, 0.0)),
          eps=(*EPS, 1e-8), weight_decay=(0.0, 1e4), warmup_steps=(0, 3), foreach=(False,)),
]  # fmt: skip
SIGNS = [
    *grid(optim.Rprop, etas=((0.5, 1.2),), step_sizes=((0.0, 50.0),)),
    *grid(lion_pytorch.Lion, betas=((0.9, 0.99), (0.0, 0.99), (0.9, 0.0), (0.0, 0.0)),
          weight_decay=(0.0, 1e4), decoupled_weight_decay=(False, True)),
    *grid(pytorch_optimizer.Lion, betas=((0.9, 0.99), (0.0, 0.0)), weight_decay=(0.0, 1e4),
          weight_decouple=(False, True), fixed_decay=(False, True), maximize=(False, True)),
]  # fmt: skip
EDGES += SIGNS
MIXED = [
    *grid(optim.Adafactor, eps=((None, 0.0), (0.0, 0.0), (None, 1e-3)), beta2_decay=(-0.8, 0.0),
          weight_decay=(0.0, 1e4), maximize=(False, True)),
    *grid(pytorch_optimizer.Lamb, betas=((0.9, 0.999), (0.0, 0.999), (0.9, 0.0), (0.0, 0.0)),
          eps=(*EPS, 1e-6), weight_decay=(0.0, 1e4), adam=(False, True)),
    *[case._replace(options={**case.options, "eps": eps, "weight_decay": decay})
      for case in MUONS[::4] for eps in (*EPS, 1e-7) for decay in (0.0, 1e4)],
    *grid(SingleDeviceMuon, momentum=(0.0, 0.95), weight_decay=(0.0, 1e4)),
    *grid(SingleDeviceMuonWithAuxAdam, weight_decay=(0.1,)),
    *grid(Adafactor, relative_step=(False,), beta1=(None, 0.9), weight_decay=(0.0, 1e4)),
    *grid(Adafactor, lr=(None,), eps=((1e-30, 0.0),), warmup_init=(False, True)),
]  # fmt: skip


def touched(step, dtype, silent):
    """Rows that nothing touches, that are touched once, that stay; a row of small gradients.

    In `silent` steps all are 0.
    """
    torch.manual_seed(step)
    if step in silent:
        return torch.zeros(6, 4, dtype=dtype)
    g = torch.randn(6, 4, dtype=dtype)
    g[0] = 0.0
    g[1] = g[1] if step == 0 else 0.0
    g[2] = g[2] if step == 2 else 0.0
    g[3] *= 1e-18
    return g


def play(case, rate, dtype=torch.float64, steps=4, silent=(), start=1.0):
    """(real displacement, move, the parameter) step by step, as the optimizer goes."""
    torch.manual_seed(0)
    start = start * torch.randn(6, 4, dtype=dtype)
    start[4, 0] = 0.0
    p = torch.nn.Parameter(start)
    optimizer = case.build([p], lr=rate)
    rule = rule_for(optimizer)
    for step in range(steps):
        p.grad = touched(step, dtype, silent)
        ((_, move),) = moves(optimizer, rule)
        frozen, before = move.frozen(), p.detach().clone()
        optimizer.step()
        yield before - p.detach(), frozen, p
        with torch.no_grad():  # a weight that is no number is the optimizer's own doing
            p.copy_(torch.where(torch.isfinite(p) & (p.abs() < 1e6), p, torch.ones_like(p)))


def worst(found, expected, where, size):
    """The largest difference in units of the sizes that it is made of."""
    return float(((found - expected).abs() / (size + 1.0))[where].max()) if where.any() else 0.0


def parts_of(move):
    """History in two parts and slope and tangent, each of the weight's shape."""
    nothing = torch.zeros_like(move.weight)
    slopes = move.slope().coefficient, move.tangent().coefficient
    return [torch.as_tensor(t) + nothing for t in (*move.history(), *slopes)]


@pytest.mark.parametrize(("rate", "silent"), [(0.01, ()), (0.0, ()), (0.01, (0, 3))])
@pytest.mark.parametrize("case", EDGES, ids=str)
def test_elementwise_rules_are_finite_and_right_at_the_edge(case, rate, silent):
    if not rate and case.kind is lion_pytorch.Lion:
        return  # it takes no rate of 0
    for real, move, _ in play(case, rate, silent=silent):
        sound = torch.isfinite(real)
        told = move.displacement(move.gradient)
        assert worst(told, real, sound, real.abs() + move.weight.abs()) < 1e-12
        momentum, decay, slope, tangent = parts_of(move)
        for part in (momentum, decay, slope, tangent):
            assert torch.isfinite(part).all()
        along = slope * move.gradient
        sizes = along.abs() + momentum.abs() + decay.abs()
        assert worst(along + momentum + decay, told, sound, sizes) < 1e-9


@pytest.mark.parametrize("case", [c for c in EDGES if c not in SIGNS], ids=str)
def test_float32_is_float64_at_the_edge(case):
    for real, move, _ in play(case, 0.01, torch.float32):
        sound = torch.isfinite(real) & (move.gradient.abs() > 1e-15)
        momentum, decay, slope, _ = parts_of(move)
        wide = parts_of(move.to(torch.float64))
        along = slope * move.gradient
        sizes = sum(part.abs() for part in (wide[0], wide[1], wide[2] * move.gradient.double()))
        for found, part in (
            (momentum, wide[0]),
            (decay, wide[1]),
            (along, wide[2] * move.gradient),
        ):
            assert torch.isfinite(found).all()
            assert worst(found.double(), part, sound, sizes) < 2e-5


@pytest.mark.parametrize("samples", [3, 12])
@pytest.mark.parametrize("case", EDGES, ids=str)
def test_smoothed_values_are_finite_and_add_up_at_the_edge(case, samples):
    torch.manual_seed(1)
    for real, move, _ in play(case, 0.01, steps=3):
        if not torch.isfinite(real[1:]).all():
            return  # the optimizer has left the numbers
        shares = torch.rand(samples, *move.gradient.shape, dtype=torch.float64)
        shares = shares / shares.sum(0) * move.gradient
        gradient = torch.randn(1, *move.gradient.shape, dtype=torch.float64)
        gradient[:, 0] = 0.0  # of rows that nothing touched: eps = 0 leaves no number there
        values = PathSmoothed().values(move, shares, gradient)
        assert torch.isfinite(values).all()
        history = move.history()
        null = history.momentum + history.decay + torch.zeros_like(move.gradient)
        moved = torch.where(torch.isfinite(real), move.displacement(move.gradient) - null, 0.0)
        sizes = (gradient * moved).abs().sum() + sum((gradient * t).abs().sum() for t in history)
        wrong = float((values.sum() - (gradient * moved).sum()).abs())
        assert wrong <= 1e-9 * float(sizes) + 1e-14


@pytest.mark.parametrize("silent", [(), (0,), (2, 3)])
@pytest.mark.parametrize(("rate", "start"), [(0.01, 1.0), (0.0, 1.0), (0.01, 0.0)])
@pytest.mark.parametrize("case", MIXED, ids=str)
def test_rules_that_mix_elements_are_finite_and_right_at_the_edge(case, rate, start, silent):
    for real, move, _ in play(case, rate, silent=silent, start=start):
        told = move.displacement(move.gradient)
        sound = torch.isfinite(real)
        rounding = 1e-2 if "Muon" in case.kind.__name__ else 1e-10  # Muon iterates in bfloat16
        assert worst(told, real, sound, real.abs() + move.weight.abs()) < rounding
        if not sound.all():
            return
        momentum, decay = (torch.as_tensor(t) + torch.zeros_like(real) for t in move.history())
        gradient = torch.randn(1, *real.shape, dtype=torch.float64)
        pulled = move.slope().transposed(gradient)
        for part in (momentum, decay, pulled, move.tangent().transposed(gradient)):
            assert torch.isfinite(part).all()
        null = move.smooth_displacement(torch.zeros_like(move.gradient))
        assert worst(momentum + decay, null, sound, null.abs() + move.weight.abs()) < rounding
        whole = (gradient * (move.smooth_displacement(move.gradient) - null)).sum((1, 2))
        torch.testing.assert_close(
            (pulled * move.gradient).sum((1, 2)), whole, rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("case", [c for c in EDGES if c.kind in (optim.Adam, optim.AdamW)], ids=str)
def test_adam_is_told_from_the_state_after_the_step_only_where_that_keeps_its_digits(case):
    before = None
    for _, move, _ in play(case, 0.01):
        if before is not None and settles(before[0]):
            old, expected = before
            after = Move(old.rule, move.weight, old.gradient, move.state, old.setting)
            slope, momentum, decay = terms(after)
            for found, part in zip((momentum, decay, slope), expected, strict=False):
                assert float((found - part).abs().max()) <= 1e-6 * max(1.0, float(part.abs().max()))
        before = move, parts_of(move)


@pytest.mark.parametrize("case", [c for c in EDGES if c not in SIGNS], ids=str)
def test_what_look_ahead_carries_is_finite_at_the_edge(case):
    for _, move, _ in play(case, 0.01, steps=2):
        derivative = derivative_of(move.rule)
        ones = torch.ones(1, *move.weight.shape, dtype=torch.float64)
        along = Along(ones, (ones,) * derivative.moments(move))
        before, pulled = derivative.pull(move, along)
        after, moved = derivative.push(move, along, ones), derivative.moved(move, move.gradient)
        for part in (pulled, before.weight, after.weight, moved.weight):
            assert torch.isfinite(part).all()


def test_every_rule_is_at_the_edge():
    met = {type(rule_for(case.build([torch.nn.Parameter(torch.ones(2, 3))], lr=0.01)))
           for case in (*EDGES, *MIXED)}  # fmt: skip
    shared = {MomentsRule}  # what several have in common
    users = {WrittenElementwise, WrittenMatrix}
    of_groups = {AuxAdamRule}  # Adam, for the groups that Muon leaves to it
    few_bits = {RoundedAdamRule, TorchAORule, BitsAndBytesRule}  # see `test_quantized`
    assert {*concrete(Rule)} - shared - users - of_groups - few_bits == met


def concrete(kind):
    """Classes of the library's own below it that can be built."""
    for sub in kind.__subclasses__():
        if sub.__module__.startswith("inrun.") and not inspect.isabstract(sub):
            yield sub
        yield from concrete(sub)
