"""Leave-one-out by training again is leave-one-out by training again."""

import numpy as np
import pytest
import torch

import inrun
from inrun.errors import MisuseError, StoreError
from inrun.ledger import Log
from tests.unit.replay.test_lookahead import close, judge, momentum, recorded, training, utility

CHOSEN = [7, 0, 3]


def by_hand(train, removal):
    """V after the oracle's own training with weight 0, less V with all."""

    def final(weights):
        *_, model = train.run(weights, removal == "renormalise")
        with torch.no_grad():
            return float(judge(train, model))

    return np.array([final({i: 0.0}) - final({}) for i in CHOSEN])


@pytest.mark.parametrize("removal", ["drop", "renormalise"])
@pytest.mark.parametrize("budget", [1, 2**30])
def test_values_are_those_of_another_training(removal, budget, tmp_path):
    train = training("mlp", clip=0.3, blocks=2)
    run = recorded(train, folder=tmp_path / "run", budget=budget)
    table = inrun.truth.retrain(run, utility(train), CHOSEN, removal=removal)
    assert table["sample_id"].to_pylist() == CHOSEN
    np.testing.assert_allclose(table["value"], by_hand(train, removal), rtol=1e-8, atol=1e-14)


def test_a_small_weight_makes_retraining_linear():
    """With a tiny rate, removal is linear and look-ahead predicts it."""
    train = training("mlp", lambda m: torch.optim.SGD(m.parameters(), lr=1e-4, momentum=0.9))
    run, judged = recorded(train), utility(train)
    found = inrun.lookahead(run, judged).values()
    wanted = inrun.truth.retrain(run, judged, found["sample_id"].to_pylist())
    close(found["value"].to_numpy(), wanted["value"].to_numpy(), 2e-3)


def test_processes_and_resuming_change_nothing(tmp_path):
    train = training("mlp", momentum)
    run, store = recorded(train), tmp_path / "truth.jsonl"
    wanted = inrun.truth.retrain(run, utility(train), CHOSEN)
    two = inrun.truth.retrain(run, utility(train), CHOSEN[:2], processes=2, store=store)
    assert two["value"].to_pylist() == wanted["value"].to_pylist()[:2]
    question, first, *rest = Log(store).lines
    store.unlink()
    log = Log(store)
    for line in (question, {**first, "found": [100.0]}, *rest):
        log.append(line)  # what is on disk is not computed again
    resumed = inrun.truth.retrain(run, utility(train), CHOSEN, store=store)["value"].to_pylist()
    assert resumed[0] > 50
    assert resumed[1:] == wanted["value"].to_pylist()[1:]
    with pytest.raises(StoreError, match="another run"):
        inrun.truth.retrain(run, utility(train), CHOSEN, store=store, removal="drop")
    whole = store.read_text()
    store.write_text(whole.replace("100.0", "101.0"))
    with pytest.raises(StoreError, match="line 2 does not fit"):
        inrun.truth.retrain(run, utility(train), CHOSEN, store=store)
    store.write_text(whole[:-5])
    with pytest.raises(StoreError, match="torn"):
        inrun.truth.retrain(run, utility(train), CHOSEN, store=store)


def test_targets_have_columns():
    train = training("mlp")
    loss = lambda m, batch: train.terms(m, *batch).mean()  # noqa: E731
    parts = {"a": tuple(t[12:15] for t in train.data), "b": tuple(t[15:] for t in train.data)}
    run = recorded(train)
    table = inrun.truth.retrain(run, inrun.Utility(loss, targets=parts), CHOSEN)
    for name, part in parts.items():
        alone = inrun.truth.retrain(run, inrun.Utility(loss, part), CHOSEN)
        np.testing.assert_allclose(table[name], alone["value"], rtol=1e-12)


def test_strangers_are_refused():
    train = training("mlp")
    run = recorded(train)
    with pytest.raises(MisuseError, match="never visited"):
        inrun.truth.retrain(run, utility(train), [99])
    with pytest.raises(MisuseError, match="removal"):
        inrun.truth.retrain(run, utility(train), CHOSEN, removal="x")
