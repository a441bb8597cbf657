"""Shares of every layer type equal one sample at a time through plain autograd."""

import pytest
import torch

from inrun.capture import Hold, Offload, Stream, Watch, self_test
from inrun.factors import LowRank, Owned, share_squares
from inrun.owners import ownership
from inrun.utility import Utility
from tests.oracles import shares as oracle
from tests.oracles.cases import CASES, LANGUAGE_MODELS
from tests.oracles.fused_heads import HEADS
from tests.oracles.owner_cases import OWNED, REENTRANT
from tests.oracles.owner_models import MODELS

ALL = CASES + LANGUAGE_MODELS + OWNED + MODELS + HEADS
SAMPLES = [1, 2, 4, 5]


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def captured(case, model, inputs, kind=Hold, test=True):
    """A capture that learned its inputs from other rows than the ones that it will see."""
    capture = kind(model, trained(model))
    if test:
        self_test(capture, model, Utility(case.loss_fn, tuple(case.inputs(7))))
    return capture


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance / 100)


def owned(case, samples, inputs):
    return ownership(samples, **case.owned(samples, inputs))


def true_shares(case, model, inputs, samples):
    return oracle.shares(
        model, lambda m, rows: case.loss(m, case.alone(inputs, rows[0])), samples, trained(model)
    )


@pytest.mark.parametrize("samples", SAMPLES)
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_shares_are_each_samples_own_gradient(case, samples):
    model, inputs = case.model(), case.inputs(samples)
    capture = captured(case, model, inputs)
    with capture.block(owned(case, samples, inputs)) as block:
        case.loss(model, inputs).backward()
    assert capture.finish() == [False]
    expected = true_shares(case, model, inputs, samples)
    torch.manual_seed(0)
    for name, p in trained(model).items():
        factors = block.factors.get(name, [])
        found = sum(
            (f.materialize(p.dtype) for f in factors), torch.zeros(samples, *p.shape, dtype=p.dtype)
        )
        close(found, expected[name], case.tolerance)
        if not factors:
            continue
        assert all(factor.shape == p.shape for factor in factors)
        close(
            sum(factor.total(p.dtype) for factor in factors), expected[name].sum(0), case.tolerance
        )
        chosen = torch.arange(samples - 1, -1, -2)
        picked = sum(factor.select(chosen).materialize(p.dtype) for factor in factors)
        close(picked, expected[name][chosen], case.tolerance)
        squares = expected[name].reshape(samples, -1).square().sum(1)
        close(share_squares(factors, p.dtype), squares, 2 * case.tolerance)
        for K in (1, 3, 40):  # more directions than positions: shares are materialized
            Q = torch.randn(K, *p.shape, dtype=p.dtype)
            pushed = sum(factor.contract(Q) for factor in factors)
            close(pushed, expected[name].reshape(samples, -1) @ Q.reshape(K, -1).T, case.tolerance)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_stream_contracts_the_same_inside_the_backward_pass(case):
    samples, K = 4, 2
    model, inputs = case.model(), case.inputs(samples)
    torch.manual_seed(0)
    Q = {name: torch.randn(K, *p.shape, dtype=p.dtype) for name, p in trained(model).items()}
    capture = captured(case, model, inputs, Stream)
    watch = Watch(lambda name, factors: [factor.contract(Q[name]) for factor in factors])
    with capture.block(owned(case, samples, inputs), watch) as block:
        case.loss(model, inputs).backward()
    capture.finish()
    expected = true_shares(case, model, inputs, samples)
    close(
        block.values_BK,
        sum(expected[n].reshape(samples, -1) @ Q[n].reshape(K, -1).T for n in Q),
        case.tolerance,
    )
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_offload_keeps_the_same_shares_on_storage_of_its_own(case):
    samples = 4
    model, inputs = case.model(), case.inputs(samples)
    capture = captured(case, model, inputs, Offload)
    with capture.block(owned(case, samples, inputs)) as block:
        case.loss(model, inputs).backward()
    capture.finish()
    for x in inputs:
        x.zero_()  # what was moved is the run's own
    block.check_untouched()
    expected = true_shares(case, model, case.inputs(samples), samples)
    for name, factors in block.factors.items():
        found = sum(factor.materialize(expected[name].dtype) for factor in factors)
        close(found, expected[name], case.tolerance)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_gradients_are_bitwise_those_without_capture(case):
    plain, watched, inputs = case.model(), case.model(), case.inputs(4)
    capture = captured(case, watched, inputs)
    case.loss(plain, inputs).backward()
    with capture.block(owned(case, 4, inputs)):
        case.loss(watched, inputs).backward()
    for p, q in zip(plain.parameters(), watched.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)


def test_every_operation_rule_is_met_by_a_case():
    """Coverage says how: nothing that has a rule falls back without being noticed."""
    how = set()
    for case in ALL:
        model = case.model()
        capture = captured(case, model, case.inputs(4))
        how |= {
            entry
            for row in capture.coverage.table()["captured_as"].to_pylist()
            for entry in row.split(", ")
        }
    for expected in (
        "linear: outer", "linear: dense", "addmm: outer", "conv1d: convolution",
        "conv2d: convolution", "conv3d: convolution", "embedding: indexed", "layer_norm: dense",
        "group_norm: dense", "rms_norm: dense", "mul: dense", "add: dense", "matmul: outer",
        "linear: derived", "add: derived", "lstm: dense", "batch_norm: dense",
        "ChunkedLogProbFunction.apply: fusedhead",
        "LigerFusedLinearCrossEntropyFunction.apply: fusedhead",
    ):  # fmt: skip
        assert expected in how, sorted(how)


@pytest.mark.parametrize(
    "case", [c for c in HEADS if c.name in ("trl-head-compact", "trl-head-packed")],
    ids=lambda case: case.name,
)  # fmt: skip
def test_a_fused_head_whose_slots_lie_anywhere_is_met_by_owner(case):
    model, inputs = case.model(), case.inputs(4)
    capture = captured(case, model, inputs)
    with capture.block(owned(case, 4, inputs)):
        case.loss(model, inputs).backward()
    how = ", ".join(capture.coverage.table()["captured_as"].to_pylist())
    assert "ChunkedLogProbFunction.apply: owned" in how


@pytest.mark.parametrize("case", LANGUAGE_MODELS, ids=lambda case: case.name)
def test_owners_in_language_models_are_followed_by_rules_alone(case):
    model, inputs = case.model(), case.inputs(4)
    capture = captured(case, model, inputs)
    with capture.block(owned(case, 4, inputs)):
        case.loss(model, inputs).backward()
    assert set(capture.coverage.table()["owners"].to_pylist()) <= {"followed", ""}
    assert not capture.coverage.by_exchange


def test_a_checkpoint_with_reentry_is_followed():
    """Its truth is that of the other kind: `autograd.grad` cannot pass one."""
    case = REENTRANT
    plain = next(c for c in OWNED if c.name == "checkpoint")
    model, inputs = case.model(), case.inputs(4)
    capture = captured(case, model, inputs)
    with capture.block(4) as block:
        case.loss(model, inputs).backward()
    expected = true_shares(plain, plain.model(), inputs, 4)
    for name, p in trained(model).items():
        close(sum(f.materialize(p.dtype) for f in block.factors[name]), expected[name])


def test_shares_of_rows_and_slots_push_low_rank_directions():
    """What `contract_low_rank` and `contract_rank_one` say of slots that lie anywhere."""
    torch.manual_seed(0)
    for case in OWNED:
        model, inputs = case.model(), case.inputs(4)
        capture = captured(case, model, inputs)
        with capture.block(owned(case, 4, inputs)) as block:
            case.loss(model, inputs).backward()
        for name, factors in block.factors.items():
            shape = trained(model)[name].shape
            if len(shape) < 2:
                continue
            left = torch.randn(2, shape[0], dtype=torch.float64)
            right = torch.randn(2, shape[1:].numel(), dtype=torch.float64)
            for factor in factors:
                shares = factor.materialize(torch.float64).flatten(2)
                if isinstance(factor, Owned):
                    change = factor.mapped(torch.clone)
                    close(change.materialize(torch.float64).flatten(2), shares)
                    picked = factor.select(torch.tensor([3, 1, 1]))
                    close(picked.materialize(torch.float64).flatten(2), shares[[3, 1, 1]])
                found = factor.contract_rank_one(left[0], right[0].view(shape[1:]))
                close(found, torch.einsum("boi,o,i->b", shares, left[0], right[0]))
                Q = torch.einsum("ro,ri->roi", left, right)
                low = LowRank(left.unsqueeze(2), right.unsqueeze(2))
                found = factor.contract_low_rank(low, Q.view(2, *shape))
                close(found, torch.einsum("boi,koi->bk", shares, Q))
