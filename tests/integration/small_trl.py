"""A small SFTTrainer of TRL, and what real steps with one sample's gradient do.

At every step the model and its optimizer are copied, and the copy makes a real step of SGD with the
gradient of one sample alone. How far that moves the weights along the validation gradient is the
sample's value by first order, which the callback's is compared with.
"""

import copy
import random

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from transformers.integrations.neftune import activate_neftune

import inrun
from inrun.integrations.transformers import InRun

WORDS = ["<pad>", "<unk>", "</s>", *"the cat sat on a mat and dog ran to big red house".split()]
VALIDATION = 6
TURNS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %} {% endfor %}"
)


def tokenizer():
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        chat_template=TURNS,
    )  # fmt: skip


def rows(kind="text", count=32):
    draw = random.Random(0)

    def say(most):
        return " ".join(draw.choices(WORDS[3:], k=draw.randint(3, most)))

    if kind == "text":
        return Dataset.from_dict({"text": [say(9) for _ in range(count)]})
    if kind == "completion":
        pairs = [(say(4), " " + say(6)) for _ in range(count)]
        return Dataset.from_dict(
            {"prompt": [p for p, _ in pairs], "completion": [c for _, c in pairs]}
        )
    return Dataset.from_dict(
        {
            "messages": [
                [{"role": "user", "content": say(4)}, {"role": "assistant", "content": say(6)}]
                for _ in range(count)
            ]
        }
    )


SHAPE = {
    "vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0,
}  # fmt: skip


def llama(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes}))


class Truth(TrainerCallback):
    """What real steps with the gradient of one sample alone do to the validation loss.

    Args:
        twin: a copy of the model, from before the training.
        validation: collated.
    """

    def __init__(self, twin, validation):
        self.twin, self.validation = twin, validation
        self.values = {}
        self.gradients = {}

    def judge(self, twin):
        """The validation loss, from logits: of DFT too, whose gradient is that of no loss."""
        base = twin.get_base_model() if hasattr(twin, "get_base_model") else twin
        return type(base).forward(base, **self.validation).loss

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **_):
        """The step's gradients are clipped: by the same factor for each sample."""
        real = [p for p in model.parameters() if p.requires_grad]
        total = [sum(parts) for parts in zip(*self.gradients.values(), strict=True)]
        flat = torch.cat([g.flatten() for g in total]).double()
        k = torch.cat([p.grad.flatten() for p in real]).double() @ flat / (flat @ flat)
        self.twin.load_state_dict(model.state_dict())
        weights = [p for p in self.twin.parameters() if p.requires_grad]
        judge = self.judge(self.twin.eval())
        direction = torch.autograd.grad(judge, weights)
        before = [w.detach().clone() for w in weights]
        for sample, gradients in self.gradients.items():
            step = torch.optim.SGD(weights, lr=optimizer.param_groups[0]["lr"])
            for w, start, g in zip(weights, before, gradients, strict=True):
                w.data.copy_(start)
                w.grad = k.float() * g
            step.step()
            moved = sum(
                float(((start - w.detach()).double() * d.double()).sum())
                for w, start, d in zip(weights, before, direction, strict=True)
            )
            self.values[sample] = self.values.get(sample, 0.0) + moved
        self.gradients = {}


def watched(kind):
    """A trainer that computes each sample's own gradient before its real training step."""

    class Watched(kind):
        truth = None
        alone = True  # its row alone; or else with the others' labels taken away

        def training_step(self, model, inputs, num_items_in_batch=None):
            if self.truth is not None:
                given = {k: v for k, v in inputs.items() if k != "inrun_ids"}
                for row, sample in enumerate(inputs["inrun_ids"].ids):
                    with torch.random.fork_rng(devices=[]):
                        own = self.gradients_of(given, row, num_items_in_batch)
                    kept = self.truth.gradients.setdefault(sample, own)
                    if kept is not own:
                        raise AssertionError("a sample came twice in one step")
            return super().training_step(model, inputs, num_items_in_batch)

        def gradients_of(self, inputs, row, count):
            twin = self.truth.twin.train()
            twin.load_state_dict(self.model.state_dict())
            own = {k: v[row : row + 1] for k, v in inputs.items()}
            if not self.alone:
                labels = torch.full_like(inputs["labels"], -100)
                labels[row] = inputs["labels"][row]
                own = {**inputs, "labels": labels}
            weights = [p for p in twin.parameters() if p.requires_grad]
            loss = self.compute_loss(twin, dict(own), num_items_in_batch=count)
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            return [
                torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)
            ]

    return Watched


COMMON = {
    "max_steps": 4, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True,
    "save_strategy": "no", "disable_tqdm": True, "bf16": False, "max_length": 32,
    "dataloader_pin_memory": False, "learning_rate": 0.05, "logging_steps": 100,
}  # fmt: skip


def trained(folder, data=None, model=None, alone=True, estimator="sgd", mixin=None, **config):
    """(The callback's attribution, the truth)."""
    data = rows() if data is None else data
    peft = config.pop("peft_config", None)
    settings = {**COMMON, "optim": "sgd" if estimator == "sgd" else "adamw_torch", **config}
    import trl

    kind = watched(trl.SFTTrainer)
    trainer = (kind if mixin is None else type(mixin.__name__, (mixin, kind), {}))(
        llama() if model is None else model, trl.SFTConfig(output_dir=str(folder), **settings),
        train_dataset=data, processing_class=tokenizer(), peft_config=peft,
    )  # fmt: skip
    held = trainer.train_dataset.select(range(VALIDATION))
    columns = [c for c in ("input_ids", "labels", "completion_mask", "assistant_masks")
               if c in held.column_names]  # fmt: skip
    twin = copy.deepcopy(trainer.model)
    if trainer.args.neftune_noise_alpha:
        activate_neftune(twin, trainer.args.neftune_noise_alpha)
    batch = trainer.data_collator([{c: row[c] for c in columns} for row in held])
    truth = Truth(twin, batch)
    if estimator == "sgd":
        trainer.truth, trainer.alone = truth, alone
        trainer.add_callback(truth)
    options = inrun.Options(progress=False, contraction="dense", smoothed_steps=0)
    trainer.add_callback(callback := InRun(held, estimator=estimator, options=options))
    trainer.train()
    return callback.attribution, truth


def agree(attribution, truth, tolerance=1e-4):
    table = attribution.values()
    found = dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist(), strict=True))
    assert set(found) == set(truth.values)
    ids = sorted(found)
    true = np.array([truth.values[i] for i in ids])
    np.testing.assert_allclose(
        np.array([found[i] for i in ids]), true, rtol=tolerance,
        atol=tolerance * np.abs(true).max(),
    )  # fmt: skip
    assert attribution.covered == 1.0


def head_of(attribution):
    """How the head was captured."""
    rows = attribution.coverage().to_pylist()
    return {r["captured_as"] for r in rows if "lm_head" in r["parameter"]}
