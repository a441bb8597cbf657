"""What `offload` moves, and what it lets go of."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

import inrun
from inrun.capture import Hold, Moves, Offload

META = torch.device("meta")  # stands for a device: tensors there have no storage to read


def to_meta(t):
    return t.to(META, copy=True)


def test_a_tensor_is_moved_once_however_often_it_is_held():
    moves, x = Moves(to_meta), torch.randn(3, 4)
    first = moves(x)
    assert first.device == META
    assert moves(x.detach()) is first
    assert moves(x.view(4, 3)) is not first
    assert moves(x[1:]) is not first
    x.add_(1)
    assert moves(x) is not first


def test_a_copy_is_not_taken_for_that_of_a_later_tensor_in_the_same_place():
    moves = Moves()
    for k in range(50):  # the allocator gives the same place again and again
        x = torch.full((1000,), float(k))
        assert moves(x)[0] == k
        del x


def activations(model):
    """Weak references to what each layer's output lies in."""
    found = []
    for layer in model:
        layer.register_forward_hook(
            lambda module, given, out: found.append(StorageWeakRef(out.untyped_storage()))
        )
    return found


@pytest.mark.parametrize(("kind", "kept"), [(Hold, True), (Offload, False)])
def test_activations_are_free_when_the_backward_pass_is_over(kind, kept):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    capture = kind(model, dict(model.named_parameters()))
    found = activations(model)
    with capture.block(5) as block:
        model(torch.randn(5, 6)).square().sum().backward()
    inputs_of_layers = [found[1], found[3]]
    assert [ref.expired() for ref in inputs_of_layers] == [not kept] * 2
    assert block.factors


def test_factors_are_on_the_cpu_and_brought_back_whole():
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 2))
    capture = Hold(model, dict(model.named_parameters()))
    with capture.block(3) as block:
        model(torch.randn(3, 2, 4)).square().sum().backward()
    for factors in block.factors.values():
        for factor in factors:
            assert factor.on(torch.device("cpu")) is factor
            away = factor.mapped(Moves(to_meta)).on(META)
            assert all(t.device == META for t in away.held)
            assert away.shape == factor.shape
            Q = torch.empty(2, *factor.shape, device=META)
            assert away.contract(Q).shape == (3, 2)


@pytest.mark.parametrize("clip", ["norm", "value"])
@pytest.mark.parametrize("smoothed_steps", [0, 2])
def test_values_are_bit_for_bit_those_of_hold(clip, smoothed_steps):
    tables = []
    for capture in ("hold", "offload"):
        torch.manual_seed(0)
        x, y = torch.randn(30, 6), torch.randint(3, (30,))
        model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        utility = inrun.Utility(lambda m, b: F.cross_entropy(m(b[0]), b[1]), (x[24:], y[24:]))
        attribution = inrun.attach(
            model,
            optimizer,
            utility,
            options=inrun.Options(capture=capture, smoothed_steps=smoothed_steps),
        )
        for ids in torch.arange(24).split(6):
            for part in ids.split(3):
                with attribution.batch(part):
                    F.cross_entropy(model(x[part]), y[part]).backward()
            if clip == "norm":
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            else:
                nn.utils.clip_grad_value_(model.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
        attribution.detach()
        tables.append(attribution.values())
    assert tables[0].equals(tables[1])
