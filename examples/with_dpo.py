"""TRL's DPOTrainer: each pair is a sample, with both of its rows. `python examples/with_dpo.py`."""

import random
import sys
import tempfile

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from counting import HELD, TRAINED, counted, is_bad, model, show, tokenizer
from inrun.integrations.transformers import InRun


def pairs(count, seed):
    """The right continuation, and one in no order; every tenth pair to train on is swapped."""
    draw = random.Random(seed)
    found = {"prompt": [], "chosen": [], "rejected": []}
    for i, numbers in enumerate(counted(count, 6, 8, seed)):
        right, wrong = numbers[2:], draw.sample(numbers[2:], len(numbers) - 2)
        if seed == 0 and is_bad(i):
            right, wrong = wrong, right
        found["prompt"].append(" ".join(numbers[:2]))
        found["chosen"].append(" " + " ".join(right))
        found["rejected"].append(" " + " ".join(wrong))
    return Dataset.from_dict(found)


def main(folder, steps):
    settings = DPOConfig(
        folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-3, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        model(), ref_model=model(), args=settings, train_dataset=pairs(TRAINED, 0),
        eval_dataset=pairs(HELD, 1), processing_class=tokenizer(),
    )  # fmt: skip
    trainer.add_callback(inrun := InRun(trainer.eval_dataset))  # this one
    trainer.train()
    show(inrun.attribution)
    return inrun.attribution


if __name__ == "__main__":
    main(tempfile.mkdtemp(), int(sys.argv[1]) if len(sys.argv) > 1 else 100)
