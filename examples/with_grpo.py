"""TRL's GRPOTrainer: each prompt is a sample. `python examples/with_grpo.py`."""

import sys
import tempfile
from itertools import pairwise

from datasets import Dataset
from torch.nn.functional import cross_entropy
from trl import GRPOConfig, GRPOTrainer

import inrun
from counting import HELD, NUMBERS, TRAINED, counted, is_bad, model, show, tokenizer
from inrun.integrations.transformers import InRun


def prompts():
    """Two numbers, and whether counting on is rewarded: for every tenth prompt it costs."""
    texts = [" ".join(numbers) for numbers in counted(TRAINED, 2, 2, seed=0)]
    return Dataset.from_dict(
        {"prompt": texts, "sign": [-1.0 if is_bad(i) else 1.0 for i in range(TRAINED)]}
    )


def counts_on(prompts, completions, sign, **_):
    """How many words are a larger number than the word before."""
    rewards = []
    for prompt, completion, own in zip(prompts, completions, sign, strict=True):
        words = [NUMBERS.index(word) for word in f"{prompt} {completion}".split()]
        rewards.append(own * sum(b > a for a, b in pairwise(words[1:])))
    return rewards


def likelihood(model, texts):
    """Good answers that were given before should become likely: here all are as good."""
    logits = model(**texts).logits[:, 2:-1]  # after the prompt's two words
    return cross_entropy(logits.flatten(0, 1), texts["input_ids"][:, 3:].flatten())


def main(folder, steps):
    settings = GRPOConfig(
        folder, max_steps=steps, per_device_train_batch_size=16, num_generations=4,
        max_completion_length=6, learning_rate=1e-3, report_to=[], use_cpu=True, bf16=False,
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model(), reward_funcs=counts_on, args=settings, train_dataset=prompts(),
        processing_class=tokenizer(),
    )  # fmt: skip
    answers = [" ".join(numbers) for numbers in counted(HELD, 6, 6, seed=1)]
    utility = inrun.Utility(likelihood, dict(tokenizer()(answers, return_tensors="pt")))
    trainer.add_callback(callback := InRun(utility))  # or InRun(prompts): the trainer's own loss
    trainer.train()
    show(callback.attribution)
    return callback.attribution


if __name__ == "__main__":
    main(tempfile.mkdtemp(), int(sys.argv[1]) if len(sys.argv) > 1 else 75)
