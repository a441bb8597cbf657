"""Places from one look: couplings against dense gradients and taken steps, float64."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn

import inrun
from inrun.optim import rule_for
from inrun.replay import AnticipatedStep, Carried
from inrun.uses import _candidates, _one_look
from tests.oracles import shares as shares_oracle
from tests.unit.uses.test_online import PLACES, Loop, N, adamw, candidates, momentum, near, steep


def muon(model):
    """Not elementwise; for matrices alone."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1)


def trained(optimizer):
    return {p for group in optimizer.param_groups for p in group["params"]}


def coupled_by_hand(loop, rows):
    """c_n^T J c_j from each row's own gradient and central differences of the real step."""
    parameters = dict(loop.model.named_parameters())
    dense = shares_oracle.shares(
        loop.model,
        lambda m, picked: loop.losses(m, loop.fetch(rows))[picked],
        len(rows),
        parameters,
    )
    flat = torch.cat([dense[name].flatten(1) for name in parameters], 1)

    def landed(gradient):
        model, optimizer = copy.deepcopy((loop.model, loop.optimizer))
        sizes = [p.numel() for p in model.parameters()]
        for p, part in zip(model.parameters(), gradient.split(sizes), strict=True):
            p.grad = part.reshape(p.shape).clone()
        if loop.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), loop.clip)
        optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    mean, h = flat.sum(0), 1e-5
    moved = [(landed(mean + h * row) - landed(mean - h * row)) / (2 * h) for row in flat]
    A = flat @ torch.stack(moved).T
    return N * A.T @ A


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize(
    ("name", "optimizer"), [("mlp", adamw), ("mlp", momentum), ("cnn", adamw), ("gpt2-tied", adamw)]
)
@pytest.mark.parametrize("few", [False, True])
def test_couplings_are_those_of_dense_gradients_through_the_step(
    name, optimizer, clip, few, monkeypatch
):
    found, once = [], _one_look.coupled
    monkeypatch.setattr(_one_look, "coupled", lambda *given: found.append(once(*given)) or found[0])
    if few:  # shares are built one candidate at a time
        monkeypatch.setattr(_candidates.cost, "samples_per_block", lambda *given: 1)
    loop = Loop(name, optimizer, clip)
    wanted = coupled_by_hand(loop, candidates())
    with loop.select(rounds=None) as selection, selection.batch(candidates()):
        loop.loss(candidates()).backward()
    near(found[0], wanted, 1e-6)


@pytest.mark.parametrize("warm", [3, 12])
@pytest.mark.parametrize("optimizer", [adamw, momentum, muon])
def test_gradients_are_carried_back_together_as_each_alone(optimizer, warm):
    """Young and old, elementwise and not, with clipping."""
    loop = Loop(optimizer=optimizer, clip=0.3, warm=warm)
    parameters = {n: p for n, p in loop.model.named_parameters() if p in trained(loop.optimizer)}
    loop.loss(candidates()).backward()
    raw = {name: p.grad.clone() for name, p in parameters.items()}
    step = AnticipatedStep(loop.optimizer, rule_for(loop.optimizer), parameters, raw, 0.3)
    several = {name: torch.randn(3, *p.shape).double() for name, p in parameters.items()}
    found = step.carried_back(several)
    for k in range(3):
        one = Carried(parameters, 1)
        one.add_to_weights({name: t[k : k + 1] for name, t in several.items()})
        for name, p in step.taken_back(one).items():
            torch.testing.assert_close(found[name][k : k + 1], p)


class Line(Loop):
    """Linear, with residuals of 1 on the candidates, which also judge: H is what stands for it."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(N, 4, generator=generator, dtype=torch.float64)
        sign = torch.randint(2, (N,), generator=generator).double() * 2 - 1
        torch.manual_seed(seed)
        self.model = nn.Linear(4, 1).double()
        self.data = x, (self.model(x)[:, 0] + sign).detach()
        self.optimizer, self.clip = torch.optim.SGD(self.model.parameters(), lr=0.8), None
        self.terms_of = lambda m, x, y: (m(x)[:, 0] - y) ** 2 / 2
        self.utility = inrun.Utility(lambda m, batch: self.terms_of(m, *batch).mean(), self.data)


def test_places_are_those_of_taking_the_steps_where_the_curvature_is_the_candidates(monkeypatch):
    monkeypatch.setattr(_one_look, "STRENGTH", 1.0)
    at_once, rows = [], list(range(N))
    for seed in range(8):
        loop = Line(seed)
        wanted, picked = loop.taken().greedy(rows, PLACES), []
        for rounds in (None, 1):
            with loop.select(rounds=rounds) as selection, selection.batch(rows):
                loop.loss(rows).backward()
            picked.append(sorted(selection.chosen))
            loop.optimizer.zero_grad()
        assert picked[0] == wanted
        at_once.append(picked[1] == wanted)
    assert not all(at_once)


def test_one_look_makes_copies_of_a_candidate_worth_less_with_one_validation_pass():
    loop, passes = Loop(optimizer=steep), Counter()
    judge = loop.utility.loss_fn
    kinds = {1: [], None: []}
    for rounds, found in kinds.items():

        def counted(model, batch, rounds=rounds):
            passes[rounds] += 1
            return judge(model, batch)

        loop.utility = inrun.Utility(counted, next(iter(loop.utility.batches.values())))
        for copied in range(10):
            rows = [copied] * 4 + [1, 11, 22, 29]
            with loop.select(rounds=rounds) as selection, selection.batch(rows):
                loop.loss(rows).backward()
            loop.optimizer.zero_grad()
            found.append(len(set(selection.chosen)))
    assert sum(kinds[None]) > sum(kinds[1])
    assert passes[None] == passes[1]


def test_sums_and_weighted_means_are_coupled_alike():
    """A sum's terms are N times a mean's at an N-th of the rate: the same step, the same choice."""
    loop, chosen = Loop(optimizer=steep), []
    for reduction in ("mean", "sum"):
        scale = N if reduction == "sum" else 1
        loop.optimizer.param_groups[0]["lr"] = 1.0 / (PLACES if reduction == "sum" else 1)
        with loop.select(rounds=None, reduction=reduction) as selection:
            with selection.batch(candidates()):
                (loop.loss(candidates()) * scale).backward()
        chosen.append(selection.chosen)
        loop.optimizer.zero_grad()
    assert chosen[0] == chosen[1]
