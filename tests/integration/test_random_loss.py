"""A validation loss that draws random numbers: told once, and made comparable by fixed draws."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import InRunWarning, MisuseError


def denoising(model, batch):
    t, e = torch.rand(len(batch[0]), 1), torch.randn_like(batch[0])
    return F.mse_loss(model(batch[0] * (1 - t) + e * t), e)


def with_numpy(model, batch):
    scale = float(np.random.rand()) + random.random()
    return (model(batch[0]) * scale).square().mean()


def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return model, optimizer, torch.randn(64, 6), (torch.randn(40, 6),)


def trained(attribution, model, optimizer, x, steps=12):
    for _ in range(steps):
        ids = torch.randint(64, (8,))
        with attribution.batch(ids):
            denoising(model, (x[ids],)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("loss", [denoising, with_numpy])
def test_it_is_told_once_and_names_both_ways_out(loss):
    model, optimizer, x, held = setting()
    with pytest.warns(
        InRunWarning, match=r"draws random numbers(.|\n)*Generator(.|\n)*draws=8"
    ) as w:
        attribution = inrun.attach(
            model, optimizer, inrun.Utility(loss, held), options=inrun.Options(progress=False)
        )
    assert len(w) == 1
    trained(attribution, model, optimizer, x, 2)  # nothing more is said


@pytest.mark.parametrize("loss", [denoising, with_numpy])
def test_with_fixed_draws_the_books_close(loss):
    model, optimizer, x, held = setting()
    utility = inrun.Utility(loss, held, draws=4)
    attribution = inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))
    trained(attribution, model, optimizer, x)
    assert attribution.residual_share < 0.05
    books = attribution.ledger()
    opening, closing = (books[c].to_numpy() for c in ("opening_loss", "closing_loss"))
    np.testing.assert_array_equal(opening[1:], closing[:-1])
    assert not books["other"].to_numpy().any()


def test_the_loss_is_the_mean_over_its_draws():
    seen = []

    def loss(model, batch):
        seen.append(float(torch.rand(())))
        return model(batch[0]).sum() * 0 + seen[-1]

    model, optimizer, x, held = setting()
    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(loss, held, draws=3),
        options=inrun.Options(progress=False, self_test=False),
    )
    trained(attribution, model, optimizer, x, 1)
    row = attribution.ledger().to_pylist()[0]
    assert row["opening_loss"] == pytest.approx(np.mean(seen[:3]), rel=1e-6)
    assert len(set(seen[:3])) == 3
    assert seen[:3] == seen[3:6]  # at the closing the same


def test_training_draws_as_without():
    states = []
    for draws in (1, 3):
        model, optimizer, x, held = setting()
        quiet = lambda m, b: m(b[0]).square().mean()  # noqa: E731
        attribution = inrun.attach(
            model,
            optimizer,
            inrun.Utility(quiet, held, draws=draws),
            options=inrun.Options(progress=False),
        )
        trained(attribution, model, optimizer, x, 3)
        states.append((torch.rand(3), np.random.get_state()[2], random.getstate()))
    assert torch.equal(states[0][0], states[1][0])
    assert states[0][1:] == states[1][1:]


def test_a_loss_that_draws_nothing_is_not_told_of():
    model, optimizer, _, held = setting()
    quiet = lambda m, b: m(b[0]).square().mean()  # noqa: E731
    inrun.attach(
        model, optimizer, inrun.Utility(quiet, held), options=inrun.Options(progress=False)
    ).detach()


@pytest.mark.parametrize("draws", [0, -1, 2.0, True])
def test_a_number_that_is_none_is_refused(draws):
    with pytest.raises(MisuseError, match="draws"):
        inrun.Utility(denoising, (torch.randn(4, 6),), draws=draws)


class Judged(nn.Module):
    """A generator; the discriminator that judges it is another module."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 4)

    def forward(self, z):
        return self.net(z)


@pytest.mark.parametrize("fused", [False, True])
def test_a_discriminator_that_moves_is_in_the_entry_other(fused):
    torch.manual_seed(0)
    generator, discriminator = Judged(), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    z, real = torch.randn(40, 6), torch.randn(40, 4) + 1

    def fooled(model, batch):
        return F.softplus(-discriminator(model(batch[0]))).mean()

    optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-3)
    other = torch.optim.AdamW(discriminator.parameters(), lr=1e-2, fused=fused)
    attribution = inrun.attach(
        generator,
        optimizer,
        inrun.Utility(fooled, (z[24:],)),
        options=inrun.Options(progress=False),
    )
    closing = None
    for _ in range(4):
        with attribution.batch(range(24)):
            fooled(generator, (z[:24],)).backward()
        opening = float(fooled(generator, (z[24:],)).detach())
        optimizer.step()
        optimizer.zero_grad()
        row = attribution.ledger().to_pylist()[-1]
        assert row["opening_loss"] - row["other"] == pytest.approx(opening, rel=1e-5)
        if closing is not None:
            assert row["opening_loss"] == pytest.approx(closing, rel=1e-6)
            assert row["other"] != 0
        closing = row["closing_loss"]
        judged = F.softplus(discriminator(generator(z).detach())).mean()
        (judged + F.softplus(-discriminator(real)).mean()).backward()
        other.step()
        other.zero_grad()
    assert attribution.residual_share < 0.01
    balance = attribution.balance()
    parts = sum(number for name, number in balance.items() if name != "fall")
    assert parts == pytest.approx(balance["fall"], abs=1e-6)


def test_a_second_stage_with_another_optimizer_is_told_of():
    torch.manual_seed(0)
    model = nn.Linear(6, 6)
    x, held = torch.randn(64, 6), (torch.randn(40, 6),)
    quiet = lambda m, b: m(b[0]).square().mean()  # noqa: E731
    optimizer = torch.optim.Adam(model.parameters())
    attribution = inrun.attach(
        model, optimizer, inrun.Utility(quiet, held), options=inrun.Options(progress=False)
    )
    for step in range(6):
        if step == 3:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with attribution.batch(range(8)):
            quiet(model, (x[:8],)).backward()
        if step == 3:
            with pytest.warns(InRunWarning, match=r"not attached \(SGD\)(.|\n)*attach again"):
                optimizer.step()
        else:
            optimizer.step()
        optimizer.zero_grad()
    assert attribution.ledger().num_rows == 3
    with attribution.paused():  # who says so is not told
        pass
