"""Mixtures of experts in TRL's SFTTrainer: every expert is covered, values are the samples' own."""

import warnings

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from inrun.errors import InRunWarning
from tests.integration.small_trl import SHAPE, agree, trained
from tests.oracles.owner_models import KINDS


def experts(name, implementation=None, coefficient=0.0):
    import transformers

    kind, sizes = KINDS[name]
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **sizes})
    if hasattr(config, "router_aux_loss_coef"):
        config.router_aux_loss_coef = coefficient
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    if implementation is not None:
        model.config._experts_implementation = implementation
    return model


def said(caught):
    return [str(w.message) for w in caught if issubclass(w.category, InRunWarning)]


def agree_everywhere(attribution, truth, tolerance=1e-4):
    agree(attribution, truth, tolerance)
    table = attribution.coverage().to_pylist()
    own = [row for row in table if "expert" in row["parameter"]]
    assert own
    assert all(row["status"] == "captured" for row in table), table
    assert not any("dense" in row["captured_as"] for row in own)  # no share was built by fallback


@pytest.mark.parametrize("name", KINDS)
def test_values_are_those_of_real_steps_with_one_sample_alone(name, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attribution, truth = trained(tmp_path, model=experts(name))
    agree_everywhere(attribution, truth)
    assert not said(caught)


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_values_do_not_depend_on_how_experts_are_multiplied(implementation, tmp_path):
    attribution, truth = trained(tmp_path, model=experts("mixtral", implementation))
    agree_everywhere(attribution, truth)


class Balancing:
    """What the balancing loss of the whole batch gives a sample's router logits."""

    def gradients_of(self, inputs, row, count):
        twin, coefficient = self.truth.twin, self.router_aux_loss_coef
        self.aux_loss_enabled = False
        own = super().gradients_of(inputs, row, count)
        self.aux_loss_enabled = True
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}

        def routed(given):
            return twin.model(**given, output_router_logits=True).router_logits

        config = twin.config
        whole = [z.detach().requires_grad_() for z in routed(given)]
        loss = coefficient * load_balancing_loss_func(
            tuple(whole), config.num_local_experts, config.num_experts_per_tok,
            given["attention_mask"],
        )  # fmt: skip
        wanted = torch.autograd.grad(loss / self.current_gradient_accumulation_steps, whole)
        B, T = given["input_ids"].shape
        alone = routed({name: t[row : row + 1] for name, t in given.items()})
        through = sum(
            (g.view(B, T, -1)[row] * z.view(T, -1)).sum()
            for g, z in zip(wanted, alone, strict=True)
        )
        weights = [p for p in twin.parameters() if p.requires_grad]
        more = torch.autograd.grad(through, weights, allow_unused=True)
        return [a if b is None else a + b for a, b in zip(own, more, strict=True)]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_balancing_loss_is_scored_by_own_tokens_and_told_once(accumulated, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attribution, truth = trained(
            tmp_path, model=experts("mixtral", coefficient=0.5), mixin=Balancing,
            gradient_accumulation_steps=accumulated,
        )  # fmt: skip
    agree_everywhere(attribution, truth)
    (told,) = said(caught)
    assert "interact" in told


def test_half_precision(tmp_path):
    attribution, truth = trained(tmp_path, model=experts("mixtral"), bf16=True)
    agree_everywhere(attribution, truth, tolerance=5e-2)
