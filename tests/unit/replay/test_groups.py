"""What taking whole groups out does, against what is written out, float64."""

import numpy as np
import pytest
import torch

import inrun
from inrun.errors import MisuseError
from inrun.replay import lookahead_groups
from inrun.replay._removal import _weights, removal_named
from tests.unit.replay.test_lookahead import (
    adamw,
    close,
    judge,
    momentum,
    recorded,
    training,
    utility,
)


@pytest.mark.parametrize("removal", ["renormalise", "drop"])
@pytest.mark.parametrize("optimizer", [adamw, momentum])
def test_a_group_of_one_is_the_finite_push_of_its_sample(optimizer, removal):
    train = training("mlp", optimizer, clip=0.3, blocks=2)
    run, judged = recorded(train), utility(train)
    ids = run.sample_ids()[:4]
    found = lookahead_groups(run, judged, {str(i): [i] for i in ids}, removal=removal)
    alone = inrun.lookahead(run, judged, push="finite", samples=ids, removal=removal).values()
    wanted = dict(zip(alone["sample_id"].to_pylist(), alone["value"].to_pylist(), strict=True))
    close(found["value"].to_numpy(), np.array([wanted[i] for i in ids]), 1e-9)


def test_one_step_without_a_group_is_the_exact_step_to_first_order_in_the_loss():
    train = training("mlp", momentum, steps=1, rows=6)
    run, judged = recorded(train), utility(train)
    (block,) = train.batches[0]
    groups = {"a": block[:2], "b": block[2:5]}
    found = lookahead_groups(run, judged, groups)
    model = run.finished()
    slopes = torch.autograd.grad(judge(train, model), list(model.parameters()))
    before = [p.detach().clone() for p in model.parameters()]
    for row, group in zip(found.to_pylist(), groups.values(), strict=True):
        *_, other = train.run(dict.fromkeys(group, 0.0), renormalise=True)
        moved = zip(slopes, other.parameters(), before, strict=True)
        wanted = sum((g * (p.detach() - b)).sum().item() for g, p, b in moved)
        assert row["value"] == pytest.approx(wanted, rel=1e-8)


def test_a_joint_removal_is_what_the_others_mean_becomes():
    torch.manual_seed(0)
    shares, parts = torch.rand(5).double(), torch.rand(5, 3).double()
    shares /= shares.sum()
    rows, c = [1, 4], (shares[:, None] * parts).sum(0)
    stays = [0, 2, 3]
    mean = (shares[stays, None] * parts[stays]).sum(0) / shares[stays].sum()
    found = _weights(rows, shares, removal_named("renormalise")) @ (shares[:, None] * parts)
    torch.testing.assert_close(found, mean - c)
    found = _weights(rows, shares, removal_named("drop")) @ (shares[:, None] * parts)
    torch.testing.assert_close(found, -(shares[rows, None] * parts[rows]).sum(0))
    everything = _weights(list(range(5)), shares, removal_named("renormalise"))
    torch.testing.assert_close(everything, -torch.ones(5).double())


def test_several_targets_each_have_their_column_and_the_weighted_sum():
    train = training("mlp", adamw)
    run = recorded(train)
    loss = lambda m, batch: train.terms(m, *batch).mean()  # noqa: E731
    parts = {"a": tuple(t[12:15] for t in train.data), "b": tuple(t[15:] for t in train.data)}
    groups = {"x": run.sample_ids()[:3], "y": run.sample_ids()[5:7]}
    found = lookahead_groups(
        run, inrun.Utility(loss, targets=parts, weights={"a": 2.0, "b": 1.0}), groups
    )
    assert found["samples"].to_pylist() == [3, 2]
    for name, part in parts.items():
        alone = lookahead_groups(run, inrun.Utility(loss, part), groups)
        np.testing.assert_allclose(found[name].to_numpy(), alone["value"].to_numpy(), rtol=1e-9)
    value = found["value"].to_numpy()
    both = 2 * found["a"].to_numpy() + found["b"].to_numpy()
    assert np.allclose(value, both) or np.allclose(value, both / 3)


def test_a_group_is_nearer_to_training_without_it_than_its_sum():
    train = training("mlp", adamw, steps=12)
    run, judged = recorded(train), utility(train)
    ids = run.sample_ids()
    groups = {str(n): ids[n : n + 3] for n in range(0, 12, 3)}
    full = judge(train, run.finished()).item()
    truth = np.array([judge(train, run.retrain(g)).item() - full for g in groups.values()])
    table = inrun.lookahead(run, judged).values()
    value = dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist(), strict=True))
    sums = np.array([sum(value[i] for i in g) for g in groups.values()])
    found = lookahead_groups(run, judged, groups)["value"].to_numpy()
    assert np.linalg.norm(found - truth) < np.linalg.norm(sums - truth)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({}, "no group"),
        ({"a": []}, "no sample at all"),
        ({"a": [0, "stranger"]}, "never visited"),
        ({"a": [0, 3], "b": [3]}, "and in another"),
    ],
)
def test_groups_that_are_none_are_refused(groups, said):
    train = training("mlp", momentum)
    with pytest.raises(MisuseError, match=said):
        lookahead_groups(recorded(train), utility(train), groups)
