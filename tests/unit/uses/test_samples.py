"""Decisions of a live attribution are those of its store; contents that are the same thing."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import inrun
from inrun.errors import MisuseError
from inrun.uses import TIMES, duplicate_groups, outliers

ROWS = 24


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def attached(store):
    torch.manual_seed(0)
    x, y = torch.randn(3 * ROWS, 5), torch.arange(3 * ROWS) % 2
    model = nn.Linear(5, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    judged = slice(2 * ROWS, None)
    targets = {name: (x[judged][y[judged] == k], y[judged][y[judged] == k])
               for k, name in enumerate(("even", "odd"))}  # fmt: skip
    attribution = inrun.attach(
        model, optimizer, inrun.Utility(loss_fn, targets=targets), store=store
    )
    for ids in torch.arange(2 * ROWS).remainder(ROWS).split(6):
        with attribution.batch(ids):
            loss_fn(model, (x[ids], y[ids])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return attribution


SAMPLES = pa.table(
    {
        "sample_id": range(ROWS),
        "source": ["a", "b", "c"] * (ROWS // 3),
        "label": [0, 1] * (ROWS // 2),
    }
)
SEEN = {
    "sample_id": range(ROWS), "label": ["even", "odd"] * (ROWS // 2),
    "mean_loss": np.linspace(0.1, 2, ROWS), "even": np.linspace(0, 1, ROWS),
    "odd": np.linspace(1, 0, ROWS),
}  # fmt: skip
DECISIONS = {
    "harm profile": inrun.harm_profile,
    "label doubts": lambda run: inrun.label_doubts(run, SEEN),
    "prune": lambda run: inrun.prune(run, 0.25, samples=SAMPLES),
    "rollup": lambda run: inrun.rollup(run, samples=SAMPLES),
    "trace": lambda run: inrun.trace(run, "odd"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    store = tmp_path_factory.mktemp("live") / "run"
    attribution = attached(store)
    attribution.flush()
    return attribution, inrun.load(store)


@pytest.mark.parametrize("name", DECISIONS)
def test_a_live_attribution_is_decided_on_as_its_store_is(name, runs):
    live, stored = (DECISIONS[name](run) for run in runs)
    assert live.to_arrow().equals(stored.to_arrow())
    assert repr(live) == repr(stored)
    assert live.to_arrow().num_rows >= 3


def test_an_attribution_without_a_store_says_what_it_would_need():
    attribution = attached(None)
    with pytest.raises(MisuseError, match="store"):
        inrun.prune(attribution, 0.25)
    attribution.detach()


def test_values_out_of_all_proportion_are_flagged():
    values = np.array([0.0, 1.0, -1.0, 1.0, TIMES + 0.1, -TIMES + 0.1])
    assert outliers(values).tolist() == [False] * 4 + [True, False]
    assert not outliers(np.zeros(3)).any()


def test_contents_are_the_same_up_to_case_spaces_and_form():
    table = pa.table({"sample_id": range(4), "text": ["A  b", "a b", "\uff41 b", "ab"]})
    assert duplicate_groups(table).tolist() == [0, 0, 0, -1]
