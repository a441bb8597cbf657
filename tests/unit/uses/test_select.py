"""Offline selection, and arms trained again beside their controls."""

import numpy as np
import pytest
import torch
from torch import nn

import inrun
from inrun.errors import MisuseError

ROWS, BATCH = 60, 10


def data():
    """Two classes far apart; every fourth label of the training rows is wrong."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(ROWS + 40) % 2
    x = torch.randn(ROWS + 40, 4, generator=generator) + 2 * y[:, None]
    wrong = torch.zeros(ROWS + 40, dtype=torch.bool)
    wrong[:ROWS:4] = True
    return x, torch.where(wrong, 1 - y, y), wrong


X, Y, WRONG = data()


def terms(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def fetch(ids):
    ids = torch.as_tensor(ids)
    return X[ids], Y[ids]


UTILITY = inrun.Utility(lambda model, b: terms(model, b).mean(), (X[ROWS:], Y[ROWS:]))


def started(seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(4, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


@pytest.fixture(scope="module")
def run():
    model, optimizer = started()
    recorder = inrun.record(model, optimizer, lambda m, b: terms(m, b) / len(b[0]), fetch)
    for ids in torch.arange(ROWS).repeat(3).split(BATCH):
        with recorder.batch(ids):
            terms(model, fetch(ids)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return recorder.finish()


@pytest.mark.parametrize("horizon", [None, 1, 4])
def test_the_chosen_are_those_of_largest_value_at_that_horizon(run, horizon):
    chosen = inrun.select.offline(run, UTILITY, 20, horizon=horizon).chosen
    values = inrun.lookahead(run, UTILITY, horizon).values()
    order = np.argsort(-values["value"].to_numpy(), kind="stable")[:20]
    assert chosen == sorted(values["sample_id"].to_numpy()[order].tolist())


def test_wrong_labels_are_left_out(run):
    chosen = inrun.select.offline(run, UTILITY, 0.5).chosen
    assert len(chosen) == ROWS // 2
    assert WRONG[chosen].float().mean() < 0.1 < WRONG[:ROWS].float().mean()


def test_every_group_keeps_the_same_share(run):
    groups = {i: "few" if i < 12 else "many" for i in range(ROWS)}
    selection = inrun.select.offline(run, UTILITY, 0.25, groups=groups)
    for ids in selection.arms(0).values():
        assert sum(i < 12 for i in ids) == 3
        assert len(ids) == 15


def test_controls_are_as_many_and_what_they_say(run):
    selection = inrun.select.offline(run, UTILITY, 20)
    arms = selection.arms(3)
    assert arms["chosen"] == selection.chosen
    assert {len(set(ids)) for ids in arms.values()} == {20}
    assert arms["random"] == selection.arms(3)["random"] != selection.arms(4)["random"]
    with torch.no_grad():
        losses = terms(run.finished(), fetch(range(ROWS)))
    assert arms["loss"] == sorted(losses.topk(20).indices.tolist())
    found = dict(zip(*(selection.table[c].to_pylist() for c in ("sample_id", "loss")), strict=True))
    torch.testing.assert_close(
        torch.tensor([found[i] for i in range(ROWS)], dtype=torch.float32), losses
    )


@pytest.mark.parametrize("keep", [0, ROWS, 1.0, 0.0])
def test_nothing_or_everything_is_no_selection(run, keep):
    with pytest.raises(MisuseError, match="would keep"):
        inrun.select.offline(run, UTILITY, keep)


def test_a_sample_without_a_group_is_named(run):
    groups = dict.fromkeys(range(ROWS - 1), 0)
    with pytest.raises(MisuseError, match=f"the sample {ROWS - 1} and 0 others"):
        inrun.select.offline(run, UTILITY, 0.5, groups=groups)


def accuracy(model):
    with torch.no_grad():
        return float((model(X[ROWS:]).argmax(1) == Y[ROWS:]).float().mean())


def trained_on(ids, seed):
    model, optimizer = started(seed)
    for _ in range(30):
        terms(model, fetch(ids)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return -float(terms(model, (X[ROWS:], Y[ROWS:])).mean())


def test_offline_beats_its_controls_where_labels_are_wrong(run):
    check = inrun.select.check(trained_on, inrun.select.offline(run, UTILITY, 0.5).arms, seeds=4)
    assert list(check.scores) == ["chosen", "random", "loss"]
    assert check.supported, str(check)
    assert "Supported: better than random and than loss." in str(check)


def test_online_beats_its_controls_where_labels_are_wrong():
    def train(by, seed):
        model, optimizer = started(seed)
        with inrun.select.online(
            model, optimizer, UTILITY, 4, by=by,
            loop=inrun.select.Loop(lambda m, b: terms(m, b) / len(b[0]), fetch),
        ) as selection:  # fmt: skip
            generator = torch.Generator().manual_seed(seed)
            for _ in range(15):
                ids = torch.randperm(ROWS, generator=generator)[:16]
                with selection.batch(ids):
                    terms(model, fetch(ids)).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        with torch.no_grad():
            return -float(terms(model, (X[ROWS:], Y[ROWS:])).mean())

    check = inrun.select.check(train, inrun.select.BY, seeds=4)
    assert list(check.scores) == ["value", "random", "loss"]
    assert check.supported, str(check)
