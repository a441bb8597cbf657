"""TRL's SFTTrainer with its own defaults: values are those of real steps with one sample alone."""

import numpy as np
import pytest

from tests.integration.small_trl import agree, head_of, llama, rows, trained

CASES = {
    "default": {},
    "nll": {"loss_type": "nll"},
    "dft": {"loss_type": "dft"},
    "accumulation and clipping": {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
    "no checkpoints": {"gradient_checkpointing": False},
    "checkpoints with re-entry": {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
    "compiled": {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    "completion only": {"data": "completion"},
    "whole conversations": {"data": "messages"},
    "assistant only": {"data": "messages", "assistant_only_loss": True},
    "noise": {"neftune_noise_alpha": 5.0, "alone": False},
    "tied": {"model": {"tie_word_embeddings": True}},
}


@pytest.mark.filterwarnings("ignore:The model is compiled")
@pytest.mark.parametrize("case", CASES)
def test_values_are_those_of_real_steps_with_one_sample_alone(case, tmp_path):
    given = dict(CASES[case])
    data, model = rows(given.pop("data", "text")), llama(**given.pop("model", {}))
    attribution, truth = trained(tmp_path, data, model, **given)
    agree(attribution, truth)
    if case != "tied":
        assert head_of(attribution) == {"ChunkedLogProbFunction.apply: fusedhead"}


def test_values_of_adapters_are_those_of_real_steps(tmp_path):
    from peft import LoraConfig

    adapters = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    attribution, truth = trained(tmp_path, peft_config=adapters)
    agree(attribution, truth)


def test_ledger_closes_under_the_trainers_own_optimizer(tmp_path):
    attribution, _ = trained(tmp_path, estimator="path", learning_rate=1e-3, max_steps=6)
    ledger = attribution.ledger()
    entries = sum(
        np.abs(ledger[name].to_numpy()) for name in ("samples", "momentum", "weight_decay")
    )
    assert (np.abs(ledger["residual"].to_numpy()) < 0.02 * entries)[2:].all()
    assert attribution.covered == 1.0
