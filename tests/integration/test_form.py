"""The benchmark of form or content: what is trained, what is asked, and one cell in small."""

import numpy as np
import torch
from benchmarks.form import cell
from benchmarks.form.rows import ALONE, FORMATS, TASKS, drawn


def test_questions_ask_in_the_format_that_their_fact_was_not_trained_in():
    rows, asked, words = drawn(3)
    trained = set(zip(rows.facts, [form for _, form in rows.groups], strict=True))
    for fact, (_, form) in zip(asked.facts, asked.groups, strict=True):
        (other,) = set(FORMATS) - {form}
        assert (fact, form) not in trained
        assert (fact, other) in trained
    assert len(asked.facts) == ALONE * len(TASKS) * len(FORMATS)
    assert int(torch.cat([rows.prompts.flatten(), asked.prompts.flatten()]).max()) < words
    everyone = cell.Experiment(3)
    for group in everyone.groups:  # of every group the same number stays and goes
        assert len(rows.of(group)) == 25
        assert len(cell.left_out(everyone, group)) == 20
        gone = {rows.facts[i] for i in cell.left_out(everyone, group).tolist()}
        assert not gone & set(asked.facts)


def test_a_cell_tells_effects_by_group_and_look_ahead_names_a_questions_own_fact():
    experiment = cell.Experiment(0, epochs=2)
    found = cell.measured(experiment)
    names = [cell.told(group) for group in experiment.groups]
    assert list(found["retrained"]) == names
    numbers = [found["sums"][m][g][t] for m in cell.METHODS for g in names for t in names]
    assert np.isfinite(numbers).all()
    assert len(numbers) == 2 * 16
    # five own rows of a hundred: first to fifth place
    assert found["own fact"]["look-ahead"] == [3 / 50.5] * 4
