"""TRL's SFTTrainer with packing: each text is a sample. `python examples/with_sft_packing.py`."""

import random
import sys
import tempfile

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from counting import HELD, TRAINED, counted, is_bad, model, show, tokenizer
from inrun.integrations.transformers import InRun


def texts(count, seed):
    """Numbers in their order; of those to train on, every tenth text in no order."""
    found = counted(count, 3, 8, seed)
    draw = random.Random(0)
    bad = [draw.sample(numbers, len(numbers)) for numbers in found]
    trained = seed == 0
    chosen = [bad[i] if trained and is_bad(i) else found[i] for i in range(count)]
    return Dataset.from_dict({"text": [" ".join(numbers) for numbers in chosen]})


def main(folder, steps):
    settings = SFTConfig(
        folder, packing=True, max_length=24, max_steps=steps, per_device_train_batch_size=4,
        learning_rate=3e-3, report_to=[], use_cpu=True, bf16=False, save_strategy="no",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    data = texts(TRAINED, 0)
    trainer = SFTTrainer(
        model(), settings, train_dataset=data, eval_dataset=texts(HELD, 1),
        processing_class=tokenizer(),
    )  # fmt: skip
    trainer.add_callback(inrun := InRun(trainer.eval_dataset, examples=data))  # this one
    trainer.train()
    show(inrun.attribution)
    return inrun.attribution


if __name__ == "__main__":
    main(tempfile.mkdtemp(), int(sys.argv[1]) if len(sys.argv) > 1 else 100)
