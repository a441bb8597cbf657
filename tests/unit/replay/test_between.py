"""Look-ahead along trainings with other weights, against such trainings written out, float64."""

from collections import Counter

import numpy as np
import pytest
import torch

import inrun
from inrun.errors import MisuseError
from inrun.replay import lookahead_between, reweighted
from tests.unit.replay.test_lookahead import (
    adamw,
    close,
    judge,
    momentum,
    recorded,
    training,
    utility,
    values_of,
)


class Column:
    """A table, for `values_of`."""

    def __init__(self, table):
        self.values = lambda: table


@pytest.mark.parametrize("optimizer", [adamw, momentum])
def test_a_reweighted_run_is_the_training_with_these_weights(optimizer):
    train = training("mlp", optimizer, clip=0.3, blocks=2)
    run = recorded(train)
    weights = {i: 1.0 + 0.2 * i for i in run.sample_ids()}
    again = reweighted(run, weights)
    *_, model = train.run(weights, renormalise=True)
    own = again.finished().state_dict()
    for name, p in model.state_dict().items():
        torch.testing.assert_close(own[name], p, rtol=1e-10, atol=1e-12)
    again.check()
    assert again.kept == run.kept
    run.check()  # the recording itself is as it was


def test_random_numbers_are_those_of_the_recording():
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 3)
    losses = lambda m, rows: m(rows).square().sum(1) / len(rows)  # noqa: E731
    recorder = inrun.record(model, optimizer, losses, lambda ids: x[torch.as_tensor(ids)])
    for ids in ([0, 1, 2, 3], [4, 5, 6, 7], [0, 2, 4, 6]):
        with recorder.batch(ids):
            losses(model, x[ids]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    run = recorder.finish()
    same = reweighted(run, dict.fromkeys(range(8), 0.5))
    for name, p in same.finished().state_dict().items():
        torch.testing.assert_close(p, run.finished().state_dict()[name])


def test_where_no_weight_is_lowered_it_is_look_ahead():
    train = training("mlp", adamw, clip=0.3, blocks=2)
    run, samples = recorded(train), (0, 3, 7)
    found = lookahead_between(run, utility(train), weight=1.0, trainings=2)
    close(
        values_of(Column(found), samples),
        values_of(inrun.lookahead(run, utility(train), damped=False), samples),
    )


@pytest.mark.parametrize("optimizer", [adamw, momentum])
def test_values_are_slopes_along_the_lowered_training_times_the_whole_way(optimizer):
    """Of a sample with one visit, f its part of the mean there: dV/d omega times
    omega / ((1 - f) (f + omega (1 - f))).
    """
    train = training("mlp", optimizer, steps=3)
    run, h = recorded(train), 2e-7
    ids = run.sample_ids()
    count = round(0.25 * len(ids))
    order = np.random.default_rng(5).permutation(len(ids))[:count]
    lowered = {ids[place]: 0.3 for place in order}
    visits = Counter(i for step in train.batches for block in step for i in block)
    samples = [i for i in ids if visits[i] == 1]
    assert {0.3, 1.0} == {lowered.get(i, 1.0) for i in samples}
    wanted = []
    for i in samples:
        own, sides = lowered.get(i, 1.0), []
        for sign in (1, -1):
            *_, model = train.run(lowered | {i: own * (1 + sign * h)}, renormalise=True)
            with torch.no_grad():
                sides.append(float(judge(train, model)))
        slope = (sides[0] - sides[1]) / (2 * h * own)
        (block,) = [b for step in train.batches for b in step if i in b]
        f = own / sum(lowered.get(j, 1.0) for j in block)
        wanted.append(-slope * own / ((1 - f) * (f + own * (1 - f))))
    found = lookahead_between(run, utility(train), share=0.25, weight=0.3, trainings=1, seed=5)
    close(values_of(Column(found), samples), np.array(wanted))


def test_several_trainings_give_their_median_and_each_target_its_own():
    train = training("mlp", momentum)
    run = recorded(train)
    loss = lambda m, batch: train.terms(m, *batch).mean()  # noqa: E731
    parts = {"a": tuple(t[12:15] for t in train.data), "b": tuple(t[15:] for t in train.data)}
    several = inrun.Utility(loss, targets=parts, weights={"a": 3.0, "b": 1.0})
    found = lookahead_between(run, several, trainings=2)
    for name, part in parts.items():
        alone = lookahead_between(run, inrun.Utility(loss, part), trainings=2)
        np.testing.assert_allclose(found[name].to_numpy(), alone["value"].to_numpy(), rtol=1e-9)
    both = np.stack([found["a"].to_numpy(), found["b"].to_numpy()], 1) @ several.weights
    np.testing.assert_allclose(found["value"].to_numpy(), both, rtol=1e-12)


@pytest.mark.parametrize("wrong", [{"share": 1.0}, {"weight": 0.0}, {"trainings": 0}])
def test_numbers_out_of_range_are_refused(wrong):
    train = training("mlp", momentum)
    with pytest.raises(MisuseError, match="must be a share between"):
        lookahead_between(recorded(train), utility(train), **wrong)
