"""Properties of shares over shapes that hypothesis chooses."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from inrun.capture import Hold, self_test
from inrun.utility import Utility

sizes = st.integers(1, 4)
checked = settings(max_examples=25, deadline=None)


def shares(model, run, samples, terms=None):
    """{name: (B, *shape)} as captured while `run` computes one loss term a sample."""
    capture = Hold(model, {n: p for n, p in model.named_parameters() if p.requires_grad})
    model.zero_grad()
    with capture.block(samples) as block:
        run(model).sum().backward()
    capture.finish()
    return {
        name: sum(factor.materialize(torch.float64) for factor in factors)
        for name, factors in block.factors.items()
    }


def network(width, out):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(width, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, out)
    ).double()


@checked
@given(samples=st.integers(0, 4), tokens=sizes, width=sizes, out=sizes)
def test_any_shape_sums_to_the_gradient(samples, tokens, width, out):
    """Empty batches, single samples and single tokens included; the check raises otherwise."""
    model = network(width, out)
    x = torch.randn(samples, tokens, width, dtype=torch.float64)
    if samples * tokens == 0:
        return _empty_batch_has_no_shares(model, x)
    found = shares(model, lambda m: m(x).sin().flatten(1).sum(1), samples)
    for name, p in model.named_parameters():
        assert found[name].shape == (samples, *p.shape)
        torch.testing.assert_close(found[name].sum(0), p.grad, rtol=1e-9, atol=1e-12)
    return None


def _empty_batch_has_no_shares(model, x):
    found = shares(model, lambda m: m(x).sin().flatten(1).sum(1), x.shape[0])
    assert all(share.shape[0] == 0 for share in found.values())


@checked
@given(samples=st.integers(2, 5), seed=st.integers(0, 99))
def test_permuting_the_batch_permutes_the_shares(samples, seed):
    model = network(3, 2)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, 3, dtype=torch.float64, generator=generator)
    order = torch.randperm(samples, generator=generator)
    before = shares(model, lambda m: m(x).cos().flatten(1).sum(1), samples)
    other = x[order]
    after = shares(model, lambda m: m(other).cos().flatten(1).sum(1), samples)
    inside = shares(model, lambda m: m(x[order]).cos().flatten(1).sum(1), samples)
    for name in before:
        torch.testing.assert_close(after[name], before[name][order], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(inside[name], before[name], rtol=1e-9, atol=1e-12)


@checked
@given(samples=sizes, tokens=sizes, padding=st.integers(1, 5))
def test_padding_changes_nothing(samples, tokens, padding):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 3)).double()
    x = torch.randint(1, 7, (samples, tokens))
    padded = F.pad(x, (0, padding))

    def masked(m, tokens_):
        mask = (tokens_ != 0).unsqueeze(2)
        return (m(tokens_).sin() * mask).flatten(1).sum(1)

    plain = shares(model, lambda m: masked(m, x), samples)
    longer = shares(model, lambda m: masked(m, padded), samples)
    for name in plain:
        torch.testing.assert_close(longer[name], plain[name], rtol=1e-9, atol=1e-12)


@checked
@given(samples=st.integers(2, 4), weights=st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=4))
def test_weights_scale_shares_and_zero_gives_zero(samples, weights):
    model = network(3, 2)
    torch.manual_seed(1)
    x = torch.randn(samples, 3, dtype=torch.float64)
    w = torch.tensor(weights[:samples], dtype=torch.float64)
    plain = shares(model, lambda m: m(x).cos().sum(1), samples)
    weighted = shares(model, lambda m: m(x).cos().sum(1) * w, samples)
    for name in plain:
        scaled = plain[name] * w.view(-1, *[1] * (plain[name].ndim - 1))
        torch.testing.assert_close(weighted[name], scaled, rtol=1e-9, atol=1e-12)


def test_a_duplicated_sample_gets_the_same_share_twice():
    model = network(3, 2)
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    doubled = torch.cat([x, x[:1]])
    found = shares(model, lambda m: m(doubled).sin().flatten(1).sum(1), 4)
    for share in found.values():
        torch.testing.assert_close(share[0], share[3], rtol=1e-12, atol=1e-14)


def test_as_many_samples_as_positions_are_not_mixed_up():
    """(T, B, d) with T = B: only the measured layout can tell."""
    torch.manual_seed(0)

    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x.transpose(0, 1)).transpose(0, 1)

    model, x = SequenceFirst().double(), torch.randn(4, 4, 3, dtype=torch.float64)

    def terms(m, inputs):
        return m(inputs).sin().flatten(1).sum(1)

    capture = Hold(model, dict(model.named_parameters()))
    validation = torch.randn(5, 4, 3, dtype=torch.float64)
    self_test(capture, model, Utility(lambda m, b: terms(m, b).mean(), validation))
    with capture.block(4) as block:
        terms(model, x).sum().backward()
    (factor,) = block.factors["layer.weight"]
    for i in range(4):
        (expected,) = torch.autograd.grad(terms(model, x[[i]]).sum(), model.layer.weight)
        torch.testing.assert_close(factor.materialize(torch.float64)[i], expected)
