"""Rows of batches of any form, and validation passes."""

import numpy as np
import pytest
import torch
from torch import nn

from inrun.utility import (
    Utility,
    curvature,
    evaluate,
    losses_of,
    row_count,
    take_rows,
)


def nested(rows):
    return {"x": torch.arange(rows), "more": [np.arange(rows), (torch.ones(rows, 2), "label")]}


def test_rows_are_counted_and_taken_through_any_nesting():
    assert row_count(nested(5)) == 5
    taken = take_rows(nested(5), [3, 1])
    assert taken["x"].tolist() == [3, 1]
    assert taken["more"][0].tolist() == [3, 1]
    assert taken["more"][1][0].shape == (2, 2)
    assert taken["more"][1][1] == "label"


def test_rows_may_run_over_another_axis():
    x = torch.arange(12).reshape(3, 4)
    assert row_count((x,), axis=1) == 4
    assert take_rows((x,), [2], axis=1)[0].tolist() == [[2], [6], [10]]


@pytest.mark.parametrize("batch", [(torch.ones(3), torch.ones(4)), torch.ones(()), "text", []])
def test_a_batch_without_common_rows_has_none(batch):
    assert row_count(batch) is None


def quadratic():
    """V_k(w) = w^T A_k w / 2 with known gradients and Hessians."""
    model = nn.Linear(3, 1, bias=False).double()
    matrices = {"a": torch.diag(torch.tensor([1.0, 2.0, 3.0]).double()), "b": torch.eye(3).double()}
    utility = Utility(lambda m, A: (m.weight @ A @ m.weight.T).sum() / 2, targets=matrices)
    return model, utility, matrices


def test_gradients_and_curvature_are_those_of_each_target():
    model, utility, matrices = quadratic()
    parameters, w = dict(model.named_parameters()), model.weight.detach()
    found = evaluate(utility, model, parameters)
    along = torch.randn(1, 3).double()
    bent = curvature(utility, model, parameters, {"weight": along})
    for k, A in enumerate(matrices.values()):
        torch.testing.assert_close(found.gradients["weight"][k], w @ A)
        torch.testing.assert_close(bent["weight"][k], along @ A)
        torch.testing.assert_close(found.losses[k], (w @ A @ w.T).sum() / 2)
    torch.testing.assert_close(losses_of(utility, model), found.losses)
    assert model.weight.grad is None


def test_a_parameter_that_a_target_does_not_use_has_gradient_zero():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
    utility = Utility(lambda m, x: m["used"](x).sum(), torch.ones(4, 2))
    found = evaluate(utility, model, dict(model.named_parameters()))
    assert (found.gradients["unused.weight"] == 0).all()
