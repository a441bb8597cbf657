"""DistributedDataParallel on two and three processes: values and books are those of one process."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import inrun
from inrun.errors import NotSupportedError
from inrun.ledger import ENTRIES
from tests.integration import several_processes as script
from tests.processes import run_together


@pytest.fixture(scope="module", params=[2, 3])
def several(request, tmp_path_factory):
    """The folder in which so many processes left their tables."""
    folder = tmp_path_factory.mktemp(f"on{request.param}")
    run_together(script, folder, request.param)
    return folder, request.param


@pytest.fixture(scope="module")
def folder_of_one(tmp_path_factory):
    return tmp_path_factory.mktemp("on1")


@pytest.fixture(scope="module")
def one(folder_of_one):
    return {
        name: script.run(folder_of_one, name, **options) for name, options in script.CASES.items()
    }


@pytest.mark.parametrize("name", script.CASES)
def test_values_and_books_are_those_of_one_process(name, several, one):
    folder, _ = several
    expected = one[name].values()
    stored, told = inrun.load(folder / name), pq.read_table(folder / f"{name}.parquet")
    counted = ["sample_id", "visits", "first_step", "last_step"]
    assert stored.values().select(counted).equals(expected.select(counted))
    # one process's own values are 4e-6 of the largest off those of double precision
    rtol = 2e-6 if "single precision" in name else 1e-10
    size = rtol * np.abs(expected["value"].to_numpy()).max()
    for found in (stored.values(), told):
        np.testing.assert_allclose(
            found["value"].to_numpy(), expected["value"].to_numpy(), rtol=rtol, atol=size
        )
    if "gradient_sizes" in script.CASES[name]:
        order = [("step", "ascending"), ("sample_id", "ascending")]
        sizes, alone = (
            run.visits().sort_by(order)["gradient_size"].to_numpy() for run in (stored, one[name])
        )
        np.testing.assert_allclose(sizes, alone, rtol=1e-9)
    books, truth = stored.ledger(), one[name].ledger()
    assert books["visits"].equals(truth["visits"])
    for entry in ("opening_loss", "closing_loss", *ENTRIES):
        np.testing.assert_allclose(
            books[entry].to_numpy(), truth[entry].to_numpy(), rtol=rtol, atol=size
        )


@pytest.mark.parametrize(
    "name", [name for name, o in script.CASES.items() if "momentum_window" in o]
)
def test_what_momentum_pays_is_what_it_pays_in_one_process(name, several, one, folder_of_one):
    folder, _ = several
    found, told = inrun.load(folder / name), pq.read_table(folder / f"{name}.parquet")
    expected = one[name].values()["paid_out"].to_numpy()
    size = np.abs(expected).max()
    assert size > 0
    for table in (found.values(), told):
        np.testing.assert_allclose(table["paid_out"].to_numpy(), expected, atol=1e-10 * size)
    books, truth = found.ledger()["paid_out"], one[name].ledger()["paid_out"]
    np.testing.assert_allclose(books.to_numpy(), truth.to_numpy(), atol=1e-10 * size)
    balance = json.loads((folder / f"{name}.json").read_text())
    assert balance["still_in_momentum"] != 0
    alone = json.loads((folder_of_one / f"{name}.json").read_text())
    assert balance == pytest.approx(alone, rel=1e-9, abs=1e-9 * size)
    assert one[name].balance()["still_in_momentum"] == 0


def test_every_process_resumes_from_the_first_ones_state(several):
    folder, processes = several
    tables = [pq.read_table(folder / f"resumed-{rank}.parquet") for rank in range(processes)]
    assert all(table.equals(tables[0]) for table in tables)
    assert tables[0]["visits"].to_pylist() == [1] * 36
    books = [pq.read_table(folder / f"resumed-books-{rank}.parquet") for rank in range(processes)]
    assert all(book.equals(books[0]) for book in books)
    assert books[0].equals(inrun.load(folder / "to resume").ledger())
    assert books[0].num_rows == script.STEPS + 1


def test_sharded_training_is_untouched_in_full_and_in_mixed_precision(several):
    folder, processes = several
    found = [json.loads((folder / f"untouched-{rank}").read_text()) for rank in range(processes)]
    for kind, limit in {"full": 0.02, "mixed": 0.1}.items():
        assert all(one[kind]["same"] for one in found)
        assert all(one[kind]["covered"] == 1.0 for one in found)
        assert all(one[kind]["values"] == found[0][kind]["values"] for one in found)
        assert found[0][kind]["residual"] < limit
    full, mixed = (np.array(found[0][kind]["values"]) for kind in ("full", "mixed"))
    assert np.corrcoef(full, mixed)[0, 1] > 0.98


SAID = {
    "penalty": "InvariantError: .* do not sum",
    "no block": "MisuseError: .* has come to .*, and another one to .*no ids",
    "fewer blocks": "MisuseError: .* has come to .*, and another one to .* block",
    "record": "NotSupportedError: .* played again on whole copies",
    "join": "NotSupportedError: .* trains under Join",
    "muon": "NotSupportedError: Muon steps by whole matrices",
    "second": "NotSupportedError: .* second derivative",
    "stream": "NotSupportedError: .* capture='hold'",
    "alone": "MisuseError: .* Pass process_group=",
    "left out": "NotSupportedError: 1.weight is trained and not under fully_shard",
    "divisor": "NotSupportedError: set_gradient_divide_factor",
    "tensor parallelism": "NotSupportedError: .*tensor parallelism",
    "unreduced": "MisuseError: Gradients still wait to be reduced",
    "audit": "NotSupportedError: An audit plays",
    "tokens": "NotSupportedError: Values per token",
}


def test_what_cannot_be_done_is_said_in_every_process_alike(several):
    folder, processes = several
    for rank in range(processes):
        said = json.loads((folder / f"said-{rank}").read_text())
        assert said.keys() == SAID.keys()
        assert [w for w, pattern in SAID.items() if not re.match(pattern, said[w])] == []


def test_an_audit_plays_everyones_samples(several):
    folder, processes = several
    checks = [pq.read_table(folder / f"audit-{rank}.parquet") for rank in range(processes)]
    assert all(table.equals(checks[0]) for table in checks)
    books = pq.read_table(folder / "audited-0.parquet")["samples"].to_pylist()
    rows = checks[0].to_pylist()
    assert len(rows) == 4
    for row in rows:
        assert row["samples"] == 9
        assert sum(row["values"]) == pytest.approx(books[row["step"] - 1])
        assert sum(row["truth"]) == pytest.approx(sum(row["values"]), rel=0.05)
        assert row["pearson"] > 0.99


def test_sharded_and_threaded_models_are_refused():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    utility = inrun.Utility(lambda m, b: m(b).sum(), torch.randn(4, 3))
    with pytest.raises(NotSupportedError, match="DistributedDataParallel, one process"):
        inrun.attach(nn.DataParallel(model), optimizer, utility)


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_is_refused_and_fsdp2_named(stage):
    class DeepSpeedEngine(nn.Module):
        """As that of DeepSpeed, which holds the module and whose optimizer is none of torch's."""

        def __init__(self, module):
            super().__init__()
            self.module, self.zero_stage = module, stage

    class DeepSpeedZeroOptimizer:
        pass

    utility = inrun.Utility(lambda m, b: m(b).sum(), torch.randn(4, 3))
    with pytest.raises(NotSupportedError, match=r"FSDP2.*fsdp_version: 2"):
        inrun.attach(DeepSpeedEngine(nn.Linear(3, 2)), DeepSpeedZeroOptimizer(), utility)
