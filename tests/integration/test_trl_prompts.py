"""GRPO and RLOO of TRL: the sample is the prompt, with all its completions of a step as its rows.

Brute force: the trainer's own loss of a prompt's rows alone, divided as in the whole batch.
"""

import copy
import warnings

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

import inrun
from inrun.integrations.transformers import InRun
from tests.integration.tiny_language import (
    LR,
    TOKENIZER,
    agree,
    gradient,
    language_model,
    scored,
    sentences,
    settings,
)

warnings.filterwarnings("ignore", category=FutureWarning)
PROMPTS = list(dict.fromkeys(sentences(40, 2, 4, 0)))[:20]
KINDS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
HELD = range(12, 20)
SHORT = {"num_generations": 4, "max_completion_length": 6, "beta": 0.0}


def rewards(completions, **columns):
    assert "inrun_ids" not in columns
    return [
        sum(word in ("cat", "dog", "house") for word in text.split()) + 0.1 * len(text)
        for text in completions
    ]


def made(folder, kind="grpo", data=None, **changes):
    trainer, config = KINDS[kind]

    class Remembering(trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            if self.model.training and torch.is_grad_enabled():
                self.seen = [*getattr(self, "seen", []), inputs]
            return super().compute_loss(model, inputs, *args, **kwargs)

    return Remembering(
        language_model(), reward_funcs=rewards,
        train_dataset=data or Dataset.from_dict({"prompt": PROMPTS}),
        args=config(**settings(folder, **{**SHORT, **changes})), processing_class=TOKENIZER,
    )  # fmt: skip


def rows_of(batch):
    """{place of the prompt in the data: its rows}."""
    found = {}
    for row, (tokens, mask) in enumerate(
        zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
    ):
        text = TOKENIZER.decode(tokens[mask.bool()])
        found.setdefault(PROMPTS.index(text), []).append(row)
    return found


def taken(batch, rows):
    return {k: v[rows] if isinstance(v, torch.Tensor) and v.ndim else v for k, v in batch.items()}


def true_values(trainer, held):
    """{prompt: value} of the batches that the trainer remembers, at its weights as they are."""
    model, values = trainer.model.train(), {}
    model.eval()
    target = gradient(trainer.compute_loss(model, held), model)
    model.train()
    whole = trainer.seen
    for batch in whole:
        for prompt, rows in rows_of(batch).items():
            own = taken(batch, rows)
            share = gradient(trainer.compute_loss(model, own), model)
            if "num_items_in_batch" not in batch:  # a mean over rows, then over the batches
                share = share * len(rows) / len(batch["prompt_ids"]) / len(whole)
            values[prompt] = values.get(prompt, 0.0) + LR * float(target @ share)
    return values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes", [{}, {"gradient_accumulation_steps": 2}, {"per_device_train_batch_size": 8}], ids=str
)
def test_a_prompt_has_the_value_of_its_completions(kind, changes, tmp_path):
    trainer = made(tmp_path, kind, **changes)
    before = copy.deepcopy(trainer.model.state_dict())
    values, attribution, said = scored(trainer, trainer.train_dataset.select(HELD))
    assert attribution.covered == 1.0
    assert not said
    held = {k: v for k, v in attribution._utility.batches["validation"].items() if k != "inrun_ids"}
    assert len(held["prompt_ids"]) == 8 * 4
    trainer.model.load_state_dict(before)
    agree(values, true_values(trainer, held))


def test_completions_that_are_used_again_keep_their_prompts(tmp_path):
    values, attribution, _ = scored(
        trainer := made(tmp_path, num_iterations=2, max_steps=2), made(tmp_path).train_dataset
    )
    assert attribution.values()["visits"].to_pylist() == [2] * len(values)
    assert {p for batch in trainer.seen for p in rows_of(batch)} == set(values)


def test_ids_from_a_column_that_rewards_need(tmp_path):
    named = Dataset.from_dict({"prompt": PROMPTS, "name": [f"prompt {i}" for i in range(20)]})

    def reward(completions, name, **_):
        return [
            float(own.startswith("prompt")) * len(c)
            for own, c in zip(name, completions, strict=True)
        ]

    trainer = made(tmp_path, data=named, steps_per_generation=2)
    trainer.reward_funcs = [reward]
    values, _, _ = scored(trainer, named.select(HELD), ids="name")
    assert set(values) <= set(named["name"])


def likelihood(model, batch):
    """What is sought: likely good answers, weighted by their rewards."""
    tokens, wanted, weights = batch
    logits = model(input_ids=tokens).logits[:, :-1]
    of_token = logits.float().log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return -(weights * (of_token * wanted[:, 1:]).sum(1)).mean()


def test_the_books_close_by_a_reward_weighted_likelihood_of_ones_own(tmp_path):
    torch.manual_seed(3)
    tokens = torch.randint(3, 16, (6, 8))
    wanted = torch.arange(8).expand(6, 8) > 3
    utility = inrun.Utility(likelihood, (tokens, wanted, torch.tensor([1.0, 0.5, 1, 0, 0.2, 1])))
    trainer = made(
        tmp_path, max_steps=6, optim="adamw_torch", learning_rate=1e-3, max_grad_norm=1.0,
        lr_scheduler_type="linear", gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer.add_callback(callback := InRun(utility))
    trainer.train()
    assert callback.attribution.covered == 1.0
    for row in callback.attribution.ledger().to_pylist()[2:]:
        assert abs(row["residual"]) < 0.02 * (abs(row["samples"]) + abs(row["momentum"]))


def test_training_and_logs_are_as_without(tmp_path):
    found = []
    for watched in (False, True):
        trainer = made(
            tmp_path, max_steps=3, logging_steps=1, optim="adamw_torch", learning_rate=1e-3
        )
        if watched:
            trainer.add_callback(InRun(trainer.train_dataset.select(HELD)))
        trainer.train()
        logs = [
            {k: v for k, v in row.items() if not any(w in k for w in ("inrun", "time", "second"))}
            for row in trainer.state.log_history
        ]
        found.append((logs, trainer.model.state_dict()))
        assert "_generate_and_score_completions" not in vars(trainer)
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[1][1][name], t) for name, t in found[0][1].items())
