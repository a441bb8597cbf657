"""Traces: values split by token, against a run whose rows are the tokens; ranked sources."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import MisuseError
from inrun.replay import lookahead_parts
from tests.integration.stored import random_run, stored_run

SAMPLES, WORDS, CLASSES, STEPS = 8, 3, 5, 6


class Words(nn.Module):
    """Each word's class from the word alone, so that a word can be a row of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 4)
        self.out = nn.Linear(4, CLASSES)

    def forward(self, words):
        return self.out(torch.tanh(self.embed(words)))


GENERATOR = torch.Generator().manual_seed(1)
X = torch.randint(11, (SAMPLES, WORDS), generator=GENERATOR)
Y = torch.randint(CLASSES, (SAMPLES, WORDS), generator=GENERATOR)
ASKED = (torch.tensor([1, 4]), torch.tensor([0, 3])), (torch.tensor([7]), torch.tensor([2]))


def parts(model, batch):
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none").view(x.shape) / (
        x.numel()
    )


def losses(model, batch):
    return parts(model, batch).sum(1)


def word_losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none") / len(batch[0])


def utility():
    loss = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    return inrun.Utility(loss, targets={"first": ASKED[0], "second": ASKED[1]})


def recorded(terms, fetch, rows_of):
    """The same training, its rows being samples or their words."""
    model = Words().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    recorder = inrun.record(model, optimizer, terms, fetch, clip_norm=0.5)
    for step in range(STEPS):
        samples = [(3 * step + k) % SAMPLES for k in range(4)]
        ids = rows_of(samples)
        with recorder.batch(ids):
            terms(model, fetch(ids)).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return recorder.finish()


@pytest.fixture(scope="module")
def by_sample():
    return recorded(losses, lambda ids: (X[ids], Y[ids]), lambda samples: samples)


def test_a_tokens_value_is_what_it_has_as_a_row_of_its_own(by_sample):
    def rows_of(samples):
        return [s * WORDS + t for s in samples for t in range(WORDS)]

    by_word = recorded(word_losses, lambda ids: (X.flatten()[ids], Y.flatten()[ids]), rows_of)
    table = inrun.lookahead(by_word, utility(), removal="drop", damped=False).values().to_pylist()
    wanted = {row["sample_id"]: [row["first"], row["second"]] for row in table}
    found = lookahead_parts(by_sample, utility(), range(SAMPLES), parts, damped=False)
    for sample, values in found.items():
        for t in range(WORDS):
            np.testing.assert_allclose(values[t], wanted[sample * WORDS + t], rtol=1e-8, atol=1e-14)


def test_tokens_add_up_to_their_samples_value(by_sample):
    trace = inrun.trace(by_sample, utility(), token_losses=parts, top=SAMPLES)
    assert len(trace.tokens) == 2 * SAMPLES
    for row in trace.table.to_pylist():
        assert sum(trace.tokens[row["query"], row["sample_id"]]) == pytest.approx(row["value"])


def test_sources_are_ranked_by_what_they_took_off_the_query(by_sample):
    trace = inrun.trace(by_sample, utility())
    values = inrun.lookahead(by_sample, utility(), removal="drop").values()
    for query in ("first", "second"):
        rows = trace.of(query).to_pylist()
        assert [row["rank"] for row in rows] == list(range(1, SAMPLES + 1))
        assert [row["value"] for row in rows] == sorted(values[query].to_pylist(), reverse=True)
        assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    with pytest.raises(MisuseError, match="first, second"):
        trace.of("third")


def test_states_alone_give_a_ranking_too(by_sample):
    trace = inrun.trace(by_sample, utility(), method="tracin", states=1)
    assert trace.method == "tracin"
    assert trace.table.num_rows == 2 * SAMPLES


def test_a_target_named_before_training_needs_no_recording(tmp_path):
    run = random_run(tmp_path / "run", 12, targets=("a", "b"))
    values = run.values()
    best = inrun.trace(run, "b", standardised=False).table["sample_id"][0].as_py()
    assert best == int(np.argmax(values["b"].to_numpy()))
    assert inrun.trace(run).table.num_rows == 24
    with pytest.raises(MisuseError, match="no target 'c'; it has a, b"):
        inrun.trace(run, "c")


def standardised(visits, column):
    """By sample, visit for visit, by the definition."""
    found, of = {}, {}
    for visit in visits:
        of.setdefault(visit["step"], []).append(visit[column])
    steps = sorted(of)
    for visit in visits:
        step, k = np.array(of[visit["step"]]), steps.index(visit["step"])
        around = [np.std(of[s]) for s in steps[max(0, k - 4) : k + 5]]
        few = len(visits) < 4 * len({v["sample_id"] for v in visits}) and len(step) < 16
        scale = np.median(around) if few else step.std()
        score = (visit[column] - step.mean()) / scale if scale else 0.0
        found[visit["sample_id"]] = found.get(visit["sample_id"], 0.0) + score
    return found


@pytest.mark.parametrize(("batch", "visits"), [(5, 2), (5, 6), (16, 2)])
def test_named_targets_are_ranked_by_how_far_visits_stand_out(tmp_path, batch, visits):
    run = random_run(tmp_path / "run", 20, epochs=visits, batch=batch, targets=("a", "b"))
    wanted = standardised(run.visits().to_pylist(), "b")
    rows = inrun.trace(run, "b").table.to_pylist()
    assert {row["sample_id"]: row["score"] for row in rows} == pytest.approx(wanted)
    assert [row["sample_id"] for row in rows] == sorted(wanted, key=wanted.get, reverse=True)


def test_an_early_visit_alone_makes_no_source(tmp_path):
    """All first-step values are large; the source stands out in its own, late step."""
    step = np.repeat([1, 2], 5)
    values = np.r_[np.full(5, 10.0) + np.arange(5) * 0.01, 0.1, 0.1, 0.1, 0.1, 0.9][:, None]
    run = stored_run(tmp_path / "run", values, np.arange(10), step, range(10))
    assert inrun.trace(run).table["sample_id"][0].as_py() == 9
    assert inrun.trace(run, standardised=False).table["sample_id"][0].as_py() == 4


def test_the_best_of_a_small_batch_need_not_stand_out(tmp_path):
    """Each step's best is sqrt(2) of its own deviations away; one alone is far away by others'."""
    step, values = np.repeat(np.arange(1, 10), 3), np.tile([0.0, 0.0, 1.0], 9)
    values[14] = 30.0
    run = stored_run(tmp_path / "run", values[:, None], np.arange(27), step, range(27))
    first, second = inrun.trace(run).table.slice(0, 2).to_pylist()
    assert first["sample_id"] == 14
    assert first["score"] > 20 * second["score"]


def test_what_does_not_fit_is_said(by_sample, tmp_path):
    with pytest.raises(MisuseError, match="not one of look-ahead, tracin, named"):
        inrun.trace(by_sample, utility(), method="magic")
    with pytest.raises(MisuseError, match="'named' reads a stored run"):
        inrun.trace(by_sample, utility(), method="named")
    with pytest.raises(MisuseError, match="one target a query"):
        inrun.trace(by_sample, "first")
    with pytest.raises(MisuseError, match="do not add up"):
        inrun.trace(by_sample, utility(), token_losses=lambda m, b: 2 * parts(m, b))
