"""TRL's preference trainers with their own defaults: a pair is a sample, with both of its rows.

Brute force: the trainer's own loss of the pair alone, by plain autograd at the weights before the
step, over the number of pairs; its product with the gradient of the trainer's validation loss.
"""

import copy
import warnings

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer

from inrun.integrations.transformers import InRun, margin_loss
from tests.integration.tiny_language import (
    LR,
    TOKENIZER,
    agree,
    gradient,
    language_model,
    pairs,
    reward_model,
    scored,
    sentences,
    settings,
    unpaired,
)

warnings.filterwarnings("ignore", category=FutureWarning)


def dpo(folder, model=None, **changes):
    return DPOTrainer(
        model or language_model(), ref_model=language_model(1),
        args=DPOConfig(**settings(folder, **changes)),
        train_dataset=pairs(), processing_class=TOKENIZER,
    )  # fmt: skip


def by_own_loss(trainer, validation_loss=None):
    """{sample: value} of every sample of the data in a batch of so many, by its loss alone."""
    model, data = trainer.model.eval(), trainer.train_dataset
    batch, size = trainer.data_collator, trainer.args.per_device_train_batch_size
    held = batch([data[i] for i in HELD])
    target = gradient((validation_loss or trainer.compute_loss)(model, held), model)
    own = [gradient(trainer.compute_loss(model, batch([item])), model) for item in data]
    return {i: LR * float(target @ g) / size for i, g in enumerate(own)}


def compare(trainer, loss_fn=None):
    true = by_own_loss(trainer, loss_fn)
    values, attribution, said = scored(trainer, trainer.train_dataset.select(HELD), loss_fn=loss_fn)
    assert len(values) == trainer.args.per_device_train_batch_size
    agree(values, {i: true[i] for i in values})
    assert attribution.covered == 1.0
    assert not said


HELD = range(10, 16)
SUMS = [
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
]  # fmt: skip
FORMS = [
    {"loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.7, 0.3]},
    {"f_divergence_type": "js_divergence"}, {"ld_alpha": 0.4}, {"use_weighting": True},
    {"precompute_ref_log_probs": True}, {"per_device_train_batch_size": 3},
]  # fmt: skip


@pytest.mark.parametrize("kind", SUMS)
def test_a_pair_is_a_sample_in_every_dpo_loss_that_is_a_sum_over_pairs(kind, tmp_path):
    smoothing = 0.1 if kind in ("exo_pair", "robust") else 0.0
    compare(dpo(tmp_path, loss_type=kind, label_smoothing=smoothing))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_pair_is_a_sample_in_every_form_of_dpo(form, tmp_path):
    compare(dpo(tmp_path, **form))


def test_values_by_the_margin(tmp_path):
    compare(dpo(tmp_path / "dpo"), margin_loss)
    compare(reward(tmp_path / "reward"), margin_loss)


def reward(folder, **changes):
    data = pairs().add_column("margin", [0.1 * i for i in range(16)])
    return RewardTrainer(
        reward_model(), args=RewardConfig(**settings(folder, **changes)),
        train_dataset=data, processing_class=TOKENIZER,
    )  # fmt: skip


@pytest.mark.parametrize("form", [{}, {"center_rewards_coefficient": 0.1}], ids=str)
def test_a_pair_is_a_sample_of_the_reward_trainer(form, tmp_path):
    compare(reward(tmp_path, **form))


def test_a_collator_that_draws_the_order_of_its_rows_is_asked_with_the_same_draws(tmp_path):
    trainer = reward(tmp_path)
    plain = trainer.data_collator

    def shuffled(items):
        order = torch.randperm(len(items)).tolist()
        return plain([items[i] for i in order])

    trainer.data_collator = shuffled
    compare(trainer)


@pytest.mark.parametrize("name", ["orpo", "cpo"])
def test_a_pair_is_a_sample_of_orpo_and_cpo(name, tmp_path):
    orpo = pytest.importorskip(f"trl.experimental.{name}")
    config, trainer = (getattr(orpo, f"{name.upper()}{kind}") for kind in ("Config", "Trainer"))
    made = trainer(
        language_model(), args=config(**settings(tmp_path)), train_dataset=equally_long(),
        processing_class=TOKENIZER,
    )  # fmt: skip
    compare(made)


def equally_long():
    """Both trainers add the mean over all chosen tokens: of unequal pairs it is no sum of means."""
    return Dataset.from_dict(
        {
            "prompt": sentences(16, 3, 3, 0),
            "chosen": [" " + text for text in sentences(16, 4, 4, 1)],
            "rejected": [" " + text for text in sentences(16, 5, 5, 2)],
        }
    )


def kto(folder, **changes):
    return KTOTrainer(
        language_model(), ref_model=language_model(1),
        args=KTOConfig(**settings(folder, **changes)),
        train_dataset=unpaired(), processing_class=TOKENIZER,
    )  # fmt: skip


def test_an_unpaired_row_is_a_sample_of_kto(tmp_path):
    compare(kto(tmp_path, loss_type="apo_zero_unpaired"))


def by_own_rows(trainer, ids):
    """{sample: value} where samples interact: the gradient that passes through its own rows."""
    model, batch = trainer.model.eval(), trainer.data_collator

    def of(positions, sample=None):
        rows = batch([trainer.train_dataset[i] for i in positions])
        keep = torch.arange(len(rows["input_ids"])) % len(positions) == sample

        def only_its_own(module, args, output):
            if torch.is_grad_enabled() and sample is not None:
                output.log_probs.register_hook(lambda g: g * keep.to(g.dtype)[:, None])

        handle = model.register_forward_hook(only_its_own)
        found = gradient(trainer.compute_loss(model, rows), model)
        handle.remove()
        return found

    target = of(HELD)
    return {i: LR * float(target @ of(ids, sample)) for sample, i in enumerate(ids)}


@pytest.mark.parametrize(
    ("make", "kind", "told"),
    [(kto, "kto", False), (dpo, "aot", False), (dpo, "aot_unpaired", True)],
    ids=["KL of the batch", "sorted against references", "sorted against each other"],
)
def test_where_samples_interact_a_value_is_what_passes_through_its_own_rows(
    make, kind, told, tmp_path
):
    trainer = make(tmp_path, loss_type=kind)
    before = copy.deepcopy(trainer.model.state_dict())
    values, attribution, said = scored(trainer, trainer.train_dataset.select(HELD))
    assert attribution.covered == 1.0
    assert any("interact" in text for text in said) is told
    trainer.model.load_state_dict(before)
    agree(values, by_own_rows(trainer, list(values)))


@pytest.mark.parametrize("make", [dpo, reward, kto], ids=lambda make: make.__name__)
def test_the_books_close_with_the_trainers_own_optimizer(make, tmp_path):
    trainer = make(
        tmp_path, max_steps=6, optim="adamw_torch", learning_rate=1e-3, max_grad_norm=1.0,
        gradient_accumulation_steps=2, lr_scheduler_type="linear", beta=1.0,
    ) if make is not reward else make(
        tmp_path, max_steps=6, optim="adamw_torch", learning_rate=1e-3, max_grad_norm=1.0,
        gradient_accumulation_steps=2, lr_scheduler_type="linear",
    )  # fmt: skip
    trainer.add_callback(callback := InRun(trainer.train_dataset.select(HELD)))
    trainer.train()
    assert callback.attribution.covered == 1.0
    for row in callback.attribution.ledger().to_pylist()[2:]:
        moved = abs(row["samples"]) + abs(row["momentum"])
        assert abs(row["residual"]) < 0.02 * moved


def test_at_dpos_default_rate_the_residual_is_the_losses_rounding(tmp_path):
    """Entries shrink with the rate, the residual does not: it is 0.69's last digits in float32."""
    found = []
    for name, rate in (("default", {}), ("hundredfold", {"learning_rate": 1e-4})):
        config = DPOConfig(
            str(tmp_path / name), max_steps=4, per_device_train_batch_size=4, report_to=[],
            use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, **rate,
        )  # fmt: skip
        trainer = DPOTrainer(
            language_model().float(), ref_model=language_model(1).float(), args=config,
            train_dataset=pairs(), processing_class=TOKENIZER,
        )  # fmt: skip
        trainer.add_callback(callback := InRun(trainer.train_dataset.select(HELD)))
        trainer.train()
        assert "rounding of losses in single precision" in str(callback.attribution)
        found.append(callback.attribution.ledger().to_pylist())
    for low, high in zip(*found, strict=True):
        rounding = 2 * torch.finfo(torch.float32).eps * low["opening_loss"]
        assert abs(low["residual"]) <= rounding
        moved = low["samples"] + low["momentum"]
        assert 100 * moved == pytest.approx(high["samples"] + high["momentum"], rel=0.05)
        assert abs(high["residual"]) < 5e-3 * abs(high["samples"] + high["momentum"])


def test_the_trainers_logs_are_as_without(tmp_path):
    class Nothing(TrainerCallback):
        pass

    logs = []
    for callback in (Nothing(), InRun(dpo(tmp_path / "a").train_dataset.select(HELD))):
        trainer = dpo(tmp_path / "b", max_steps=4, logging_steps=2)
        trainer.add_callback(callback)
        trainer.train()
        logs.append(
            [
                {k: v for k, v in row.items() if "inrun" not in k and "per_second" not in k
                 and "runtime" not in k}
                for row in trainer.state.log_history
            ]
        )  # fmt: skip
        assert "compute_loss" not in vars(trainer)
    assert logs[0] == logs[1]
