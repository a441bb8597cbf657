"""Tiny models in double precision and data for TRL's trainers, and values by brute force."""

import random
import warnings

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import inrun
from inrun.integrations.transformers import InRun
from tests.integration.small_trl import WORDS, tokenizer

TOKENIZER = tokenizer()
LR = 0.05


def sentences(count, shortest, longest, seed):
    draw = random.Random(seed)
    lengths = [draw.randint(shortest, longest) for _ in range(count)]
    return [" ".join(draw.choices(WORDS[3:], k=length)) for length in lengths]


def pairs(count=16):
    return Dataset.from_dict(
        {
            "prompt": sentences(count, 2, 4, 0),
            "chosen": [" " + text for text in sentences(count, 3, 6, 1)],
            "rejected": [" " + text for text in sentences(count, 2, 5, 2)],
        }
    )


def unpaired(count=16):
    data = pairs(count)
    labels = [i % 3 > 0 for i in range(count)]
    return Dataset.from_dict(
        {"prompt": data["prompt"], "completion": data["chosen"], "label": labels}
    )


def language_model(seed=0, kind=LlamaForCausalLM, **config):
    torch.manual_seed(seed)
    model = kind(
        LlamaConfig(
            vocab_size=len(WORDS), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128,
            initializer_range=0.1, pad_token_id=0, **config,
        )
    )  # fmt: skip
    return model.double()


def reward_model(seed=0):
    return language_model(seed, LlamaForSequenceClassification, num_labels=1)


def settings(folder, **changes):
    return {
        "output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 4,
        "report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True,
        "bf16": False, "logging_steps": 100, "max_grad_norm": 0.0, "learning_rate": LR,
        "lr_scheduler_type": "constant", "optim": "sgd", "dataloader_pin_memory": False, **changes,
    }  # fmt: skip


def gradient(loss, model):
    """The gradient of a loss, all parameters in one row; 0 where one is not used."""
    weights = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if g is None else g).double().flatten()
            for p, g in zip(weights, found, strict=True)
        ]
    )


def scored(trainer, validation, **options):
    """Trains with the callback: {id: value}, the attribution, warnings of inrun."""
    dense = inrun.Options(progress=False, contraction="dense")
    callback = InRun(validation, estimator="sgd", options=dense, **options)
    trainer.add_callback(callback)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer.train()
    table = callback.attribution.values()
    values = dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist(), strict=True))
    said = [str(w.message) for w in seen if "inrun" in type(w.message).__module__]
    return values, callback.attribution, said


def agree(values, true, close=1e-4):
    """Values are those that brute force has, to a part of the largest."""
    assert set(values) == set(true)
    found, wanted = (torch.tensor([v[i] for i in true]) for v in (values, true))
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(found, wanted, rtol=close, atol=close * float(wanted.abs().max()))
