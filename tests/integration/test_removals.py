"""Trainings without many samples, and how values are judged by them."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import spearmanr

import inrun
from inrun.errors import MisuseError, StoreError
from tests.unit.replay.test_lookahead import judge, momentum, recorded, training, utility


@pytest.fixture(scope="module")
def trained():
    train = training("mlp", momentum, clip=0.3, blocks=2)
    return train, recorded(train)


def by_hand(train, group):
    """V after the oracle's own training with weight 0 on a group of samples."""
    *_, model = train.run(dict.fromkeys(group, 0.0), renormalise=True)
    with torch.no_grad():
        return float(judge(train, model))


def test_without_a_group_is_the_training_without_it(trained):
    train, run = trained
    for group in ([0, 3, 7], {5}, (11, 2, 4, 6)):
        with torch.no_grad():
            found = float(judge(train, run.retrain(group)))
        assert found == pytest.approx(by_hand(train, group), rel=1e-10)


def test_the_score_is_the_rank_correlation_of_sums_with_what_the_loss_did(trained):
    train, run = trained
    values = {
        "look-ahead": inrun.lookahead(run, utility(train)).values(),
        "ids": pa.table({"sample_id": run.sample_ids(), "value": np.arange(11.0)}),
    }
    found = inrun.truth.lds(run, utility(train), values, subsets=20, share=0.25, seed=3)
    losses = np.array([by_hand(train, group) for group in found.left_out])
    np.testing.assert_allclose(found.losses[:, 0], losses, rtol=1e-10)
    assert {len(group) for group in found.left_out} == {3}
    for row in found.table.to_pylist():
        table = values[row["method"]]
        value = dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist(), strict=True))
        said = [sum(value[i] for i in group) for group in found.left_out]
        assert row["score"] == pytest.approx(spearmanr(said, losses)[0], abs=1e-12)
        assert row["low"] <= row["score"] <= row["high"]
    assert "20 trainings without 3 samples" in found.sentences()[0]


def test_several_targets_count_alike_and_a_constant_ranks_nothing(trained):
    train, run = trained
    loss = lambda m, batch: train.terms(m, *batch).mean()  # noqa: E731
    parts = {"a": tuple(t[12:15] for t in train.data), "b": tuple(t[15:] for t in train.data)}
    ids = run.sample_ids()
    good = inrun.lookahead(run, inrun.Utility(loss, targets=parts)).values()
    values = {
        "look-ahead": good,
        "nothing": pa.table({"sample_id": ids, "a": ids, "b": [0] * len(ids)}),
    }
    found = inrun.truth.lds(run, inrun.Utility(loss, targets=parts), values, subsets=16)
    alone = []
    for name, part in parts.items():
        own = pa.table({"sample_id": good["sample_id"], "value": good[name]})
        one = inrun.truth.lds(run, inrun.Utility(loss, part), {"x": own}, subsets=16)
        alone.append(one.table["score"][0].as_py())
    assert found.table["score"][0].as_py() == pytest.approx(np.mean(alone), abs=1e-12)
    assert found.table["targets"][0].as_py() == 2
    halves = found.table["score"][1].as_py()
    assert halves == pytest.approx(
        spearmanr([sum(g) for g in found.left_out], found.losses[:, 0])[0] / 2, abs=1e-12
    )


def test_a_file_of_trainings_is_gone_on_with(trained, tmp_path):
    train, run = trained
    values = {"look-ahead": inrun.lookahead(run, utility(train)).values()}
    store = tmp_path / "lds.jsonl"
    wanted = inrun.truth.lds(run, utility(train), values, subsets=10, processes=2, store=store)
    lines = store.read_text().splitlines(keepends=True)
    store.write_text("".join(lines[:5]))
    found = inrun.truth.lds(run, utility(train), values, subsets=10, store=store)
    assert found.table.equals(wanted.table)
    with pytest.raises(StoreError, match="another retraining"):
        inrun.truth.lds(run, utility(train), values, subsets=10, seed=1, store=store)


def test_the_curve_leaves_out_the_best_and_compares_with_chance(trained):
    train, run = trained
    table = inrun.lookahead(run, utility(train)).values()
    order = np.argsort(-table["value"].to_numpy(), kind="stable")[:3]
    best = [table["sample_id"][int(i)].as_py() for i in order]
    found = inrun.truth.removal_curve(
        run, utility(train), {"look-ahead": table}, shares=(0.25,), controls=4
    )
    (row,) = found.table.to_pylist()
    assert row["samples"] == 3
    whole = by_hand(train, [])
    assert row["rise"] == pytest.approx(by_hand(train, best) - whole, rel=1e-9)
    assert row["random"] <= row["random_high"] < row["rise"]
    assert "look-ahead 25%" in found.sentences()[0]


def test_questions_without_an_answer_are_refused(trained):
    train, run = trained
    ids = run.sample_ids()
    table = pa.table({"sample_id": ids, "value": [1.0] * len(ids)})
    for values, how, said in (
        ({"a": table}, {"subsets": 3}, "at least 10"),
        ({"a": table}, {"share": 0.01}, "0 samples"),
        ({"a": table}, {"share": 1.0}, "one must stay"),
        ({"a": table, "b": table.slice(1)}, {}, "other samples"),
        ({"a": table.rename_columns(["sample_id", "v"])}, {}, "no column 'value'"),
        ({"a": table.set_column(1, "value", [[float("nan")] * len(ids)])}, {}, "not finite"),
        ({}, {}, "no method"),
    ):
        with pytest.raises(MisuseError, match=said):
            inrun.truth.lds(run, utility(train), values, **how)
    with pytest.raises(MisuseError, match="at least 2"):
        inrun.truth.removal_curve(run, utility(train), {"a": table}, controls=1)
    for group in ([], [0, "stranger"]):
        with pytest.raises(MisuseError, match="never visited"):
            run.retrain(group)


class Game:
    """A run whose loss is a function of who is left out."""

    def __init__(self, players, loss):
        self.players, self.loss = players, loss

    def finished(self):
        return self.retrain([], renormalise=True)

    def retrain(self, without, *, renormalise):
        model = torch.nn.Linear(1, 1)
        x = torch.tensor([float(i not in set(without)) for i in range(self.players)])
        model.found = self.loss(x).double()
        return model

    def score(self, values, subsets=40, **how):
        judge = inrun.Utility(lambda model, _: model.found, torch.zeros(1, 1))
        table = pa.table({"sample_id": list(range(self.players)), "value": values})
        return inrun.truth.lds(self, judge, {"x": table}, subsets=subsets, **how)


@pytest.mark.parametrize("players", [8, 9])
def test_no_sum_scores_above_the_ceiling_whatever_its_values(players):
    torch.manual_seed(0)
    bent = torch.randn(players, players)
    game = Game(players, lambda x: x.sum().sin() + x @ bent @ x)
    first = game.score([0.0] * players)
    x = np.array([[i in gone for i in range(players)] for gone in first.left_out], dtype=float)
    ranks = first.losses[:, 0].argsort().argsort()
    best = np.linalg.lstsq(np.c_[x, np.ones(len(x))], ranks, rcond=None)[0][:players]
    draws = np.random.default_rng(0).normal(size=(20, players))
    scores = [game.score(list(v)).table["score"][0].as_py() for v in (best, *draws)]
    assert max(scores) < first.ceiling < 1
    assert max(scores) > 0.8 * first.ceiling
    assert f"could score above {first.ceiling:.3f}" in " ".join(first.sentences())


def test_the_ceiling_is_1_where_losses_are_sums_and_0_where_they_are_even():
    value = torch.arange(1.0, 9.0)
    assert Game(8, lambda x: -(x @ value)).score(value.tolist()).ceiling == pytest.approx(1.0)
    even = Game(8, lambda x: (x @ value - value.sum() / 2).abs())
    assert even.score(value.tolist()).ceiling == pytest.approx(0.0, abs=1e-12)
    assert even.score(value.tolist(), share=0.25).ceiling is None


def test_halves_are_drawn_with_what_they_leave():
    found = Game(9, lambda x: x.sum()).score([1.0] * 9, subsets=10)
    for half, rest in zip(found.left_out[::2], found.left_out[1::2], strict=True):
        assert sorted(half + rest) == list(range(9))
    with pytest.raises(MisuseError, match="even number"):
        Game(9, lambda x: x.sum()).score([1.0] * 9, subsets=11)


def test_ticks_say_how_many_trainings_are_done():
    said = []
    Game(9, lambda x: x.sum()).score([1.0] * 9, subsets=10, tick=lambda *n: said.append(n))
    assert said == [(n, 10) for n in range(11)]
