"""Training with InRun attached is training without it, bit for bit; detaching leaves no trace."""

import copy
import gc
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import inrun
from tests.oracles.cases import gpt2


def noisy():
    """Dropout (random state), frozen batch statistics, an embedding."""
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16).eval(), nn.ReLU(inplace=True), nn.Dropout(0.3),
        nn.Linear(16, 3),
    )  # fmt: skip


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def language_loss(model, batch):
    return model(input_ids=batch[0], labels=batch[0]).loss


def data():
    torch.manual_seed(5)
    return torch.randn(40, 6), torch.randint(3, (40,))


def text():
    torch.manual_seed(5)
    return (torch.randint(23, (40, 6)),)


def train(build, loss, batches, attach, capture="hold", estimator="path", **setting):
    torch.manual_seed(0)
    model = build()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **setting)
    attribution = None
    if attach:
        utility = inrun.Utility(loss, tuple(t[30:] for t in batches))
        attribution = inrun.attach(
            model,
            optimizer,
            utility,
            estimator=estimator,
            options=inrun.Options(capture=capture, progress=False),
        )
    torch.manual_seed(1)
    for step in range(8):
        rows = torch.randint(30, (4,))
        batch = tuple(t[rows] for t in batches)
        if attribution is None:
            loss(model, batch).backward()
        else:
            with attribution.batch(rows):
                loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
    return model, optimizer, attribution, torch.get_rng_state()


@pytest.mark.parametrize(
    ("capture", "estimator"),
    [("hold", "path"), ("stream", "path"), ("hold", "path-given"), ("hold", "sgd-second")],
)
@pytest.mark.parametrize(
    "setting", [{"foreach": True}, {"fused": True}, {"amsgrad": True}], ids=str
)
def test_weights_are_bitwise_the_same(capture, estimator, setting):
    plain, plain_opt, _, plain_rng = train(noisy, loss_fn, data(), False, **setting)
    model, opt, _, rng = train(noisy, loss_fn, data(), True, capture, estimator, **setting)
    for (name, p), q in zip(plain.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(p, q), name
    for p, q in zip(plain_opt.state.values(), opt.state.values(), strict=True):
        assert all(torch.equal(p[k], q[k]) for k in p)
    assert torch.equal(plain_rng, rng)
    modes = [m.training for m in plain.modules()]
    assert modes == [m.training for m in model.modules()]


@pytest.mark.parametrize("capture", ["hold", "stream"])
def test_a_language_model_is_bitwise_the_same(capture):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        plain, *_ = train(gpt2, language_loss, text(), False)
        model, *_ = train(gpt2, language_loss, text(), True, capture)
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_running_statistics_and_user_hooks_are_left_alone():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    model[1].eval()
    calls = []
    model[0].weight.register_hook(lambda g: calls.append(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = data()
    before = copy.deepcopy(model[1].running_mean)

    def careless(m, batch):
        m.train()  # a loss function that forgets itself
        return loss_fn(m, batch)

    attribution = inrun.attach(
        model,
        optimizer,
        inrun.Utility(careless, (x[30:], y[30:])),
        options=inrun.Options(progress=False, self_test=False),
    )
    assert not calls
    with attribution.batch(range(4)):
        loss_fn(model, (x[:4], y[:4])).backward()
    assert calls == [1]
    optimizer.step()
    assert calls == [1]
    assert torch.equal(model[1].running_mean, before)
    assert model[1].training is False


@pytest.mark.parametrize("capture", ["hold", "stream"])
def test_detach_leaves_no_trace(capture):
    model, optimizer, attribution, _ = train(noisy, loss_fn, data(), True, capture)
    attribution.detach()
    attribution.detach()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    for p in model.parameters():
        assert not p._backward_hooks
        assert not p._post_accumulate_grad_hooks
        assert set(vars(p)) <= set()
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert attribution.values().num_rows > 0
    with pytest.raises(inrun.errors.MisuseError, match="detached"), attribution.batch([1]):
        pass


def test_dropping_the_attribution_takes_its_hooks_along():
    _, optimizer, attribution, _ = train(noisy, loss_fn, data(), True)
    del attribution
    gc.collect()
    assert not optimizer._optimizer_step_pre_hooks


def test_held_factors_do_not_outlive_the_step():
    _, _, attribution, _ = train(noisy, loss_fn, data(), True)
    gc.collect()
    assert not attribution._loop.pending


def test_an_attribution_that_is_collected_within_a_strangers_step_does_not_disturb_it():
    """As the garbage collector may do at any time."""
    held = []
    handle = register_optimizer_step_post_hook(lambda *_: held.clear())
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(8, 3)
    utility = inrun.Utility(lambda m, b: m(b).square().mean(), x)
    held.append(inrun.attach(model, optimizer, utility, options=inrun.Options(progress=False)))
    other = nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    with pytest.warns(inrun.errors.InRunWarning, match="collected"):
        torch.optim.SGD(other.parameters(), lr=0.1).step()
    handle.remove()
    assert not optimizer._optimizer_step_post_hooks
