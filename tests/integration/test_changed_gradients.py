"""Gradients that were changed between backward and step: scored where shares are kept."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import inrun
from inrun.errors import MisuseError
from tests.integration.test_unattributed import (
    ROWS,
    adam,
    attach,
    block,
    expected_of_path,
    gradients,
    loss_fn,
    setting,
)


def norm_then_value(model):
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    nn.utils.clip_grad_value_(model.parameters(), 0.01)


def averaged_then_value(model):
    for p in model.parameters():
        p.grad.div_(3)
    nn.utils.clip_grad_value_(model.parameters(), 0.01)


def masked(model):
    model[0].weight.grad[1] = 0.0
    model[2].weight.grad[:, ::2] = 0.0


def flipped(model):
    for p in model.parameters():
        p.grad.neg_()


def flipped_in_one(model):
    model[2].weight.grad.neg_()


def adaptive(model):
    for p in model.parameters():
        if p.ndim == 2:
            size = p.grad.norm(dim=1, keepdim=True)
            p.grad.mul_((0.1 / size).clamp_max(1.0))


CHANGES = (norm_then_value, averaged_then_value, masked, flipped, flipped_in_one, adaptive)


@pytest.mark.parametrize("change", CHANGES)
def test_values_are_those_of_the_changed_shares(change):
    model, data, validation = setting(seed=3)
    optimizer = adam(model)
    attribution = attach(model, optimizer, validation, smoothed_steps=0, contraction="dense")
    shares = [
        gradients(loss_fn(model, (data[0][[i]], data[1][[i]])) / ROWS, model) for i in range(ROWS)
    ]
    before = copy.deepcopy((model, optimizer))
    block(attribution, model, data, list(range(ROWS)))
    change(model)
    consumed = [p.grad.clone() for p in model.parameters()]
    expected = expected_of_path(*before, shares, consumed, validation)
    optimizer.step()
    found = attribution.values()["value"].to_numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def by_norm(model):
    nn.utils.clip_grad_norm_(model.parameters(), 1e-4)


def by_value(model):
    nn.utils.clip_grad_value_(model.parameters(), 1e-2)


def by_small_value(model):
    nn.utils.clip_grad_value_(model.parameters(), 1e-4)


@pytest.mark.parametrize("change", [by_norm, by_value, by_small_value])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_clipping_in_half_precision_is_known_and_scored(dtype, change):
    """Values are near those of the model of double precision, whose gradients are clipped alike."""
    found = []
    for precision in (dtype, torch.float64):
        model, data, validation = setting(seed=3)
        rounded = [model.to(dtype).to(precision)]
        rounded += [batch[0].to(dtype).to(precision) for batch in (data, validation)]
        model, data, validation = rounded[0], (rounded[1], data[1]), (rounded[2], validation[1])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        attribution = attach(model, optimizer, validation, estimator="sgd")
        block(attribution, model, data, list(range(ROWS)))
        change(model)
        optimizer.step()
        found.append(attribution.values()["value"].to_numpy())
    np.testing.assert_allclose(*found, atol=16 * torch.finfo(dtype).eps * np.abs(found[1]).max())


def centralised(model):
    for p in model.parameters():
        if p.ndim == 2:
            p.grad.sub_(p.grad.mean(1, keepdim=True))


def decayed(model):
    for p in model.parameters():
        p.grad.add_(p.detach(), alpha=0.1)


@pytest.mark.parametrize("change", [centralised, decayed])
def test_what_mixes_or_adds_is_refused_with_the_reason(change):
    model, data, validation = setting(seed=3)
    optimizer = adam(model)
    attribution = attach(model, optimizer, validation)
    block(attribution, model, data, list(range(ROWS)))
    change(model)
    with pytest.raises(MisuseError, match=r"centralisation(.|\n)*unattributed"):
        optimizer.step()


def test_hooks_of_the_users_that_came_later_are_read_after_them():
    """They change gradients or the learning rate, and the values are those of the real step."""
    model, data, validation = setting()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attribution = attach(model, optimizer, validation, estimator="sgd")

    def hook(optimizer, args, kwargs):
        for group in optimizer.param_groups:
            group["lr"] = 0.02
            for p in group["params"]:
                p.grad.mul_(3.0)

    optimizer.register_step_pre_hook(hook)
    along = gradients(loss_fn(model, validation), model)
    own = [gradients(loss_fn(model, (data[0][[i]], data[1][[i]])) / ROWS, model)
           for i in range(ROWS)]  # fmt: skip
    block(attribution, model, data, list(range(ROWS)))
    optimizer.step()
    expected = [
        0.06 * sum(float((a * b).sum()) for a, b in zip(along, share, strict=True)) for share in own
    ]
    np.testing.assert_allclose(attribution.values()["value"].to_numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_steps_that_a_scaler_skips_are_never_scored(layers):
    wrong, skipped = [], 0
    for seed in range(4):
        torch.manual_seed(seed)
        steps, rows = 60, 8
        x, y = torch.randn(steps * rows + 20, 5), torch.randint(3, (steps * rows + 20,))
        inner = [part for _ in range(layers - 1) for part in (nn.Linear(5, 5), nn.Tanh())]
        model = nn.Sequential(*inner, nn.Linear(5, 3))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        utility = inrun.Utility(loss_fn, (x[-20:], y[-20:]))
        attribution = inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=2)
        taken = []
        optimizer.register_step_post_hook(lambda *_, t=taken: t.append(True))
        real = []
        for step in range(steps):
            ids = torch.arange(rows) + rows * step
            with attribution.batch(ids):
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = F.cross_entropy(model(x[ids]), y[ids])
                scaler.scale(loss).backward()
            before = len(taken)
            scaler.step(optimizer)
            real += [step] * (len(taken) - before)
            scaler.update()
            optimizer.zero_grad()
        attribution.detach()
        skipped += steps - len(taken)
        scored = {i // rows for i in attribution.values()["sample_id"].to_pylist()}
        wrong += sorted(scored ^ set(real))
    assert skipped > 50
    assert wrong == []
