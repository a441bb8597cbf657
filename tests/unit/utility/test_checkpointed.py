"""A validation pass over layers that recompute their activations in training."""

import pytest
import torch

from inrun.utility import Utility, evaluate, undisturbed

transformers = pytest.importorskip("transformers")


@pytest.fixture(name="model", scope="module")
def _model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.3, attn_pdrop=0.3, embd_pdrop=0.3,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).train()


def passed(model):
    """The pass's gradients, and how often an attention ran, and in which mode."""
    modes = []
    part = model.transformer.h[1].attn
    handle = part.register_forward_pre_hook(lambda m, _: modes.append((m.training, block.training)))
    block = model.transformer.h[1]
    rows = torch.arange(16).reshape(2, 8) % 11
    utility = Utility(lambda m, x: m(input_ids=x, labels=x).loss, rows)
    found = evaluate(utility, model, dict(model.named_parameters()))
    handle.remove()
    return found, modes


@pytest.mark.parametrize("reentrant", [False, True])
def test_it_recomputes_in_evaluation_mode_and_leaves_the_layers_as_they_were(model, reentrant):
    expected, modes = passed(model)
    assert modes == [(False, False)]
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    kept = [layer._gradient_checkpointing_func for layer in model.transformer.h]
    found, modes = passed(model)
    assert modes == [(False, False)] * 2  # once more in the backward pass
    for name, gradient in expected.gradients.items():
        assert torch.equal(gradient, found.gradients[name])
    assert all(module.training for module in model.modules())
    after = [layer._gradient_checkpointing_func for layer in model.transformer.h]
    assert all(a is b for a, b in zip(kept, after, strict=True))
    model.gradient_checkpointing_disable()


def test_an_error_leaves_the_layers_as_they_were(model):
    model.gradient_checkpointing_enable()
    kept = model.transformer.h[0]._gradient_checkpointing_func
    with pytest.raises(KeyError), undisturbed(model):
        raise KeyError
    assert model.transformer.h[0]._gradient_checkpointing_func is kept
    assert all(module.training for module in model.modules())
    model.gradient_checkpointing_disable()
