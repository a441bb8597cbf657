"""Imbalanced digits with right labels, from the loop to the report: no class is harmful."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import inrun
from inrun.uses import judge_notes, rank

LARGE, EPOCHS = 60, 8


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three classes with 60 rows each and three with 15; ten validation rows of each class."""
    found, rng = load_digits(), np.random.default_rng(0)
    rows, held = [], {}
    for k in range(6):
        own = rng.permutation(np.flatnonzero(found.target == k))
        held[str(k)] = own[:10]
        rows += own[10 : 10 + (LARGE if k < 3 else LARGE // 4)].tolist()
    x = torch.tensor(found.images, dtype=torch.float32).reshape(-1, 64) / 16
    y = torch.tensor(found.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    folder = tmp_path_factory.mktemp("imbalanced") / "run"
    attribution = inrun.attach(
        model, optimizer,
        inrun.Utility(loss_fn, targets={k: (x[own], y[own]) for k, own in held.items()}),
        store=folder, options=inrun.Options(progress=False),
    )  # fmt: skip
    for _ in range(EPOCHS):
        for ids in torch.tensor(rows)[torch.randperm(len(rows))].split(25):
            with attribution.batch(ids):
                loss_fn(model, (x[ids], y[ids])).backward()
            optimizer.step()
            optimizer.zero_grad()
    attribution.detach()
    stored = inrun.load(folder)
    stored.describe({"sample_id": sorted(rows), "label": [str(int(y[i])) for i in sorted(rows)]})
    return stored


def test_judged_by_training_shares_no_class_is_harmful(run):
    table = inrun.rollup(run, "label", judge="training").table.to_pylist()
    assert all(row["value"] > 0 for row in table)
    assert all(row["harmful"] < 0.5 for row in table)


def test_judged_evenly_large_classes_look_worse_and_it_is_said(run):
    even, training = (inrun.rollup(run, "label", judge=j).table for j in ("even", "training"))
    harmful = [
        np.mean([row["harmful"] for row in t.to_pylist() if row["group"] in "012"])
        for t in (even, training)
    ]
    assert harmful[0] > harmful[1] + 0.1
    assert any("look harmful for that reason alone" in note for note in judge_notes(run))


def test_no_sample_of_a_clean_class_is_surely_harmful_by_its_class(run):
    """Few are called so at all, and no class has many of them."""
    judged = run.judged_by({str(k): LARGE if k < 3 else LARGE / 4 for k in range(6)})
    ranked = rank(judged.visits(), judged.targets, "normalised")
    label = np.array(run.samples()["label"].to_pylist())
    for k in range(6):
        assert (ranked.confidence[label == str(k)] >= 0.95).mean() < 0.2


def test_the_ranking_holds_at_least_as_far_as_is_said(run):
    found = inrun.agreement(run)
    assert found.visits == EPOCHS
    assert 0 < found.table["another_training"][0].as_py() < 1
    assert found.table["between_labels"][0].as_py() > 0.2
