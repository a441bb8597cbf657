"""Stores of older versions: books without the newer entries, and numbers that are not finite."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import inrun
from inrun.cli._main import app
from inrun.ledger import LEDGER
from tests.integration.stored import as_older_version

pytestmark = pytest.mark.filterwarnings("ignore:.*no checksums")


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(60, 4), torch.randint(3, (60,))
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    utility = inrun.Utility(loss_fn, targets={"a": (x[40:50], y[40:50]), "b": (x[50:], y[50:])})
    attribution = inrun.attach(
        model, optimizer, utility, store=tmp_path / "run", options=inrun.Options(progress=False)
    )
    for _ in range(10):
        ids = torch.randint(40, (8,))
        with attribution.batch(ids):
            loss_fn(model, (x[ids], y[ids])).backward()
        optimizer.step()
        optimizer.zero_grad()
    attribution.detach()
    inrun.load(tmp_path / "run").describe(
        {"sample_id": list(range(40)), "source": ["xy"[i % 2] for i in range(40)]}
    )
    as_older_version(tmp_path / "run")
    return tmp_path / "run"


def without_newer_columns(run):
    part = run / "ledger" / "000000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["unattributed", "other", "note"]), part)


def with_nan(run, steps):
    for kind in ("visits", "ledger"):
        part = run / kind / "000000.parquet"
        table = pq.read_table(part)
        hit = np.isin(table["step"].to_numpy(), steps)
        for place, field in enumerate(table.schema):
            if pa.types.is_floating(field.type) and field.name not in ("weight", "paid_out"):
                column = np.where(hit, np.nan, table[field.name].to_numpy())
                table = table.set_column(place, field, pa.array(column, from_pandas=False))
        pq.write_table(table, part)


def test_books_without_the_newer_entries_are_read_with_nothing_in_them(run):
    before = inrun.load(run)
    ledger, balance = before.ledger(), before.balance()
    without_newer_columns(run)
    after = inrun.load(run)
    assert after.books().schema.equals(LEDGER)
    assert after.ledger() == ledger
    assert after.balance() == balance


@pytest.mark.parametrize("older", [True, False])
def test_what_is_not_finite_is_left_out_and_said(run, older):
    if older:
        without_newer_columns(run)
    with_nan(run, [3, 4])
    found = inrun.load(run)
    assert np.isfinite(found.values()["value"].to_numpy()).all()
    assert not set(found.visits()["step"].to_pylist()) & {3, 4}
    for row in found.ledger().to_pylist():
        assert all(math.isfinite(row[n]) for n in ("samples", "momentum", "weight_decay"))
        assert ("not finite" in row["note"]) == (row["step"] in (3, 4))
        assert math.isnan(row["residual"]) == (row["step"] in (3, 4))


def test_commands_survive_it(run):
    with_nan(run, [1, 10])
    for command in (["report"], ["prune"], ["rollup"]):
        done = CliRunner().invoke(app, [*command, str(run)])
        assert done.exit_code == 0, done.output
        assert "nan" not in done.output.lower()
