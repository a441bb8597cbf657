"""Several optimizers in one step: Muon for the matrices, AdamW for the rest."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW

import inrun
from inrun.errors import MisuseError
from inrun.truth import StepGame, agreement, sample_shares
from tests.settings import flat

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


class Loop:
    """A small network in float64, its parameters split between two optimizers."""

    def __init__(self, build, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
        self.x, self.y = torch.randn(60, 6).double(), torch.randint(3, (60,))
        self.optimizers = build(self.model)
        self.utility = inrun.Utility(self.loss, torch.arange(40, 60))
        self.attribution = self.attach(**options) if options.pop("attached", True) else None

    def attach(self, **options):
        optimizer = self.optimizers if len(self.optimizers) > 1 else self.optimizers[0]
        return inrun.attach(self.model, optimizer, self.utility, **flat(progress=False, **options))

    def loss(self, model, rows):
        return F.cross_entropy(model(self.x[rows]), self.y[rows])

    def backward(self, step, samples=6):
        rows = torch.arange(samples) + samples * step
        if self.attribution is None:
            self.loss(self.model, rows).backward()
        else:
            with self.attribution.batch(rows):
                self.loss(self.model, rows).backward()

    def step(self, step, *which):
        self.backward(step)
        for optimizer in [self.optimizers[i] for i in which] or self.optimizers:
            optimizer.step()
        self.model.zero_grad()

    def values(self):
        return self.attribution.values()["value"].to_numpy()


def matrices(model):
    return [p for p in model.parameters() if p.ndim == 2]


def rest(model):
    return [p for p in model.parameters() if p.ndim != 2]


def one(model):
    return [AdamW([{"params": matrices(model)}, {"params": rest(model), "lr": 1e-2}])]


def two(model):
    return [AdamW(matrices(model)), AdamW(rest(model), lr=1e-2)]


def muon_and_adamw(model):
    return [torch.optim.Muon(matrices(model), lr=0.02), AdamW(rest(model), lr=1e-2)]


@pytest.mark.parametrize(
    "options", [{}, {"estimator": "path-given"}, {"capture": "stream"}], ids=str
)
def test_two_optimizers_are_one_with_two_groups(options):
    single, several = Loop(one, **options), Loop(two, **options)
    for step in range(4):
        single.step(step)
        several.step(step, *([0, 1] if step % 2 else [1, 0]))  # in either order
        torch.testing.assert_close(single.model.state_dict(), several.model.state_dict())
    np.testing.assert_allclose(several.values(), single.values(), rtol=1e-9)
    for column in ("samples", "momentum", "weight_decay", "residual"):
        np.testing.assert_allclose(
            several.attribution.ledger()[column].to_numpy(),
            single.attribution.ledger()[column].to_numpy(), rtol=1e-7, atol=1e-12,
        )  # fmt: skip


@needs_muon
@pytest.mark.parametrize("smoothed_steps", [0, 10])
def test_muon_with_adamw_is_shapley(smoothed_steps):
    loop = Loop(muon_and_adamw, smoothed_steps=smoothed_steps)
    for step in range(6):
        before = loop.values()
        rows = torch.arange(6) + 6 * step
        shares = sample_shares(
            loop.model, lambda i, rows=rows: loop.loss(loop.model, rows[i : i + 1]) / 6, 6
        )
        truth = StepGame(loop.model, loop.optimizers, shares, loop.utility).exact()[:, 0]
        loop.step(step)
    found = loop.values()[len(before) :]
    assert agreement(found, truth).pearson > (0.99 if smoothed_steps else 0.5)
    ledger = loop.attribution.ledger().to_pylist()[-1]
    size = sum(abs(ledger[k]) for k in ("samples", "momentum", "weight_decay"))
    assert abs(ledger["residual"]) < 0.05 * size


@needs_muon
def test_training_is_untouched_and_hooks_come_off():
    watched, plain = Loop(muon_and_adamw), Loop(muon_and_adamw, attached=False)
    for step in range(3):
        watched.step(step)
        plain.step(step)
    for a, b in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)
    watched.attribution.detach()
    assert not any(o._optimizer_step_pre_hooks for o in watched.optimizers)
    assert not any(o._optimizer_step_post_hooks for o in watched.optimizers)


def test_a_loop_that_steps_one_of_them_is_scored_for_that_one():
    """As adversarial training does: the step is over when the next block begins, or at the end."""
    several, alone = Loop(two), Loop(lambda model: two(model)[:1])
    for step in range(3):
        several.step(step, 0)
        alone.step(step)
    assert len(several.values()) == 12  # the last step still waits for the other optimizer
    several.attribution.detach()
    np.testing.assert_allclose(several.values(), alone.values(), rtol=1e-9)
    assert len(several.attribution.ledger()) == 3


def test_an_optimizer_that_steps_again_ends_the_step():
    loop = Loop(two)
    loop.backward(0)
    loop.optimizers[0].step()
    with pytest.warns(inrun.errors.InRunWarning, match="without an attribution"):
        loop.optimizers[0].step()
    assert len(loop.values()) == 6


def test_a_failed_step_may_be_taken_again():
    loop, fails = Loop(two), [True]

    def refuse(*_):
        if fails.pop():
            raise RuntimeError("out of memory")

    loop.optimizers[0].register_step_pre_hook(refuse)
    loop.backward(0)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.optimizers[0].step()
    fails.append(False)
    loop.optimizers[0].step()
    loop.optimizers[1].step()
    assert len(loop.values()) == 6


def test_gradients_may_not_change_between_the_steps_of_one_step():
    loop = Loop(two)
    loop.backward(0)
    loop.optimizers[0].step()
    nn.utils.clip_grad_norm_(rest(loop.model), 1e-3)
    with pytest.raises(MisuseError, match="changed between the steps of two optimizers"):
        loop.optimizers[1].step()


@pytest.mark.parametrize("options", [{"estimator": "path-given"}, {"capture": "stream"}], ids=str)
def test_only_path_with_hold_lets_some_of_them_step(options):
    loop = Loop(two, **options)
    loop.step(0, 0)
    with pytest.raises(MisuseError, match="Only some of the attached optimizers stepped"):
        loop.attribution.detach()


def test_what_cannot_be_attached_together_is_refused():
    loop = Loop(two)
    parameters = list(loop.model.parameters())
    for wrong, match in (
        ([], "empty list"),
        ([SGD(parameters), AdamW(parameters)], "same parameter"),
    ):
        with pytest.raises(MisuseError, match=match):
            inrun.attach(loop.model, wrong, loop.utility)


def test_several_optimizers_are_audited():
    loop = Loop(two)
    audit = loop.attribution.audit(seconds=60, steps=3)
    for step in range(3):
        loop.step(step)
    assert len(audit.table()) >= 1
    assert audit.table()["pearson"].to_pylist()[-1] > 0.9


def test_a_game_of_several_optimizers_leaves_them_alone():
    loop = Loop(two)
    loop.step(0)
    before = copy.deepcopy([o.state_dict() for o in loop.optimizers])
    shares = sample_shares(loop.model, lambda i: loop.loss(loop.model, [i]) / 3, 3)
    game = StepGame(loop.model, loop.optimizers, shares, loop.utility)
    assert np.isfinite(game.table()).all()
    for now, then in zip([o.state_dict() for o in loop.optimizers], before, strict=True):
        torch.testing.assert_close(now["state"], then["state"])


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("options", [{"smoothed_steps": 0}, {"capture": "stream"}], ids=str)
def test_gradients_that_are_cleared_between_two_steps_were_read(options, to_none):
    """`opt.step(); opt.zero_grad()` for each optimizer is as good as clearing at the end."""
    found = []
    for between in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        parameters = list(model.parameters())
        optimizers = [
            torch.optim.AdamW(parameters[:2], lr=1e-2), torch.optim.Adam(parameters[2:], lr=1e-2),
        ]  # fmt: skip
        x, y = torch.randn(28, 5, dtype=torch.float64), torch.randint(3, (28,))
        loss = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])  # noqa: E731
        utility = inrun.Utility(loss, (x[16:], y[16:]))
        attribution = inrun.attach(model, optimizers, utility, **flat(progress=False, **options))
        for step in range(3):
            ids = list(range(4 * step, 4 * step + 4))
            with attribution.batch(ids):
                loss(model, (x[ids], y[ids])).backward()
            for optimizer in optimizers:
                optimizer.step()
                if between:
                    optimizer.zero_grad(set_to_none=to_none)
            model.zero_grad()
        attribution.detach()
        found.append(attribution.values()["value"].to_numpy())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)


@pytest.mark.parametrize("scoring", [inrun.EveryStep(), inrun.Window(3, exact=1)], ids=repr)
@pytest.mark.parametrize("overflows", [0, 1])
def test_a_scaler_that_skips_one_of_them_leaves_the_other_s_step_scored(overflows, scoring):
    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def loop(*, scored):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()
        x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(3, (40,))
        optimizers = [
            torch.optim.SGD(model[0].parameters(), lr=0.05),
            torch.optim.SGD(model[2].parameters(), lr=0.1),
        ]
        scaler, attribution = torch.amp.GradScaler("cpu", init_scale=2.0**8), nullcontext()
        if scored:
            utility = inrun.Utility(loss_fn, (x[20:], y[20:]))
            options = inrun.Options(progress=False, contraction="dense")
            attribution = inrun.attach(model, optimizers, utility, scoring=scoring, options=options)
        expected, seen = [], []
        for step in range(6):
            judged = loss_fn(model, (x[20:], y[20:]))
            before, opening = judged.item(), torch.autograd.grad(judged, list(model.parameters()))
            with attribution.batch(range(8)) if scored else nullcontext():
                scaler.scale(loss_fn(model, (x[:8], y[:8]))).backward()
            if step == 3:
                with torch.no_grad():
                    model[2 * overflows].weight.grad[0, 0] = float("inf")
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            shares = [p.grad.clone() for p in model.parameters()]
            weights = [p.detach().clone() for p in model.parameters()]
            for optimizer in optimizers:
                scaler.step(optimizer)
            trained = list(model.parameters())
            moved = [not torch.equal(p, w) for p, w in zip(trained, weights, strict=True)]
            seen.append((opening, [g if m else None for g, m in zip(shares, moved, strict=True)]))
            scaler.update()
            for optimizer in optimizers:
                optimizer.zero_grad()
            expected.append(before - loss_fn(model, (x[20:], y[20:])).item())
        last = torch.autograd.grad(loss_fn(model, (x[20:], y[20:])), list(model.parameters()))
        seen.append((last, None))
        return list(model.parameters()), expected, attribution, seen

    plain, *_ = loop(scored=False)
    trained, fall, attribution, seen = loop(scored=True)
    attribution.detach()
    assert all(torch.equal(p, q) for p, q in zip(plain, trained, strict=True))
    ledger = attribution.ledger()
    assert ledger["step"].to_pylist() == [1, 2, 3, 4, 5, 6]
    samples = ledger["samples"].to_numpy()
    if isinstance(scoring, inrun.EveryStep):
        np.testing.assert_allclose(samples, fall, rtol=2e-2)  # the trapezoid's error alone
        return
    # In windows directions lie on the line between those of the ends, whatever moved at which step:
    # that is what values must be to rounding. How far it is from the fall is the window's to tell.
    for first, last in ((1, 4), (4, 6)):
        for step in range(first, last):
            x = (step - first + 0.5) / (last - first)
            rates = (0.05, 0.05, 0.1, 0.1)
            ends = zip(seen[first][0], seen[last][0], seen[step][1], rates, strict=True)
            rows = [r * (torch.lerp(a, b, x) * g).sum() for a, b, g, r in ends if g is not None]
            assert samples[step] == pytest.approx(float(sum(rows)), rel=1e-9)
    assert [len([g for g in shares or () if g is not None]) for _, shares in seen[:-1]] == [
        4, 4, 4, 2, 4, 4,
    ]  # fmt: skip
