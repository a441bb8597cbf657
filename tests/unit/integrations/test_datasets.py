"""What a callback tells a stored run of its trainer's samples."""

import pytest
import torch
from torch import nn

import inrun
from inrun.integrations._datasets import describe

datasets = pytest.importorskip("datasets")
CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def run_of(folder, ids):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(8, 3), torch.randint(2, (8,))
    loss = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])  # noqa: E731
    settings = inrun.Options(progress=False)
    utility = inrun.Utility(loss, (x, y))
    with inrun.attach(model, optimizer, utility, store=folder, options=settings) as attribution:
        assert "no step scored" in repr(attribution)
        with attribution.batch(ids):
            loss(model, (x[: len(ids)], y[: len(ids)])).backward()
        optimizer.step()
    assert "last scored step 1" in repr(attribution)
    return inrun.load(folder)


def test_samples_that_were_visited_have_their_texts_and_sources(tmp_path):
    run = run_of(tmp_path / "run", [4, 0, 2])
    rows = {"text": list("abcde"), "source": list("xyxyx"), "input_ids": [[1, 2]] * 5}
    describe(run.path, datasets.Dataset.from_dict(rows), None)
    assert run.samples().to_pylist() == [
        {"sample_id": i, "text": "abcde"[i], "source": "x"} for i in (0, 2, 4)
    ]
    describe(run.path, datasets.Dataset.from_dict({"text": list("vwxyz")}), None)
    assert run.samples()["text"].to_pylist() == ["a", "c", "e"]  # told before: left alone
    shares = inrun.rollup(run, "source").table
    assert shares["group"].to_pylist() == ["x"]


def test_chats_become_one_text(tmp_path):
    run = run_of(tmp_path / "run", [0, 1])
    rows = datasets.Dataset.from_dict({"prompt": [CHAT[:1]] * 2, "completion": [CHAT[1:]] * 2})
    describe(run.path, rows, None)
    assert run.samples()["text"][1].as_py() == "user: 2 + 2?\nassistant: 4"


def test_ids_of_a_column_are_joined_by_it(tmp_path):
    run = run_of(tmp_path / "run", ["c", "a"])
    rows = datasets.Dataset.from_dict({"name": list("abc"), "text": ["one", "two", "three"]})
    describe(run.path, rows, "name")
    assert run.samples().select(["sample_id", "text"]).to_pylist() == [
        {"sample_id": "a", "text": "one"}, {"sample_id": "c", "text": "three"},
    ]  # fmt: skip


@pytest.mark.parametrize("ids", [["0:1", "0:0"], [7, 1]])
def test_parts_of_packed_rows_and_ids_of_other_data_are_not_described(ids, tmp_path):
    run = run_of(tmp_path / "run", ids)
    describe(run.path, datasets.Dataset.from_dict({"text": ["one", "two"]}), None)
    assert run.samples() is None
    describe(run.path, [{"text": "one"}, {"text": "two"}], None)
    assert run.samples() is None


def test_a_data_set_is_samples_by_position(tmp_path):
    run = run_of(tmp_path / "run", [1, 0])
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "source": ["x", "y"]})
    groups = inrun.rollup(run, "source", samples=rows).table["group"].to_pylist()
    assert sorted(groups) == ["x", "y"]
