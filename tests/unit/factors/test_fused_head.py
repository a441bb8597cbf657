"""A fused head's shares are those of its logits' gradient, whatever its tiles."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from inrun.factors import (
    Coefficients,
    FusedHead,
    Head,
    LowRank,
    Outer,
    _fused_head,
    cost,
    partition,
)
from tests.oracles.fused_heads import LigerFusedLinearCrossEntropyFunction, cross_entropy

B, T, N, V = 3, 5, 4, 17


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def head(**changes):
    return Head(
        normal(V, N, seed=1), normal(V, seed=2), normal(V, seed=3).abs(), scale=1.3, softcap=2.0,
        temperature=0.7, **changes,
    )  # fmt: skip


def logits(h, hidden):
    z = h.scale * F.linear(hidden, h.weight, h.bias)
    return h.softcap * torch.tanh(z / h.softcap) / h.temperature


def built(*, of_bias=False):
    """A factor, and the gradient of its logits (B, T, V) by autograd."""
    h, hidden = head(), normal(B, T, N, seed=4)
    targets = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(5))
    a, b, c, d = (normal(B, T, seed=6 + i) for i in range(4))
    z = F.linear(hidden, h.weight, h.bias).requires_grad_()
    y = h.softcap * torch.tanh(h.scale * z / h.softcap) / h.temperature
    log_p = y.log_softmax(-1).detach()
    p = log_p.exp()
    in_y = a[..., None] * p + c[..., None] * p * log_p + d[..., None] * h.class_weights
    in_y.scatter_add_(-1, targets[..., None], b[..., None])
    (g,) = torch.autograd.grad(y, z, in_y)
    log, _ = partition(h, hidden, torch.float64)
    factor = FusedHead(hidden, targets, log, Coefficients(a, b, c, d), h, of_bias=of_bias)
    return factor, Outer(g, torch.ones(B, T, 1).double() if of_bias else hidden)


@pytest.fixture(params=[(1, 1), (2, 5), (7, 3), (4096, 256)], ids=str)
def tiles(request, monkeypatch):
    """Of so many positions, and as many columns at least."""
    positions, columns = request.param
    monkeypatch.setattr(_fused_head, "POSITIONS", positions)
    monkeypatch.setattr(_fused_head, "COLUMNS", columns)
    if columns < 256:
        monkeypatch.setattr(cost, "CACHED_BYTES", 0)


@pytest.mark.parametrize("of_bias", [False, True])
def test_shares_are_those_of_the_logits_gradient(of_bias, tiles):
    factor, outer = built(of_bias=of_bias)
    shape = factor.shape
    assert shape == ((V,) if of_bias else (V, N))
    expected = outer.materialize(torch.float64).reshape(B, *shape)
    torch.testing.assert_close(factor.materialize(torch.float64), expected)
    torch.testing.assert_close(factor.total(torch.float64), expected.sum(0))
    order = torch.tensor([2, 0])
    torch.testing.assert_close(factor.select(order).materialize(torch.float64), expected[order])
    twin = factor.mapped(torch.clone)
    assert not {t.data_ptr() for t in twin.held} & {t.data_ptr() for t in factor.held}
    for K in (0, 1, 3):
        Q = normal(K, *shape, seed=11)
        met = torch.einsum("bp,kp->bk", expected.flatten(1), Q.reshape(K, shape.numel()))
        torch.testing.assert_close(twin.contract(Q), met)
    left, right = normal(V, seed=12), normal(1 if of_bias else N, seed=13)
    met = torch.einsum("bvn,v,n->b", expected.reshape(B, V, -1), left, right)
    torch.testing.assert_close(factor.contract_rank_one(left, right), met)


def test_directions_of_low_rank_are_met_by_thin_products(tiles):
    factor, outer = built()
    low = LowRank(normal(2, V, 3, seed=14), normal(2, N, 3, seed=15))
    Q = low.left @ low.right.mT
    torch.testing.assert_close(factor.contract_low_rank(low, Q), outer.contract(Q))


def test_sketches_are_shares_in_their_bases(tiles):
    factor, outer = built()
    left, right = normal(2, V, 3, seed=16), normal(2, N, 4, seed=17)
    expected = left.mT @ outer.materialize(torch.float64).unsqueeze(1) @ right
    torch.testing.assert_close(factor.sketch(left, right), expected)


def test_the_partition_function_is_that_of_the_logits(tiles):
    h, hidden = head(), normal(B, T, N, seed=4)
    y = logits(h, hidden)
    log, mean = partition(h, hidden, torch.float64)
    torch.testing.assert_close(log, y.logsumexp(-1))
    torch.testing.assert_close(mean, (y.softmax(-1) * y).sum(-1))


def test_no_position_has_no_share():
    none = normal(2, 0, N)
    log, _ = partition(head(), none, torch.float64)
    factor = FusedHead(none, log.long(), log, Coefficients(log, log), head())
    assert factor.contract(normal(1, V, N)).tolist() == [[0.0], [0.0]]
    assert not factor.total(torch.float64).any()


class Largest(TorchDispatchMode):
    """The most elements that a tensor made inside has."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return out


def test_logits_of_the_whole_batch_are_never_there(monkeypatch):
    monkeypatch.setattr(cost, "CACHED_BYTES", 2**16)
    positions, words, width = 512, 2048, 8
    h = Head(torch.randn(words, width))
    hidden = torch.randn(2, positions // 2, width)
    with Largest() as seen:
        log, _ = partition(h, hidden, torch.float32)
        factor = FusedHead(hidden, log.long() * 0, log, Coefficients(log, log), h)
        factor.contract(torch.randn(1, words, width))
        factor.contract_rank_one(torch.randn(words), torch.randn(width))
        factor.total(torch.float32)
    assert seen.elements == positions * _fused_head.COLUMNS < positions * words


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_stand_in_of_ligers_function_is_a_cross_entropy(reduction, softcap, weights):
    hidden, weight, bias = normal(9, N), normal(V, N, seed=1), normal(V, seed=2)
    target = torch.tensor([3, -100, 0, 16, 5, -100, 2, 2, 9])
    w = normal(V, seed=3).abs() if weights else None
    given = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    twins = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    loss = LigerFusedLinearCrossEntropyFunction.apply(
        given[0], given[1], target, given[2], w, -100, 0.1, 0.2, reduction, softcap
    )[0]
    of_ce = cross_entropy(*twins[:2], target, twins[2], w, 0.2, 0.0, softcap)
    of_z = cross_entropy(*twins[:2], target, twins[2], w, 0.2, 0.1, softcap) - of_ce
    there = target[target != -100]
    divisor = len(there) if w is None else w[there].sum()
    true = of_ce.sum() / divisor + of_z.sum() / len(there) if reduction == "mean" else (
        of_ce + of_z
    ).sum()  # fmt: skip
    torch.testing.assert_close(loss, true)
    for found, expected in zip(
        torch.autograd.grad(2 * loss, given), torch.autograd.grad(2 * true, twins), strict=True
    ):
        torch.testing.assert_close(found, expected)
