"""Training stacks in a loop of one's own: the same values as in the plainest loop."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import inrun
from inrun.errors import InRunWarning
from tests.oracles.cases import gpt2
from tests.settings import flat

B = 8


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(48, 6, generator=generator).to(dtype)
    return x, torch.randint(3, (48,), generator=generator)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3))


def attached(model, optimizer, batch, loss=loss_fn, **options):
    return inrun.attach(
        model,
        optimizer,
        inrun.Utility(loss, batch),
        **flat(progress=False, smoothed_steps=0, **options),
    )


def plain(model=None, steps=4, dtype=torch.float32, **options):
    x, y = data(dtype)
    model = model or network().to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attribution = attached(model, optimizer, (x[32:], y[32:]), **options)
    for rows in torch.arange(B * steps).split(B):
        with attribution.batch(rows):
            loss_fn(model, (x[rows], y[rows])).backward()
        optimizer.step()
        optimizer.zero_grad()
    return attribution


def numbers(attribution):
    return attribution.values()["value"].to_numpy()


def agree(found, expected, rtol=1e-5):
    a, b = numbers(found), numbers(expected)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


# ---- accelerate


def test_an_accelerate_loop_with_accumulation_and_clipping_is_the_plain_loop():
    x, y = data()

    def accelerated():
        accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        loader = DataLoader(TensorDataset(torch.arange(32), x[:32], y[:32]), 4)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        attribution = attached(model, optimizer, (x[32:], y[32:]))
        for ids, a, b in loader:
            with accelerator.accumulate(model):
                with attribution.batch(ids):
                    accelerator.backward(loss_fn(model, (a, b)))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
        return attribution

    def by_hand():
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        attribution = attached(model, optimizer, (x[32:], y[32:]))
        for rows in torch.arange(32).split(8):
            for part in rows.split(4):
                with attribution.batch(part):
                    (loss_fn(model, (x[part], y[part])) / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        return attribution

    found = accelerated()
    assert found.ledger()["visits"].to_pylist() == [8] * 4
    agree(found, by_hand(), 1e-6)


# ---- precision


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_gradient_scaler_changes_nothing_and_skipped_steps_are_not_scored(fused, unscaled):
    x, y = data()

    def run(scale, blown=()):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", enabled=scale, init_scale=2.0**10)
        attribution = attached(model, optimizer, (x[32:], y[32:]))
        for number, rows in enumerate(torch.arange(32).split(8)):
            with attribution.batch(rows):
                loss = loss_fn(model, (x[rows], y[rows]))
                scaler.scale(loss * (float("inf") if number in blown else 1.0)).backward()
            if unscaled:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return attribution

    agree(run(True), run(False))
    skipping = run(True, blown=(1,))
    assert skipping.ledger()["visits"].to_pylist() == [8] * 3
    assert skipping.values()["sample_id"].to_pylist() == [*range(8), *range(16, 32)]


def test_half_precision_autocast_with_a_scaler_agrees_with_single_precision():
    x, y = data()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    attribution = attached(model, optimizer, (x[32:], y[32:]))
    for rows in torch.arange(32).split(8):
        with attribution.batch(rows):
            with torch.autocast("cpu", torch.float16):
                loss = loss_fn(model, (x[rows], y[rows]))
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert attribution.covered == 1.0
    assert np.corrcoef(numbers(attribution), numbers(plain()))[0, 1] > 0.99


def test_bfloat16_weights_are_scored_to_their_own_digits():
    """Of the first step, since the weights themselves go other ways after it."""
    found = plain(dtype=torch.bfloat16, steps=1, estimator="sgd")
    expected = plain(steps=1, estimator="sgd")
    assert found.covered == 1.0
    a, b = numbers(found), numbers(expected)
    np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max())


# ---- memory savers


class Deep(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.inside = nn.ModuleList(nn.Linear(32, 32) for _ in range(6))
        self.first, self.last, self.reentrant = nn.Linear(6, 32), nn.Linear(32, 3), reentrant

    def body(self, h):
        for layer in self.inside:
            h = torch.tanh(layer(h))
        return h

    def forward(self, x):
        h = self.first(x)
        if self.reentrant is None:
            return self.last(self.body(h))
        return self.last(checkpoint(self.body, h, use_reentrant=self.reentrant))


@pytest.mark.parametrize("capture", ["hold", "stream"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_are_scored_as_others(reentrant, capture):
    found = plain(Deep(reentrant).double(), dtype=torch.float64, capture=capture)
    agree(found, plain(Deep(None).double(), dtype=torch.float64, capture=capture), 1e-9)


def test_streaming_through_a_reentrant_checkpoint_keeps_its_activations_freed():
    """Between forward and backward nothing inside the checkpoint is kept alive."""
    import gc

    x, y = data()

    def kept(model, watched):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        attribution = attached(model, optimizer, (x[32:], y[32:]), capture="stream")
        with attribution.batch(range(B)) if watched else torch.enable_grad():
            loss = loss_fn(model, (x[:B], y[:B]))
            gc.collect()
            alive = sum(type(o) is torch.Tensor and o.shape == (B, 32) for o in gc.get_objects())
            loss.backward()
        return alive

    assert kept(Deep(True), True) <= kept(Deep(True), False) + 2  # the checkpoint's in- and output


# ---- LoRA


def language(adapters=1):
    torch.manual_seed(0)
    settings = LoraConfig(r=2, lora_alpha=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    model = get_peft_model(gpt2(), settings)
    if adapters == 2:
        model.add_adapter("second", settings)
        model.set_adapter("second")
    return model


@pytest.mark.parametrize("adapters", [1, 2])
def test_adapters_are_scored_and_the_frozen_base_is_not(adapters):
    model = language(adapters)
    torch.manual_seed(1)
    tokens = torch.randint(23, (24, 6))

    def lm_loss(m, batch):
        return m(input_ids=batch[0], labels=batch[0]).loss

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    attribution = attached(model, optimizer, (tokens[16:],), lm_loss)
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    for rows in torch.arange(16).split(4):
        with attribution.batch(rows):
            lm_loss(model, (tokens[rows],)).backward()
        optimizer.step()
        optimizer.zero_grad()
    table = attribution.coverage().to_pylist()
    scored = {r["parameter"] for r in table if r["status"] == "captured"}
    active = "second" if adapters == 2 else "default"
    assert scored
    assert all(f"lora_A.{active}" in name or f"lora_B.{active}" in name for name in scored)
    assert attribution.covered == 1.0
    ledger = attribution.ledger()
    entries = np.abs(ledger["samples"].to_numpy()) + np.abs(ledger["momentum"].to_numpy())
    assert (np.abs(ledger["residual"].to_numpy()) < 0.05 * entries).all()
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters() if n in before)


# ---- torch.compile


@pytest.mark.parametrize("what", ["whole", "in place", "a part"])
def test_a_compiled_model_is_scored_uncompiled_with_a_word(what):
    model = network()
    if what == "whole":
        model = torch.compile(model, backend="eager")
    elif what == "in place":
        model.compile(backend="eager")
    else:
        model[0] = torch.compile(model[0], backend="eager")
    with pytest.warns(InRunWarning, match="runs uncompiled"):
        found = plain(model)
    np.testing.assert_array_equal(numbers(found), numbers(plain()))
    assert found.covered == 1.0


def test_compiled_code_is_back_after_the_block():
    calls = []

    def backend(graph, _):
        def run(*args):
            calls.append(1)
            return graph.forward(*args)

        return run

    torch._dynamo.reset()
    model = torch.compile(network(), backend=backend)
    with pytest.warns(InRunWarning, match="uncompiled"):
        plain(model, steps=1)
    inside = len(calls)
    model(data()[0])
    assert len(calls) == inside + 1


# ---- attention


def test_fused_attention_is_used_in_training_and_the_math_kernel_for_curvature_only(monkeypatch):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 3)

        def forward(self, x):
            q, k, v = self.qkv(x.unsqueeze(1) * torch.ones(1, 4, 1)).chunk(3, -1)
            with warnings.catch_warnings():
                states.append(torch.backends.cuda.flash_sdp_enabled())
                return self.out(F.scaled_dot_product_attention(q, k, v).mean(1))

    states = []
    torch.manual_seed(0)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        found = plain(Attention(), estimator="path")
        assert all(states)
        states.clear()
        found = plain(Attention(), estimator="sgd-second")
        assert not all(states)
        assert any(states)
    assert found.covered == 1.0
