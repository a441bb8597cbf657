"""What a change of the moments does later is what playing the real rule step by step says."""

import pytest
import torch

from inrun.optim import Along, derivative_of, moves, paired, post_step_terms_of, rule_for
from inrun.optim._derivative import Stepped
from inrun.optim._post_step_terms import ORDER, SERIES, AdamPostStepTerms

ELEMENTS, STEPS, ROWS, TARGETS = 40, 9, 5, 2
ROUNDING = 2e-15  # what the differences of real steps have lost
ADAMS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "coupled decay": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1, eps=1e-3),
    "maximize": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.5, 0.9), maximize=True),
}


def chain(build, dtype):
    """A run's moves: elements of all sizes, one that is never touched, one that is once."""
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(ELEMENTS, generator=generator).to(dtype))
    optimizer = build([p])
    rule, found = rule_for(optimizer), []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)  # settings may change on the way
        p.grad = torch.randn(ELEMENTS, generator=generator).to(dtype)
        p.grad *= 10.0 ** -torch.arange(ELEMENTS).remainder(6)
        p.grad[0] = 0
        p.grad[1] *= step == 0
        ((_, move),) = moves(optimizer, rule)
        found.append(move.frozen())
        optimizer.step()
    return found


def changes(move, sizes, generator):
    """The same step with other gradients, off by so much of the size of each element's own."""
    gradient = move.gradient * (
        1 + sizes.unsqueeze(1) * torch.randn(len(sizes), ELEMENTS, generator=generator)
    )
    return derivative_of(move.rule).moved(move, gradient.to(move.gradient))


def loss_changes(build, dtype, steps, sizes, kind):
    """Of the same changes after the first step, (R, K)."""
    generator = torch.Generator().manual_seed(1)
    found = chain(build, dtype)
    post_step_terms, olds = kind(steps), []
    for move in reversed(found):
        old = derivative_of(move.rule).moved(move, move.gradient)
        parts = torch.randn(3, TARGETS, ELEMENTS, generator=generator).to(old.weight)
        after = Along(parts[0], (parts[1], parts[2]))
        olds.append((old, after))
        if move is not found[0]:
            post_step_terms.advance(move, old, after)
    old, after = olds[-1]
    return post_step_terms.loss_change(changes(found[0], sizes, generator), old, after)


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e-1, 1.0, 10.0])
@pytest.mark.parametrize("name", ADAMS)
def test_all_steps_at_once_are_the_steps_one_by_one(name, size):
    """From changes that are all near to changes that are all far."""
    sizes = torch.full((ROWS,), size, dtype=torch.float64)
    found, wanted = (
        loss_changes(ADAMS[name], torch.float64, STEPS, sizes, kind)
        for kind in (AdamPostStepTerms, Stepped)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=ROUNDING)


@pytest.mark.parametrize("sizes", [[1e-2, 0.1, 0.3], [3.0] * 6 + [1e-2]])
def test_single_precision_keeps_its_digits(sizes):
    """Near, far and, where most are far, all elements of a row at once."""
    sizes = torch.tensor(sizes, dtype=torch.float64)
    found, wanted = (
        loss_changes(ADAMS["adamw"], dtype, STEPS, sizes, kind)
        for dtype, kind in ((torch.float32, AdamPostStepTerms), (torch.float64, Stepped))
    )
    assert (found - wanted).norm() < 1e-4 * wanted.norm()
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=0)


@pytest.mark.parametrize("steps", [1, 3])
def test_beyond_its_steps_a_far_change_goes_on_to_first_order(steps):
    """A ring that is full has forgotten the last steps, not the next ones."""
    sizes = torch.full((ROWS,), 30.0, dtype=torch.float64)
    found, wanted, whole = (
        loss_changes(ADAMS["adamw"], torch.float64, n, sizes, kind)
        for n, kind in ((steps, AdamPostStepTerms), (steps, Stepped), (STEPS, Stepped))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=0)
    assert (found - wanted).abs().max() < 0.1 * (whole - wanted).abs().max()


def test_a_small_change_has_no_last_step():
    """The series goes to the end, whatever the number of steps that are played."""
    sizes = torch.full((ROWS,), 1e-6, dtype=torch.float64)
    found, wanted = (
        loss_changes(ADAMS["adamw"], torch.float64, n, sizes, kind)
        for n, kind in ((1, AdamPostStepTerms), (STEPS, Stepped))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=ROUNDING)


def test_the_series_is_that_of_the_steps_own_bend():
    x, q = torch.tensor(0.01, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    powers_of_q = torch.stack([q**i for i in range(1, ORDER + 1)])
    powers_of_x = torch.stack([x**k for k in range(1, ORDER + 1)])
    found = 1 + powers_of_x @ (torch.tensor(SERIES, dtype=torch.float64) @ powers_of_q)
    wanted = 1 / (1 + q * ((1 + x).sqrt() - 1))
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=0)


def test_each_rule_has_the_aftermath_that_it_can_be_known_by():
    """SGD's is exact to first order; a largest second moment is played step by step."""
    sgd, largest = (
        chain(build, torch.float64)[1]
        for build in (
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
            lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
        )
    )
    old = derivative_of(sgd.rule).moved(sgd, sgd.gradient)
    after = Along(
        torch.randn(TARGETS, ELEMENTS).double(), (torch.ones(TARGETS, ELEMENTS).double(),)
    )
    new = Along(old.weight.expand(ROWS, -1), tuple(m + torch.ones(ROWS, 1) for m in old.moments))
    found = post_step_terms_of(sgd, 9).loss_change(new, old, after)
    assert torch.equal(found, paired(new.moments[0] - old.moments[0], after.moments[0]))
    assert isinstance(post_step_terms_of(largest, 9), Stepped)
