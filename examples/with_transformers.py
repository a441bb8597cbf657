"""The Trainer of transformers: one line more. `python examples/with_transformers.py`."""

import sys
import tempfile

from torch import nn
from torch.utils.data import default_collate
from transformers import Trainer, TrainingArguments

from digits import Digits, held_out, network, show
from inrun.integrations.transformers import InRun


class Classifier(nn.Module):
    """Any module that returns a loss."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def named(x, y):
    return {"x": x, "labels": y}


def main(folder, steps):
    data = Digits()
    training = [named(x, y) for x, y in zip(data.x, data.y, strict=True)]
    validation = [named(x, y) for x, y in zip(*held_out(), strict=True)]
    arguments = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=8, gradient_accumulation_steps=2,
        learning_rate=3e-3, report_to=[], use_cpu=True, save_steps=steps, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        Classifier(), arguments, train_dataset=training, data_collator=default_collate
    )
    trainer.add_callback(inrun := InRun(validation))  # this one
    trainer.train()
    show(inrun.attribution)
    return inrun.attribution


if __name__ == "__main__":
    main(tempfile.mkdtemp(), int(sys.argv[1]) if len(sys.argv) > 1 else 200)
