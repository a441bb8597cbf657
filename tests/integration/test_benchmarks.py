"""Benchmarks fit the library, and the games that they play out are the games that they say."""

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.claims import CLAIMS
from benchmarks.compared import above, below, by_seed, compared, require, sentence
from benchmarks.gradient_sizes import measure
from benchmarks.interaction.cell import SAMPLES, Cell, Setting
from benchmarks.overhead.__main__ import grid
from benchmarks.overhead.cell import Cell as Cost
from benchmarks.overhead.cell import times
from benchmarks.overhead.methods import METHODS, Size, method_of
from benchmarks.overview import TOPICS
from benchmarks.results_file import RESULTS
from benchmarks.tools import experiment
from benchmarks.tools.frame import LENGTH, VOCABULARY, Frame, Gpt2
from benchmarks.window import cell as windows
from benchmarks.window.page import arms
from benchmarks.window.tasks import Setting as Windowed
from benchmarks.window.tasks import schedule, task_of

DOCS = Path(__file__).parents[2] / "docs"
MINIATURE = Size(layers=1, width=64, batch=2, tokens=8, vocabulary=50)


@pytest.fixture(autouse=True)
def _random_text(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(50, (40, 8), generator=generator), torch.randint(50, (2, 8))
    monkeypatch.setattr(Size, "text", lambda self: text)


def test_every_way_to_train_is_timed(monkeypatch):
    monkeypatch.setattr("benchmarks.overhead.cell.WARM_UP", 1)
    monkeypatch.setattr("benchmarks.overhead.cell.TURNS", 2)
    for name in METHODS:
        found = times(MINIATURE, method_of(name))
        assert all(with_it > 0 for with_it in found["seconds"])
        ratios = [a / b for a, b in zip(found["seconds"], found["plain"], strict=True)]
        assert found["ratio"] == ratios
    assert {Cost.of(key).method for key in grid(small=False, large=False)} == {*METHODS, "plain"}


def test_what_gradient_sizes_cost_is_timed(monkeypatch):
    monkeypatch.setattr("benchmarks.gradient_sizes.WARM_UP", 0)
    monkeypatch.setattr("benchmarks.gradient_sizes.TURNS", 1)
    found = measure(MINIATURE)
    assert found["with / plain"] == pytest.approx(
        found["with / without"] * found["without / plain"], rel=0.05
    )


@pytest.mark.parametrize(("loss", "interacts"), [("cross-entropy", False), ("info-nce", True)])
def test_leaving_rows_out_is_the_game_of_own_slots_where_nothing_interacts(loss, interacts):
    cell = Cell(Setting(loss, "adamw"))
    batch = tuple(t[:SAMPLES] for t in cell.data)
    truths = cell._check(batch)["truths"]
    assert np.allclose(truths["own slots"], truths["left out"], rtol=1e-6) is not interacts
    assert not np.allclose(truths["left out"], truths["left out, divided anew"], rtol=1e-6)


def test_windows_are_held_against_a_training_of_the_same_bits(monkeypatch):
    monkeypatch.setattr(windows, "LENGTHS", ("3",))
    setting = Windowed("digits", 3e-3)
    task = task_of(setting)
    short = dataclasses.replace(task, order=task.order[:19])
    found = windows.measured(setting, lambda: copy.deepcopy(short))
    assert found["same_weights"]
    arm = found["arms"]["3"]
    assert [arm["whole"]["steps"], len(arm["thirds"])] == [3, 3]
    assert 0.8 < arm["whole"]["spearman"] < 1


def test_exact_values_agree_with_themselves_and_a_larger_one_is_left_out_of_the_trimmed():
    exact = np.arange(200.0)
    found = np.append(exact[:-1], -1e9)
    measured = windows.agreement("", found, exact)
    assert measured["pearson"] < 0.1
    assert measured["pearson_trimmed"] == pytest.approx(1)
    assert measured["spearman_trimmed"] == pytest.approx(1)


def test_a_schedule_rises_to_one_and_falls_to_its_last_factor():
    factors = np.array(schedule(80))
    assert factors.argmax() == 19
    assert factors.max() == 1
    assert (np.diff(factors[:20]) > 0).all()
    assert (np.diff(factors[19:]) < 0).all()
    assert factors[-1] == pytest.approx(0.05)


def test_the_ledger_promises_no_more_of_windows_than_any_measured_training_had():
    stored = json.loads((RESULTS / "window.json").read_text())["cells"]
    cells = {Windowed.of(key): cell["result"] for key, cell in stored.items()}
    found = list(arms(cells))
    assert len(found) > 100
    assert not [arm for arm in found if arm.missed]


def test_holms_correction_lets_no_smaller_p_value_be_further_from_a_claim():
    """By hand, from three p values 0.01, 0.04, 0.03 of two seeds' gains each."""
    gains = {}
    for name, p in (("a", 0.01), ("b", 0.04), ("c", 0.03)):
        t = np.tan(np.pi * (1 - p) / 2)  # Student's t of one degree of freedom is Cauchy's
        gains[name] = [1 + 1 / t, 1 - 1 / t]
    found = compared(gains)
    np.testing.assert_allclose([found[name].p for name in "abc"], [0.03, 0.06, 0.06])
    assert above(found) == ["a"]
    assert below(compared({name: [-x for x in numbers] for name, numbers in gains.items()})) == [
        "a"
    ]
    assert (
        sentence(found, "`chance`")
        == "above `chance`: `a`; below it: none; not told from it: `b`, `c`"
    )
    with pytest.raises(ValueError, match="do not say: that b is better"):
        require("b" in above(found), "that b is better.")


def _frame(samples=8, queries=2):
    torch.manual_seed(0)
    words = torch.randint(VOCABULARY, (samples + queries, LENGTH))
    start = {name: p.clone() for name, p in Gpt2().state_dict().items()}
    batches = list(torch.randperm(samples).repeat(2).split(4))
    frame = Frame(words[:samples], words[samples:], batches, [1, 5], 1e-3, start, start)
    frame.finished = experiment.trained(frame).state_dict()
    return frame


def test_other_tools_are_given_a_model_that_sees_no_later_word():
    model, words = _frame().model(), torch.randint(VOCABULARY, (1, LENGTH))
    changed = words.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % VOCABULARY
    a, b = model(words), model(changed)
    assert torch.equal(a[:, :5], b[:, :5])
    assert not torch.allclose(a[:, 5:], b[:, 5:])


def test_the_recorded_training_is_the_one_that_other_tools_are_given(monkeypatch):
    frame = _frame()
    monkeypatch.setattr("sys.argv", ["", "", "", "look-ahead"])
    monkeypatch.setattr(experiment, "SAMPLES", len(frame.words))
    said = experiment.values(frame, Path())
    assert frame.away(said.finished) == 0
    assert frame.away(frame.start) == pytest.approx(1)
    moved = experiment.moved(frame)
    assert 0 < frame.away(experiment.trained(moved).state_dict()) < 0.1


def test_gains_are_averaged_within_a_seed():
    cells = [(0, 1.0), (1, 5.0), (0, 3.0)]
    assert by_seed(cells, lambda c: c[0], lambda c: c[1]) == [2.0, 5.0]


def test_every_claim_has_its_section_with_rows_and_a_page_that_the_site_lists():
    listed = (DOCS / "index.md").read_text().split("evidence/")
    pages = {part.split("\n")[0] for part in listed}
    assert {topic.name for topic in TOPICS} == set(CLAIMS)
    for topic in TOPICS:
        cells = json.loads((RESULTS / f"{topic.name}.json").read_text())["cells"]
        rows = topic.source.summary(cells)
        assert len(rows) >= 1
        assert all(what and ours for what, ours, _ in rows), topic.name
        if topic.page:
            assert topic.page.removeprefix("evidence/").removesuffix(".md") in pages
            assert (DOCS / topic.page).exists()
