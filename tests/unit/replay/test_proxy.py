"""The error proxy is the sum that it says it is, and is refused where it would mean nothing."""

import numpy as np
import pytest
import torch
from torch import nn

import inrun
from inrun.errors import MisuseError
from inrun.replay import as_sgd, looked_ahead, windows
from inrun.replay._proxy import perturbation
from inrun.replay._removal import removal_named
from tests.unit.replay.test_lookahead import (
    SAMPLES,
    STEPS,
    Linear,
    judge,
    method,
    momentum,
    recorded,
    training,
    utility,
    values_of,
)


def test_one_samples_perturbation_is_the_derivative_of_the_last_weights():
    train = training("mlp", clip=0.3, blocks=2)
    run = recorded(train)
    chosen, h = 3, 2e-7

    def only(ids):
        return torch.tensor([[float(i == chosen)] for i in ids], dtype=torch.float64)

    found = perturbation(run, only, removal_named("drop"))
    ends = []
    for sign in (1, -1):
        *_, model = train.run({chosen: 1 - sign * h})
        ends.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for name, delta in found.items():
        wanted = (ends[0][name] - ends[1][name]) / (2 * h)
        assert (delta[0] - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def smooth():
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4))


def by_hand(run, train):
    """1/2 delta_i^T H_V delta_i of each sample, with the Hessian written out."""
    each = torch.eye(SAMPLES, dtype=torch.float64)
    delta = perturbation(run, lambda ids: each[torch.as_tensor(ids)], removal_named("renormalise"))
    model = run.finished()
    names = list(dict(model.named_parameters()))
    flat = torch.cat([delta[name].flatten(1) for name in names], 1)
    gradients = torch.autograd.grad(
        judge(train, model), list(model.parameters()), create_graph=True
    )
    gradient = torch.cat([g.reshape(-1) for g in gradients])
    found = []
    for row in flat:
        curved = torch.autograd.grad(gradient @ row, list(model.parameters()), retain_graph=True)
        found.append(float(torch.cat([c.reshape(-1) for c in curved]) @ row) / 2)
    return np.array(found)


def test_the_proxy_is_the_second_order_over_the_first():
    train = training("mlp", momentum)
    run = recorded(train)
    result = inrun.lookahead(run, utility(train))
    proxy = result.error_proxy(groups=1, mixtures=400)
    wanted = abs(by_hand(run, train).sum()) / np.abs(result.values()["value"].to_numpy()).sum()
    assert proxy.second_order == pytest.approx(wanted, rel=0.3)


def test_the_median_group_of_steps_counts():
    """Of groups that are a step each, whose samples are its own."""
    train = training("mlp", momentum)
    run = recorded(train)
    result = inrun.lookahead(run, utility(train))
    second, values = by_hand(run, train), np.abs(values_of(result, range(SAMPLES)))
    first = {}
    for number, blocks in enumerate(train.batches):
        for i in (i for ids in blocks for i in ids):
            first.setdefault(int(i), number)
    mine = [np.array([i for i, n in first.items() if n == step]) for step in set(first.values())]
    wanted = np.median([abs(second[ids].sum()) / values[ids].sum() for ids in mine])
    proxy = result.error_proxy(groups=999, mixtures=100)
    assert proxy.second_order == pytest.approx(wanted, rel=0.3)
    assert 0 < proxy.spread < np.inf


def test_a_step_whose_first_order_explodes_does_not_decide():
    """Two rows that cancel where nothing else is: Adam's slope there is 1 over next to nothing."""
    proxies = []
    for size in (1e-6, 1.0):
        train = training("mlp", lambda m: torch.optim.AdamW(m.parameters(), lr=1e-4))
        train.build, train.terms = Linear, lambda model, x, _: model(x)
        train.batches = [[[i, i + 1]] for i in range(0, SAMPLES, 2)]
        train.data[0][:, 0] *= 1e-6
        train.data[0][2:4, 0] = torch.tensor([size, 1e-6 - size])
        judged = inrun.Utility(lambda model, _: model.weight.square().sum(), (torch.zeros(2, 1),))
        result = inrun.lookahead(recorded(train), judged)
        proxies.append([result.error_proxy(groups=n).second_order for n in (1, 16)])
    (calm, middle), (exploded, still) = proxies
    assert exploded > 100 * calm
    assert still < 3 * middle


def test_a_smaller_rate_is_trusted_more():
    ratios, verdicts = [], []
    for rate in (1e-6, 1.0):
        train = training("mlp", lambda m, lr=rate: torch.optim.SGD(m.parameters(), lr=lr))
        train.build = smooth
        proxy = inrun.lookahead(recorded(train), utility(train)).error_proxy()
        ratios.append(proxy.second_order)
        verdicts.append(str(proxy))
    assert ratios[0] < 1e-4 < ratios[1]
    assert verdicts[0].startswith("trust:")
    assert verdicts[1].startswith("do not trust:")


def test_kinks_count_where_there_are_some():
    ratios = {}
    for name in ("mlp", "gpt2-tied"):
        train = training(name)
        ratios[name] = inrun.lookahead(recorded(train), utility(train)).error_proxy().kinks
    assert ratios["gpt2-tied"] == 0
    assert ratios["mlp"] > 0


def test_rounding_is_what_the_last_digits_of_the_start_do():
    train = training("mlp")
    result = inrun.lookahead(recorded(train), utility(train))
    found = result.error_proxy(replays=3, seed=5).rounding
    (*_, model), begin = train.run({}), train.start
    full = float(judge(train, model).detach())
    generator, ends = torch.Generator().manual_seed(5), []

    def moved():
        model, optimizer = begin()
        with torch.no_grad():
            for p in model.parameters():
                noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                p.mul_(1 + noise * 2.0**-53)
        return model, optimizer

    train.start = moved
    for _ in range(3):
        *_, model = train.run({})
        ends.append(float(judge(train, model).detach()) - full)
    size = np.median(np.abs(result.values()["value"].to_numpy()))
    wanted = np.sqrt(np.mean(np.square(ends))) / size
    assert 0 < found < 1e-9  # double precision; its own digits are noise too
    assert 0.1 < found / wanted < 10


def test_a_rate_that_moves_weights_by_their_last_digits_is_not_trusted():
    train = training("mlp", lambda m: torch.optim.SGD(m.parameters(), lr=1e-7))
    train.start = lambda: in_single(train)
    train.data = tuple(t.float() if t.is_floating_point() else t for t in train.data)
    judged = inrun.Utility(
        lambda model, batch: train.terms(model, *batch).double().mean(),
        tuple(t[SAMPLES:] for t in train.data),
    )
    proxy = inrun.lookahead(recorded(train), judged).error_proxy()
    assert proxy.rounding > 0.2 > proxy.second_order
    assert proxy.verdict == "do not trust"


def in_single(train):
    torch.manual_seed(train.seed)
    model = train.build()
    return model, train.optimizer(model)


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ((1e-3, 0.0, 1e-3, 1e-3), "trust"), ((0.1, 0.0, 0.0, 0.0), "trust the ranking only"),
        ((0.0, 0.0, 0.1, 0.0), "trust the ranking only"), ((0.0, 0.0, 0.3, 0.0), "do not trust"),
        ((0.0, 0.0, 0.0, 0.1), "trust the ranking only"), ((0.1, 0.0, 0.1, 0.1), "do not trust"),
        ((1.0, 0.0, 0.0, 0.0), "do not trust"), ((float("inf"), 0.0, 0.0, 0.0), "do not trust"),
    ],
)  # fmt: skip
def test_all_parts_together_decide(parts, verdict):
    proxy = inrun.replay.ErrorProxy(*parts)
    assert proxy.verdict == verdict
    assert str(proxy).startswith(verdict + ":")


OTHERS = [method(windows(2, STEPS)), method(reading=as_sgd)]


@pytest.mark.parametrize("how", OTHERS)
def test_it_is_refused_for_other_values(how):
    train = training("mlp")
    with pytest.raises(MisuseError, match="whole run"):
        looked_ahead(recorded(train), utility(train), how).error_proxy()


def test_it_is_refused_for_windows_and_for_tracin():
    train = training("mlp")
    run, judged = recorded(train), utility(train)
    for found in (inrun.lookahead(run, judged, 2), inrun.replay.tracin(run, judged)):
        with pytest.raises(MisuseError, match="whole run"):
            found.error_proxy()


def test_it_is_of_the_run_whatever_the_push():
    train = training("mlp")
    run, judged = recorded(train), utility(train)
    finite = inrun.lookahead(run, judged, push="finite", samples=[run.sample_ids()[0]])
    assert finite.error_proxy() == inrun.lookahead(run, judged).error_proxy()
