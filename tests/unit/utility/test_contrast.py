"""A behaviour as a utility: its loss is the margin, and its control sees what only resembles."""

import pytest
import torch
from torch import nn

import inrun
from inrun.errors import MisuseError
from inrun.utility import evaluate, losses_of
from tests.settings import flat


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def answers():
    """Prompts with one wanted and one unwanted class of three."""
    torch.manual_seed(0)
    x = torch.randn(8, 4, dtype=torch.float64)
    return (x, torch.ones(8).long()), (x, torch.zeros(8).long())


def model_of():
    torch.manual_seed(1)
    return nn.Linear(4, 3).double()


def test_losses_and_gradients_are_the_difference_and_the_mean_of_both_answers(answers):
    model, (good, bad) = model_of(), answers
    utility = inrun.contrast(good, bad, loss_fn=loss_fn)
    wanted, unwanted = loss_fn(model, good), loss_fn(model, bad)
    expected = torch.stack([wanted - unwanted, (wanted + unwanted) / 2])
    torch.testing.assert_close(losses_of(utility, model), expected.detach())
    found = evaluate(utility, model, dict(model.named_parameters()))
    for k in (0, 1):
        (own,) = torch.autograd.grad(expected[k], model.weight, retain_graph=True)
        torch.testing.assert_close(found.gradients["weight"][k], own)


def test_parts_of_a_batch_give_the_same_margin(answers):
    """`batch_size` cuts both answers at the same prompts: values are those of one pass."""
    found = []
    for size in (None, 3):
        model, (good, bad) = model_of(), answers
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        utility = inrun.contrast(good, bad, loss_fn=loss_fn, batch_size=size)
        attribution = inrun.attach(model, optimizer, utility, **flat(progress=False))
        with attribution.batch([0, 1]):
            loss_fn(model, (good[0][:2], torch.tensor([1, 2]))).backward()
        optimizer.step()
        found.append(attribution.values())
        attribution.detach()
    for column in ("value", "margin", "control"):
        assert found[0][column].to_pylist() == pytest.approx(found[1][column].to_pylist())


def test_what_teaches_the_answer_has_margin_and_what_resembles_has_control(answers):
    """Sample 0 teaches the wanted class, 1 the unwanted, 2 that it is one of the two."""
    model, (good, bad) = model_of(), answers
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    attribution = inrun.attach(
        model, optimizer, inrun.contrast(good, bad, loss_fn=loss_fn), **flat(progress=False)
    )
    rows, probability = (
        good[0].mean(0).repeat(3, 1),
        torch.tensor([[0, 1, 0], [1, 0, 0], [0.5, 0.5, 0]]).double(),
    )
    for _ in range(5):
        with attribution.batch([0, 1, 2]):
            nn.functional.cross_entropy(model(rows), probability).backward()
        optimizer.step()
        optimizer.zero_grad()
    rows = {row["sample_id"]: row for row in attribution.values().to_pylist()}
    assert rows[0]["value"] == rows[0]["margin"] > 0 > rows[1]["value"]
    assert abs(rows[2]["margin"]) < 0.1 * rows[0]["margin"]
    assert rows[2]["control"] > 0
    attribution.detach()


def test_a_control_of_ones_own_is_its_own_loss(answers):
    model, (good, bad) = model_of(), answers
    benign = (good[0] + 1, torch.full((8,), 2))
    utility = inrun.contrast(good, bad, control=benign, loss_fn=loss_fn)
    torch.testing.assert_close(losses_of(utility, model)[1], loss_fn(model, benign).detach())


def test_each_of_several_behaviours_has_its_margin_and_its_control(answers):
    model, (good, bad) = model_of(), answers
    other = (good[0] - 1, torch.full((8,), 2))
    benign = (good[0] + 1, torch.full((8,), 2))
    several = {"refuses": (good, bad), "flatters": (other, good, benign)}
    utility = inrun.contrast(several, loss_fn=loss_fn)
    assert utility.targets == ("refuses", "refuses control", "flatters", "flatters control")
    assert utility.weights == (0.5, 0.0, 0.5, 0.0)
    parts = [inrun.contrast(good, bad, loss_fn=loss_fn),
             inrun.contrast(other, good, control=benign, loss_fn=loss_fn)]  # fmt: skip
    alone = torch.cat([losses_of(part, model) for part in parts])
    torch.testing.assert_close(losses_of(utility, model), alone)


def test_several_behaviours_are_refused_where_they_are_no_pairs(answers):
    good, bad = answers
    for given in (good, {}, {"refuses": good + bad}, {"refuses": good[0]}):
        with pytest.raises(MisuseError, match="several behaviours by name"):
            inrun.contrast(given, loss_fn=loss_fn)
    with pytest.raises(MisuseError, match="of 'refuses' has 8 rows and bad 7"):
        inrun.contrast({"refuses": (good, tuple(t[:7] for t in bad))}, loss_fn=loss_fn)


def test_answers_to_other_numbers_of_prompts_are_refused(answers):
    good, bad = answers
    with pytest.raises(MisuseError, match="8 rows and bad 7"):
        inrun.contrast(good, tuple(t[:7] for t in bad), loss_fn=loss_fn)
