"""Low-rank contraction is the dense one where the rank suffices, and says how far off it is."""

import pytest
import torch

from inrun.errors import MisuseError
from inrun.factors import (
    Convolution,
    Dense,
    DenseContraction,
    Derived,
    Geometry,
    Indexed,
    LowRankContraction,
    Outer,
    _trial,
    cost,
    factorize,
)

B, T, M, N, K = 4, 40, 48, 64, 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed)).double()


def directions(rank, noise=0.0, seed=1):
    Q = normal(K, M, rank, seed=seed) @ normal(K, rank, N, seed=seed + 1)
    return Q + noise * normal(K, M, N, seed=seed + 2)


def outer(seed=5):
    return Outer(normal(B, T, M, seed=seed), normal(B, T, N, seed=seed + 1))


def step(contraction, factor, Q, name="w"):
    (found,) = contraction.contract(name, [factor], Q)
    contraction.end_step()
    return found


def cheap(monkeypatch):
    monkeypatch.setattr(cost, "THIN", 0)


def convolution():
    geometry = Geometry(torch.Size((M, 8, 3, 3)), (1, 1), (1, 1), (1, 1), 1)
    return Convolution(normal(B, 1, 8, 6, 6), normal(B, 1, M, 6, 6, seed=3), geometry)


def transposed():
    inner = Outer(normal(B, T, N, seed=7), normal(B, T, M, seed=8))
    return Derived(torch.Size((M, N)), lambda p: p.T, inner)


@pytest.mark.parametrize("build", [outer, convolution, transposed])
def test_a_sufficient_rank_is_exact(build, monkeypatch):
    cheap(monkeypatch)
    factor = build()
    flat = factor.shape[1:].numel()
    Q = (normal(K, M, 5) @ normal(K, 5, flat, seed=2)).reshape(K, *factor.shape)
    low = LowRankContraction(rank=6)
    (found,) = low.contract("w", [factor], Q)
    assert low.describe("w").startswith("rank 6, error 0.00%")
    torch.testing.assert_close(found, factor.contract(Q), rtol=1e-9, atol=1e-9)


def test_factors_of_one_parameter_are_contracted_together(monkeypatch):
    cheap(monkeypatch)
    index = torch.randint(M, (B, T), generator=generator())
    table = Indexed(index, normal(B, T, N), M)
    factors = [outer(), transposed(), outer(20), Dense(normal(B, M, N)), table]
    Q = directions(4)
    found = LowRankContraction(rank=8).contract("w", factors, Q)
    expected = DenseContraction().contract("w", factors, Q)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_rank_that_does_not_suffice_doubles_until_it_does(monkeypatch):
    cheap(monkeypatch)
    low, factor, Q = LowRankContraction(tolerance=0.01), outer(), directions(20, noise=1e-4)
    for _ in range(8):
        found = step(low, factor, Q)
    assert low.describe("w").startswith("rank 32")
    assert float((found - factor.contract(Q)).norm() / found.norm()) < 0.01


def test_directions_without_a_low_rank_end_up_dense():
    low = LowRankContraction(tolerance=0.01)
    factor = Outer(normal(64, T, M), normal(64, T, N, seed=1))
    Q = normal(1, M, N)
    for _ in range(12):
        found = step(low, factor, Q)
    assert low.describe("w") == "dense"
    torch.testing.assert_close(found, factor.contract(Q))


def test_a_rank_that_is_more_than_enough_is_halved(monkeypatch):
    cheap(monkeypatch)
    low, factor = LowRankContraction(tolerance=0.01), outer()
    for _ in range(60):
        step(low, factor, directions(24))
    assert low.describe("w").startswith("rank 32")
    for _ in range(200):
        step(low, factor, directions(1))
    assert low.describe("w").startswith("rank 16")


def test_a_parameter_that_hardly_matters_gets_a_low_rank(monkeypatch):
    cheap(monkeypatch)
    low, factor = LowRankContraction(tolerance=0.01), outer()
    for _ in range(400):
        low.contract("large", [factor], directions(8))
        low.contract("small", [factor], 1e-4 * directions(20, noise=0.5))
        low.end_step()
    assert low.describe("small").startswith("rank 16, error 0.0")


def test_the_error_that_is_said_is_the_error(monkeypatch):
    cheap(monkeypatch)
    low, factor = LowRankContraction(rank=8), outer()
    errors = []
    for number in range(1, 161):
        Q = directions(6, noise=0.5, seed=10 * number)
        found = step(low, factor, Q)
        dense = factor.contract(Q)
        errors.append(float((found - dense).square().sum() / dense.square().sum()))
    said = float(low.describe("w").split("error ")[1].rstrip("%")) / 100
    assert 0.5 < said / (sum(errors) / len(errors)) ** 0.5 < 2


def test_a_start_from_nearby_directions_is_as_good_as_another_pass():
    Q, drifted = directions(8, noise=0.05), directions(8, noise=0.05) + 0.02 * normal(K, M, N)
    warm = factorize(drifted, factorize(Q, None, 8).right, 8)
    cold = factorize(drifted, None, 8)
    best = torch.linalg.svdvals(drifted)[:, 8:].norm()
    for low in (warm, cold):
        error = (drifted - low.left @ low.right.mT).norm()
        assert float(error / best) < 1.1


def test_without_samples_there_are_no_values(monkeypatch):
    cheap(monkeypatch)
    empty = Outer(torch.zeros(0, T, M).double(), torch.zeros(0, T, N).double())
    (found,) = LowRankContraction(rank=4).contract("w", [empty], directions(4))
    assert found.shape == (0, K)


def test_vectors_and_no_directions_are_dense():
    low, vector = LowRankContraction(), Dense(normal(B, 5))
    torch.testing.assert_close(
        low.contract("b", [vector], normal(K, 5))[0], vector.contract(normal(K, 5))
    )
    assert low.contract("w", [outer()], torch.zeros(0, M, N).double())[0].shape == (B, 0)
    assert low.describe("b") == low.describe("never seen") == "dense"


@pytest.mark.parametrize("wrong", [{"tolerance": 0}, {"tolerance": 1.5}, {"rank": 0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(MisuseError):
        LowRankContraction(**wrong)


def test_a_rank_on_trial_gives_dense_values_and_a_rank_that_failed_is_on_trial_again(monkeypatch):
    cheap(monkeypatch)
    low, factor = LowRankContraction(tolerance=0.01), outer()
    hard, easy = directions(20, noise=0.5), directions(3)
    for _ in range(3):
        found = step(low, factor, hard)
        assert torch.equal(found, factor.contract(hard))
    for _ in range(40):
        step(low, factor, easy)
    assert low.describe("w").startswith("rank")
    for _ in range(40):
        found = step(low, factor, hard)
    assert low.describe("w") == "dense"
    assert torch.equal(found, factor.contract(hard))


def test_an_error_is_judged_in_units_of_the_same_step(monkeypatch):
    cheap(monkeypatch)
    low, factor = LowRankContraction(tolerance=0.01), outer()
    for number in range(120):  # contributions shrink a thousandfold, as a loss's do
        scale = 1e-3 ** (number / 120)
        low.contract("a", [factor], scale * directions(8, noise=1e-3))
        low.contract("b", [factor], scale * directions(8, noise=1e-3, seed=4))
        low.end_step()
    for name in "ab":
        assert low.describe(name).startswith("rank")
        assert float(low.describe(name).split("error ")[1].rstrip("%")) < 1


@pytest.mark.parametrize("limit", [1, 3 * T * M * 8, 2**30])
@pytest.mark.parametrize("held", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("positions", [T, 12])  # shares are built, or directions pushed through
def test_blocks_of_samples_change_nothing(limit, held, positions, monkeypatch):
    monkeypatch.setattr(cost, "CACHED_BYTES", limit)
    left, right = normal(B, positions, M).to(held), normal(B, positions, N, seed=1).to(held)
    factor, Q = Outer(left, right), directions(3)
    want = torch.einsum("btm,btn,kmn->bk", left.double(), right.double(), Q)
    low = factorize(Q, None, 3)
    torch.testing.assert_close(factor.contract(Q), want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(factor.contract_low_rank(low, Q), want, rtol=1e-8, atol=1e-8)


def test_what_is_held_in_half_precision_is_never_widened_as_a_whole(monkeypatch):
    factor, Q = Outer(*(normal(16, 12, n).bfloat16() for n in (M, N))), directions(3)[:1]
    low, wide = factorize(Q, None, 3), []

    class Widths(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
                wide.append(found.numel())
            return found

    monkeypatch.setattr(cost, "CACHED_BYTES", 12 * (2 * M + N) * 8)
    with Widths():
        factor.contract(Q)
        factor.contract_low_rank(low, Q)
        factor.contract_rank_one(Q[0, :, 0], Q[0, 0])
    assert M * N <= max(wide) < 16 * 12 * M


@pytest.mark.parametrize("rows", [4, 16, 37, 64])
@pytest.mark.parametrize("columns", [1, 16, 40])
def test_a_thin_product_is_the_product_whichever_library_makes_it(rows, columns, monkeypatch):
    monkeypatch.setattr(_trial, "LARGE", 0)
    a, sides = torch.randn(2, rows, 24), torch.randn(2, 24, columns)
    for given in (a, a.mT.contiguous().mT):
        want = given.double() @ sides.double()
        assert torch.allclose(_trial.thin_products(given, sides).double(), want, atol=1e-5)
