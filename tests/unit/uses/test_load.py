"""`inrun.load` opens whatever inrun stored, and says what else it would need."""

import pytest
import torch

import inrun
from inrun.errors import MisuseError, StoreError
from tests.integration.stored import random_run


def score(arm, seed):
    return len(arm) + seed % 2 / 10


def test_a_check_of_a_selection_reads_back_as_it_was(tmp_path):
    path = tmp_path / "check.jsonl"
    made = inrun.select.check(score, ("chosen", "rand"), seeds=3, store=path)
    read = inrun.load(path)
    assert (read.scores, read.choice, read.supported) == (made.scores, "chosen", True)
    assert read.to_arrow().equals(made.to_arrow())


def test_a_check_of_a_pruning_that_was_cut_off_has_the_seeds_that_are_whole(tmp_path):
    run, path = random_run(tmp_path / "run", 20), tmp_path / "check.jsonl"
    pruning = inrun.prune(run, 0.2)
    made = inrun.check_pruning(pruning, score, seeds=3, store=path)
    assert inrun.load(path).verdict == made.verdict
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    read = inrun.load(path)
    assert {arm: len(scores) for arm, scores in read.scores.items()} == dict.fromkeys(
        made.scores, 2
    )
    assert read.saved == pytest.approx(0.2)
    path.write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(StoreError, match="no seed that every arm"):
        inrun.load(path)


def test_fewer_seeds_than_the_file_holds_are_the_first(tmp_path):
    path = tmp_path / "check.jsonl"
    inrun.select.check(score, ("chosen", "rand"), seeds=4, store=path)
    again = inrun.select.check(score, ("chosen", "rand"), seeds=2, store=path)
    assert [len(scores) for scores in again.scores.values()] == [2, 2]


@pytest.mark.parametrize("content", ["", "{", '{"a": 1}', '{"results": 1}', "[1]"])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "check.jsonl"
    path.write_text(content)
    with pytest.raises(StoreError, match=str(path.name)):
        inrun.load(path)


def test_a_run_needs_nothing_and_a_recorded_run_its_model(tmp_path):
    assert isinstance(inrun.load(random_run(tmp_path / "run", 5).path), inrun.Run)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, 2)

    def losses(model, batch):
        return model(batch).square().mean(1) / len(batch)

    def fetch(ids):
        return x[list(ids)]

    recorder = inrun.record(model, optimizer, losses, fetch, tmp_path / "recorded")
    with recorder.batch([0, 1]):
        losses(model, fetch([0, 1])).sum().backward()
    optimizer.step()
    recorder.finish()
    with pytest.raises(MisuseError, match=r"inrun\.Replayable\(model, optimizer"):
        inrun.load(tmp_path / "recorded")
    again = inrun.load(tmp_path / "recorded", inrun.Replayable(model, optimizer, losses, fetch))
    assert isinstance(again, inrun.Trajectory)
    again.check()
    truth = inrun.truth.retrain(
        again, inrun.Utility(lambda m, b: m(b).square().mean(), x), [0, 1], store=tmp_path / "t"
    )
    assert inrun.load(tmp_path / "t").equals(truth)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(StoreError, match="not a run"):
        inrun.load(tmp_path)
    with pytest.raises(MisuseError, match="names no folder"):
        inrun.load(" ")
