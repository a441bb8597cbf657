"""Agreement between halves of the validation rows, beside a run by each half alone."""

import numpy as np
import pytest
import torch

import inrun
from inrun.training import TrainConfig, Training
from inrun.utility import HALF
from tests.integration.train_data import images

CLOSE = 1e-4


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Images of two classes, 45 to train on; 8 of the one class and 7 of the other judge."""
    folder = tmp_path_factory.mktemp("halves")
    images(folder / "pictures")
    return Training(
        TrainConfig(
            task="image-classification", model="cnn", data=str(folder / "pictures"), batch=9
        ),
        folder / "run",
    )


def scored(training, utility, folder):
    """A run of the same steps whatever judges."""
    model, optimizer = training.start(0)
    attribution = inrun.attach(
        model, optimizer, utility, store=folder,
        options=inrun.Options(progress=False, self_test=False, smoothed_steps=0),
    )  # fmt: skip
    ids = np.random.default_rng(0).permutation(training.ids * 3)
    for part in np.array_split(ids, len(ids) // 9):
        with attribution.batch(part.tolist()):
            training.loss_fn(model, training.fetch(part.tolist())).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    run = inrun.load(folder)
    labels = [sample.label for sample in training.samples(sorted(training.ids))]
    run.describe({"sample_id": sorted(training.ids), "label": labels})
    return run


@pytest.fixture(scope="module")
def run(training, tmp_path_factory):
    return scored(training, training.utility(), tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def halves(training, tmp_path_factory):
    """Two runs that are judged by each half of the rows alone, put together here by hand."""
    whole, found = training.utility(), []
    chosen = {tuple(row.flatten().tolist()) for row in whole.batches[HALF]["pixel_values"]}
    for first in (True, False):
        parts, weights = {}, {}
        for name, batch in whole.batches.items():
            if name == HALF:
                continue
            rows = [
                j
                for j, row in enumerate(batch["pixel_values"])
                if (tuple(row.flatten().tolist()) in chosen) == first
            ]
            parts[name] = {key: t[torch.tensor(rows)] for key, t in batch.items()}
            share = dict(zip(whole.targets, whole.weights, strict=True))[name]
            weights[name] = share * len(rows) / len(batch["labels"])
        utility = inrun.Utility(training.loss_fn, targets=parts, weights=weights)
        found.append(scored(training, utility, tmp_path_factory.mktemp("half") / "run"))
    return found


def test_the_half_is_stratified_and_judges_nothing(training, run):
    half = training.utility().batches[HALF]
    rows = {name: len(b["labels"]) for name, b in training.utility().batches.items()}
    for label, name in enumerate(sorted(set(rows) - {HALF})):
        assert abs(2 * int((half["labels"] == label).sum()) - rows[name]) <= 1
    assert HALF not in run.targets
    assert sum(run.weights.values()) == pytest.approx(1)
    table = run.values()
    assert table["value"].to_numpy() == pytest.approx(
        sum(w * table[name].to_numpy() for name, w in run.weights.items())
    )


@pytest.mark.parametrize(
    ("ranking", "column"), [("total", "value"), ("normalised", "value_normalised")]
)
def test_agreement_of_halves_is_that_of_two_runs_by_half_of_the_rows_each(
    run, halves, ranking, column
):
    row = next(r for r in inrun.agreement(run).table.to_pylist() if r["ranking"] == ranking)
    a, b = (one.values()[column].to_numpy().copy() for one in halves)
    assert row["validation_halves"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=CLOSE)
    labels = np.array(run.samples()["label"].to_pylist())
    for x in (a, b):
        for label in set(labels):
            x[labels == label] -= x[labels == label].mean()
    assert row["halves_within_labels"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=CLOSE)
    assert -0.99 < row["validation_halves"] < 0.9999


def test_what_was_not_measured_is_not_stated(run):
    judged = run.judged_by({name: k for k, name in enumerate(run.targets, start=1)})
    assert judged.values()[HALF].null_count == 0
    assert "With other validation rows" in str(inrun.agreement(run))
    assert "With other validation rows" not in str(inrun.agreement(judged))
    assert "With another validation set: not known" in str(inrun.agreement(judged))
